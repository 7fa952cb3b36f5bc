"""Which weights train: ID rows always, the backbone frozen, through LoRA, or whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import peft
import torch

from modeling_cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation, Side
from modeling_cllm4rec.training.arguments import StageArguments


def choose_trainable(
    model: CLLM4RecForRecommendation, arguments: StageArguments, sides: Iterable[Side] = SIDES
) -> peft.PeftModel | None:
    """Set `requires_grad` throughout the model.

    Args:
        sides: whose ID tables train.

    Returns:
        With `tune="lora"` the handle that `merge_lora` needs; the LoRA matrices are put into `model.backbone` in place.
    """
    model.requires_grad_(False)
    for side in sides:
        for table in model.tables(side):
            table.requires_grad_(True)
    if arguments.tune == "full":
        model.backbone.requires_grad_(True)
    if arguments.tune == "lora":
        config = peft.LoraConfig(
            r=arguments.lora_rank, lora_alpha=arguments.lora_alpha, target_modules="all-linear", lora_dropout=0.0
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            return peft.get_peft_model(model.backbone, config)
    return None


def merge_lora(adapted: peft.PeftModel | None) -> None:
    """Fold the LoRA matrices into the backbone, which is an ordinary one again."""
    if adapted is not None:
        adapted.merge_and_unload()


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter of all that trains."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_groups(model: CLLM4RecForRecommendation, arguments: StageArguments) -> list[dict[str, Any]]:
    """ID rows at `lr` without weight decay, the backbone at `backbone_lr` with it."""
    tables = {id(table.weight) for side in SIDES for table in model.tables(side)}
    parameters = trainable(model).values()
    groups = [
        {"params": [one for one in parameters if id(one) in tables], "lr": arguments.lr, "weight_decay": 0.0},
        {
            "params": [one for one in parameters if id(one) not in tables],
            "lr": arguments.backbone_lr,
            "weight_decay": arguments.backbone_weight_decay,
        },
    ]
    return [group for group in groups if group["params"]]


def frozen_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of all that does not train, so that a checkpoint is not laid over another backbone."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
