"""LC-Rec's ablation (table IV of arXiv 2311.09049): alignment tasks added row by row, and semantic IDs without meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modeling_cllm4rec.lcrec.alignment_tasks import ALIGNMENT_TASKS
from modeling_cllm4rec.systems import RecipeVariant

RANDOM = "index=random"


def added_tasks() -> dict[str, list[str]]:
    """Return row of table IV -> the tasks that it adds to the row before. The last row, +PER, is the recipe itself.

    Example:
        >>> added_tasks()["+MUT"]
        ['item2index', 'index2item']
    """
    rows: dict[str, list[str]] = {}
    for name, task in ALIGNMENT_TASKS.items():
        if task.ablation_row:
            rows.setdefault(task.ablation_row, []).append(name)
    return rows


def variants(recipe: Mapping[str, dict[str, Any]]) -> dict[str, RecipeVariant]:
    """Return the variants of a recipe of LC-Rec: its own tasks, with its shares, up to each row of the table.

    A row whose tasks the recipe leaves out is no variant. Variants with the same semantic IDs share that stage.
    """
    words = recipe["align"].get("tasks", list(ALIGNMENT_TASKS))
    shuffled = {**recipe["index"], "method": "random", "co_occurrence": 0.0}
    made, tasks = {}, set[str]()
    for name, added in added_tasks().items():
        tasks |= set(added)
        kept = [word for word in words if _task(word) in tasks]
        if any(_task(word) in added for word in words):
            made[name] = RecipeVariant(f"tasks {' '.join(kept)}", {**recipe, "align": {**recipe["align"], "tasks": kept}})
    made[RANDOM] = RecipeVariant("all tasks of the recipe, codes without meaning", {**recipe, "index": shuffled})
    if "SEQ" in made:
        about = f"{made['SEQ'].about}, codes without meaning"
        made[f"SEQ:{RANDOM}"] = RecipeVariant(about, {**made["SEQ"].recipe, "index": shuffled})
    return made


def _task(word: str) -> str:
    """Return `fusionseqrec` of `fusionseqrec=0.5`."""
    return word.partition("=")[0]
