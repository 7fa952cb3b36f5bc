"""Trainable weights of a CLLM4Rec model."""

from __future__ import annotations

from collections.abc import Iterable

import peft

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation, Side
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.parameters import tune_backbone


def choose_trainable(
    model: CLLM4RecForRecommendation, arguments: TrainingArguments, sides: Iterable[Side] = SIDES
) -> peft.PeftModel | None:
    """Set `requires_grad` of all weights of a CLLM4Rec model.

    Args:
        model: changed in place.
        arguments: `tune`, the LoRA shape, and the dropout of the backbone.
        sides: sides whose ID tables are trained.

    Returns:
        The LoRA handle of `tune_backbone`, None without LoRA.
    """
    adapted = tune_backbone(model, arguments)
    for side in sides:
        for table in model.tables(side):
            table.requires_grad_(True)
    return adapted
