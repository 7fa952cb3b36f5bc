"""Trainable weights of an LC-Rec model."""

from __future__ import annotations

import peft
import torch

from modeling_cllm4rec.lcrec.arguments import AlignmentArguments
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.training.parameters import TrainedRows, tune_backbone


def choose_semantic_id_rows(model: LCRecForRecommendation, arguments: AlignmentArguments) -> peft.PeftModel | None:
    """Set `requires_grad` throughout an LC-Rec model: rows of semantic IDs' tokens, item head, and tuned part of the backbone.

    Unless the whole backbone is tuned or `train_words` is set, the rows of words, which are in the same matrices, receive no
    gradient and keep their bits.

    Returns:
        The adapted backbone of `tune_backbone`, or None.
    """
    adapted = tune_backbone(model, arguments)
    config = model.config
    for parameter in () if model.item_head is None else model.item_head.parameters():
        parameter.requires_grad_(True)
    for weight in model.token_matrices:
        weight.requires_grad_(True)
        if arguments.tune != "full" and not arguments.train_words:
            rows = torch.arange(len(weight))
            trains = (rows >= config.first_index_token) & (rows <= config.last_index_token)
            weight.register_hook(TrainedRows(trains))
    return adapted
