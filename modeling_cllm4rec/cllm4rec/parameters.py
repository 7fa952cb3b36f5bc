"""Trainable weights of a CLLM4Rec model."""

from __future__ import annotations

from collections.abc import Iterable

import peft

from modeling_cllm4rec.cllm4rec.arguments import StageArguments
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation, Side
from modeling_cllm4rec.training.parameters import tune_backbone


def choose_trainable(
    model: CLLM4RecForRecommendation, arguments: StageArguments, sides: Iterable[Side] = SIDES
) -> peft.PeftModel | None:
    """Set `requires_grad` of all weights of a CLLM4Rec model, and `sparse` of its ID tables.

    Args:
        model: changed in place.
        arguments: `tune`, the LoRA shape, the dropout of the backbone, and whether gradients of ID rows are sparse.
        sides: sides whose ID tables are trained.

    Returns:
        The LoRA handle of `tune_backbone`, None without LoRA.
    """
    adapted = tune_backbone(model, arguments)
    for side in sides:
        for table in model.tables(side):
            table.requires_grad_(True)
            table.sparse = arguments.sparse_rows
    return adapted
