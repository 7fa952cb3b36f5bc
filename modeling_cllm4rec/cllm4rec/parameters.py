"""Trainable weights of a CLLM4Rec model."""

from __future__ import annotations

import peft

from modeling_cllm4rec.cllm4rec.arguments import StageArguments
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation, Side
from modeling_cllm4rec.training.parameters import tune_backbone


def choose_trainable(model: CLLM4RecForRecommendation, arguments: StageArguments, texts: bool = True) -> peft.PeftModel | None:
    """Set `requires_grad` of all weights of a CLLM4Rec model, and `sparse` of its ID tables.

    Args:
        model: changed in place.
        arguments: `tune`, the LoRA shape, the dropout of the backbone, and whether gradients of ID rows are sparse.
        texts: whether text documents are trained, and with them the content tables and the output layer for words. Without
            them these have no gradient, for which processes that average gradients would wait.

    Returns:
        The LoRA handle of `tune_backbone`, None without LoRA.
    """
    adapted = tune_backbone(model, arguments)
    if not texts:
        read = {id(weight) for weight in model.backbone.get_input_embeddings().parameters()}  # the output layer may be tied to it
        for weight in model.word_head.parameters():
            weight.requires_grad_(id(weight) in read and weight.requires_grad)
    sides: tuple[Side, ...] = SIDES if texts else ("collaborative",)
    for side in sides:
        for table in model.tables(side):
            table.requires_grad_(True)
            table.sparse = arguments.sparse_rows
    return adapted
