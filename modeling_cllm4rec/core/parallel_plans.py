"""Plans of tensor parallelism and FSDP2, which `from_pretrained(..., distributed_config=DistributedConfig(...))` reads.

A model has the plans of its backbone: transformers collects those of all children. This module adds what they lack.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .errors import InputError


def layer_plan(model: Any) -> dict[str, str]:
    """Return the FSDP2 plan of a model: its rules that name something, and one for the backbone's layers if none does.

    Layers have other names in each architecture (`h` in GPT-2), and the rules that transformers gives by default name those of
    Llama. A layer is gathered before it computes and freed after it.

    Args:
        model: with the plans of its children.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    names = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules()}
    plan = {rule: style for rule, style in (model.fsdp_plan or {}).items() if rule in names}
    rules = {re.sub(r"\.\d+$", ".*", name) for name in layers}
    return {**dict.fromkeys(rules, "free_full_weight"), **plan}


def check_heads(config: PreTrainedConfig, tp_size: int) -> None:
    """Check that tensor parallelism can share out the attention heads of a language model.

    Raises:
        InputError: their number, or that of the heads of keys and values, is no multiple of the number of processes.

    Example:
        >>> from transformers import LlamaConfig
        >>> check_heads(LlamaConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=3), 3)
    """
    text = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, name, None)
        if heads is not None and heads % tp_size:
            divisors = [number for number in range(1, heads + 1) if heads % number == 0]
            raise InputError(
                f"tp_size is {tp_size}, but the backbone's {name} is {heads}: each process computes whole heads; set tp_size to "
                f"one of {', '.join(map(str, divisors))}, or shard the weights instead (fsdp_size)"
            )


def check_tensor_plan(model: Any, distributed_config: Any) -> None:
    """Check that there is a plan where tensor parallelism is asked for; older versions of transformers load the model whole.

    Args:
        model: with the plans of its children; distributed_config: transformers' `DistributedConfig`.

    Raises:
        InputError: neither transformers nor the configuration has a plan for this backbone.
    """
    if distributed_config.tp_size > 1 and not model.tp_plan and not isinstance(distributed_config.tp_plan, dict):
        raise InputError(
            f"tp_size is {distributed_config.tp_size}, but transformers has no plan of tensor parallelism for the backbone "
            f"({model.config.text_config.model_type}); give DistributedConfig a tp_plan, or shard the weights instead (fsdp_size)"
        )


def check_gathered(model: Any) -> None:
    """Check that a model can be asked for items: weights that FSDP2 shares out are there within `forward` alone.

    Raises:
        InputError: transformers has sharded it by FSDP2.
    """
    if model._is_fsdp_managed_module:
        raise InputError(
            "this model was loaded with fsdp_size, so its weights are there within model(...) alone; to recommend, load it with "
            "tp_size, with device_map, or whole"
        )


__all__ = ["check_gathered", "check_heads", "check_tensor_plan", "layer_plan"]
