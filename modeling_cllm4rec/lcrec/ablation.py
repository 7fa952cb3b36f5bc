"""LC-Rec's ablation study (table IV of arXiv 2311.09049): the alignment tasks rung by rung, and indices without meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modeling_cllm4rec.lcrec.alignment_templates import TASKS
from modeling_cllm4rec.systems import RecipeVariant

RUNGS: dict[str, tuple[str, ...]] = {
    "SEQ": ("seqrec",),
    "+MUT": ("item2index", "index2item"),
    "+ASY": ("fusionseqrec",),
    "+ITE": ("itemsearch",),
}
"""Rung -> the tasks that it adds to the rung before; the preferences come with the recipe itself, the paper's +PER."""
RANDOM = "index=random"


def variants(recipe: Mapping[str, dict[str, Any]]) -> dict[str, RecipeVariant]:
    """The rungs of a recipe of LC-Rec: its own tasks, with its shares, up to each.

    A rung whose tasks the recipe leaves out is none. Variants of one index share its stage.
    """
    words = recipe["align"].get("tasks", list(TASKS))
    shuffled = {**recipe["index"], "method": "random", "co_occurrence": 0.0}
    rungs, tasks = {}, set[str]()
    for name, added in RUNGS.items():
        tasks |= set(added)
        kept = [word for word in words if _task(word) in tasks]
        if any(_task(word) in added for word in words):
            rungs[name] = RecipeVariant(f"tasks {' '.join(kept)}", {**recipe, "align": {**recipe["align"], "tasks": kept}})
    rungs[RANDOM] = RecipeVariant("all tasks of the recipe, codes without meaning", {**recipe, "index": shuffled})
    if "SEQ" in rungs:
        alone = RecipeVariant(f"{rungs['SEQ'].about}, codes without meaning", {**rungs["SEQ"].recipe, "index": shuffled})
        rungs[f"SEQ:{RANDOM}"] = alone
    return rungs


def _task(word: str) -> str:
    """`fusionseqrec` of `fusionseqrec=0.5`."""
    return word.partition("=")[0]
