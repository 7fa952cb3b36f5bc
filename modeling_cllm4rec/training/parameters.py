"""Trainable weights: rows of IDs always, the backbone frozen, through LoRA, or whole."""

from __future__ import annotations

import hashlib
from typing import Any

import peft
import torch
from torch.distributed.tensor import DTensor

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.row_sharding import rows_each


def tune_backbone(model: RecommenderModel, arguments: TrainingArguments) -> peft.PeftModel | None:
    """Freeze everything but what `tune` asks for, and set the backbone's dropout and kind of attention.

    Returns:
        With `tune="lora"` the handle that `merge_lora` needs; the LoRA matrices are put into `model.backbone` in place.
    """
    model.requires_grad_(False)
    if arguments.dropout is not None:
        set_dropout(model.backbone, arguments.dropout)
    if arguments.attn_implementation is not None:
        try:
            model.backbone.set_attn_implementation(arguments.attn_implementation)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"attn_implementation is {arguments.attn_implementation!r}; the backbone refuses it: {error}"
            ) from error
    if arguments.tune == "full":
        model.backbone.requires_grad_(True)
    if arguments.tune == "lora":
        config = peft.LoraConfig(
            r=arguments.lora_r,
            lora_alpha=arguments.lora_alpha,
            target_modules="all-linear",
            lora_dropout=arguments.lora_dropout,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            return peft.get_peft_model(model.backbone, config)
    return None


def checkpoint_activations(backbone: Any) -> None:
    """Let a backbone compute its activations again in the backward pass, layer by layer."""
    if hasattr(backbone, "activation_checkpointing_enable"):
        backbone.activation_checkpointing_enable()
    else:  # its name before transformers 5.23
        backbone.gradient_checkpointing_enable()


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set all dropout of a model, that of its attention included; its configuration stays as it is."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        if isinstance(getattr(module, "attention_dropout", None), float):  # Llama and Qwen keep a number
            module.attention_dropout = probability  # type: ignore[assignment]


class TrainedRows:
    """A hook on a matrix that lets some of its rows learn: the gradient of the others becomes 0.

    Args:
        rows: (R,) bool, the rows that learn.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, 1))
        >>> _ = weight.register_hook(TrainedRows(torch.tensor([True, False])))
        >>> weight.sum().backward()
        >>> weight.grad.tolist()
        [[1.0], [0.0]]
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the (R, K) gradient with 0 in the other rows."""
        return gradient * self.rows.to(gradient.device)[:, None]

    def zero_others(self, weight: Any) -> None:
        """Zero the gradient of the other rows in the shard of a matrix that this process holds: a DTensor sharded by rows."""
        local = weight.grad.to_local()
        first = weight.device_mesh.get_local_rank() * rows_each(len(self.rows), weight.device_mesh.size())
        local *= self.rows[first : first + len(local)].to(local.device)[:, None]

    @staticmethod
    def of(weight: torch.Tensor) -> TrainedRows | None:
        """Return the hook of a matrix, None where all of its rows learn."""
        hooks = weight._backward_hooks or {}
        return next((hook for hook in hooks.values() if isinstance(hook, TrainedRows)), None)


def merge_lora(adapted: peft.PeftModel | None) -> None:
    """Fold the LoRA matrices into the backbone, which is an ordinary one again."""
    if adapted is not None:
        adapted.merge_and_unload()


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter of all that trains."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_groups(model: RecommenderModel, arguments: TrainingArguments) -> list[dict[str, Any]]:
    """Rows of IDs at `learning_rate` without weight decay, the rest of the backbone at `backbone_learning_rate` with it."""
    tables = {id(weight) for weight in model.id_parameters}
    parameters = trainable(model).values()
    groups = [
        {"params": [one for one in parameters if id(one) in tables], "lr": arguments.learning_rate, "weight_decay": 0.0},
        {
            "params": [one for one in parameters if id(one) not in tables],
            "lr": arguments.backbone_learning_rate,
            "weight_decay": arguments.weight_decay,
        },
    ]
    return [group for group in groups if group["params"]]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the rows of a tensor that this process holds, a view of the same memory: all of them unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def start_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of all weights before training, so that a checkpoint is not laid over a run with another start."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
