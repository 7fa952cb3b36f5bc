"""LC-Rec's ablations (arXiv 2311.09049): alignment tasks added row by row (table IV), and ways to name items (figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modeling_cllm4rec.lcrec.alignment_tasks import ALIGNMENT_TASKS
from modeling_cllm4rec.systems import RecipeVariant

INDICES: dict[str, tuple[str, dict[str, Any]]] = {
    "index=no-usm": ("without uniform semantic mapping", {"uniform_mapping": "none", "sinkhorn_epsilon": 0.0}),
    "index=random": ("codes without meaning", {"method": "random", "co_occurrence": 0.0}),
    "index=vanilla": ("one token for each item", {"method": "vanilla", "co_occurrence": 0.0}),
}
"""Way to name items, of figure 2 -> what it is, and its settings of `index-items`."""


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
    """Return the variants of a recipe of LC-Rec: its own tasks, with its shares, up to each row of table IV, and each index.

    A row whose tasks the recipe leaves out is no variant. Variants with the same semantic IDs share that stage.
    """
    words = recipe["align"].get("tasks", list(ALIGNMENT_TASKS))
    made, tasks = {}, set[str]()
    for name, added in added_tasks().items():
        tasks |= set(added)
        kept = [word for word in words if _task(word) in tasks]
        if any(_task(word) in added for word in words):
            made[name] = RecipeVariant(f"tasks {' '.join(kept)}", {**recipe, "align": {**recipe["align"], "tasks": kept}})
    sequences = made.get("SEQ")
    for name, (about, settings) in INDICES.items():
        index = {**recipe["index"], **settings}
        made[name] = RecipeVariant(f"all tasks of the recipe, {about}", {**recipe, "index": index})
        if sequences is not None:
            made[f"SEQ:{name}"] = RecipeVariant(f"{sequences.about}, {about}", {**sequences.recipe, "index": index})
    return made


def _task(word: str) -> str:
    """Return `fusionseqrec` of `fusionseqrec=0.5`."""
    return word.partition("=")[0]
