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
    """Set `requires_grad` throughout a CLLM4Rec model.

    Args:
        sides: whose ID tables train.

    Returns:
        What `tune_backbone` returns.
    """
    adapted = tune_backbone(model, arguments)
    for side in sides:
        for table in model.tables(side):
            table.requires_grad_(True)
    return adapted
