"""The causal language model inside a recommender, whatever its architecture.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from .errors import InputError, MissingFileError, nearest
from .prompt_assembly import pad_right

CACHE = next(field.name for field in dataclasses.fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))
"""Name of the keys and values of tokens before, as argument and in outputs: `cache` since transformers 5.24."""


def word_head(language_model: PreTrainedModel) -> nn.Module:
    """Return the module that maps the decoder's states (..., K) to logits (..., N); BERT's has a layer more than GPT-2's.

    Raises:
        InputError: a model with more parts than a decoder and its output layer.
    """
    body = language_model.base_model
    heads = [module for module in language_model.children() if module is not body]
    if len(heads) != 1:
        raise InputError(
            f"{type(language_model).__name__} has {len(heads)} parts in addition to its decoder; expected only its output layer"
        )
    return heads[0]


def tokenizer_of(name_or_path: str | Path) -> PreTrainedTokenizerBase | None:
    """Return the backbone's tokenizer, None if its folder has none (`AutoTokenizer` would make an empty one).

    Raises:
        InputError: its files cannot be read.
    """
    for file in ("tokenizer_config.json", "tokenizer.json"):
        if cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False) is not None:
            try:
                return AutoTokenizer.from_pretrained(name_or_path)
            except ValueError as error:
                raise InputError(f"backbone: the tokenizer in {name_or_path} cannot be read ({error}); copy it again") from error
    return None


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the one token id that closes a text, in a list: the end of text, else the separator (BERT), else none."""
    return [token for token in (tokenizer.eos_token_id, tokenizer.sep_token_id) if token is not None][:1]


def reject_adapter(name_or_path: str | Path) -> None:
    """Refuse a folder or Hub name that holds LoRA matrices alone, whichever language model they were trained for.

    Raises:
        InputError: there is an adapter (its base is named).
    """
    file = cached_file(name_or_path, "adapter_config.json", _raise_exceptions_for_missing_entries=False)
    if file is not None:
        base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise InputError(
            f"backbone: {name_or_path} is an adapter (adapter_config.json) of the base {base!r}, no whole language model; fold "
            "it into that base first (peft.AutoPeftModelForCausalLM.from_pretrained(ADAPTER).merge_and_unload()), save the whole "
            "with the base's tokenizer in a folder, and name that"
        )


def pretrained_backbone(name_or_path: str | Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a pretrained causal language model, and its tokenizer where there is one.

    Raises:
        InputError: an adapter in place of a whole language model, a model that is no causal language model, or broken files.
        MissingFileError: there is no such model.
    """
    try:
        reject_adapter(name_or_path)
        config = _config_of(name_or_path)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in (
            getattr(config, "auto_map", {}) or {}
        ):
            raise InputError(f"backbone: {name_or_path} holds a {config.model_type}, which is no causal language model")
        return AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype), tokenizer_of(name_or_path)
    except SafetensorError as error:
        raise InputError(f"backbone: the weights in {name_or_path} cannot be read ({error}); copy the folder again") from error
    except InputError:
        raise
    except OSError as error:
        raise MissingFileError(
            f"backbone: {name_or_path} is no folder with a language model and could not be read from the Hub ({error})"
        ) from error


def _config_of(name_or_path: str | Path) -> PreTrainedConfig:
    """Return the configuration of a backbone, whose ValueError can only be about its file."""
    try:
        return AutoConfig.from_pretrained(name_or_path)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"backbone: {name_or_path} is no causal language model that transformers can load ({reason})") from error


def new_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a causal language model with this configuration and random weights.

    It gets a copy, because a shared configuration loses its attention implementation, and attention then its causality.
    """
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.get_default_dtype())


def published_config(backbone: PreTrainedModel) -> PreTrainedConfig:
    """Return a copy of a backbone's configuration without the place that it was loaded from, which may be a local path."""
    config = copy.deepcopy(backbone.config)
    config.name_or_path = ""
    return config


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients within a block; all modes are the same afterwards, even on an error."""
    # Module by module, because parts may be in another mode than the whole, such as a frozen backbone without dropout.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def execution_device(model: nn.Module) -> torch.device:
    """Return the device on which a model computes: that of its weights, or of accelerate's hooks where weights are offloaded."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next((weight.device for weight in model.parameters() if weight.device.type != "meta"), torch.device("cpu"))


def next_word_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor | None:
    """Return the next-word loss as transformers' causal language models compute it.

    Args:
        logits: (B, T, N).
        labels: (B, T) tokens to be predicted at their own place (shifted inside). -100 and ids from N on, which cannot be
            predicted, do not count. None with `shift_labels`.
        shift_labels: (B, T) tokens to be predicted after their place, for labels that were shifted outside; in place of `labels`.
        num_items_in_batch: number of tokens that count in the whole step, of all processes and accumulation steps. The loss is
            then the sum over the tokens divided by it. None divides by the number of tokens that count here.

    Returns:
        () loss in nats; None without labels.
    """
    if labels is None and shift_labels is None:
        return None
    num_words = logits.shape[-1]
    labels, shift_labels = (
        None if given is None else given.masked_fill(given >= num_words, -100) for given in (labels, shift_labels)
    )
    loss: torch.Tensor = ForCausalLMLoss(
        logits,
        labels,
        num_words,
        num_items_in_batch=num_items_in_batch,  # type: ignore[arg-type]  # a number serves as well
        shift_labels=shift_labels,
    )
    return loss


def pad_prompts(prompts: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts on the right.

    Args:
        prompts: B arrays of token ids.

    Returns:
        (B, T) int64 token ids and their (B, T) int64 attention mask.
    """
    ids = torch.from_numpy(pad_right(prompts, 0))
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return ids.to(device), mask.to(device)


def greedy_generation(own: GenerationConfig, tokenizer: PreTrainedTokenizerBase | None) -> GenerationConfig:
    """Return the default generation settings: always the likeliest word, up to the token that closes a text.

    Of the backbone's own settings, which may sample, only its tokens are taken. Where it names none, its tokenizer does:
    the end of text, else the separator (BERT), as in the documents that it is trained on.
    """
    bos, eos, pad = own.bos_token_id, own.eos_token_id, own.pad_token_id
    if tokenizer is not None and eos is None:
        eos = next(iter(end_tokens(tokenizer)), None)
    if tokenizer is not None and pad is None:
        pad = tokenizer.pad_token_id
    if pad is None:
        pad = eos[0] if isinstance(eos, list) else eos
    return GenerationConfig(do_sample=False, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)


def real_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) places of the real tokens among themselves: left padding counts for nothing."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def decoder_arguments(decoder: nn.Module, attention_mask: torch.Tensor | None, length: int) -> dict[str, torch.Tensor]:
    """Return the `position_ids` of the last `length` tokens of a (B, cached + length) mask, for a decoder that reads them.

    They are those of an unpadded row on either side of padding. Always given, also without left padding: a branch on the values
    of the mask would break `torch.compile` and `torch.export`, and wait for the device.
    """
    if attention_mask is None or attention_mask.dim() != 2 or "position_ids" not in inspect.signature(decoder.forward).parameters:
        return {}
    return {"position_ids": real_positions(attention_mask)[:, -length:]}


def check_fields(config_class: type[PreTrainedConfig], arguments: dict[str, Any]) -> None:
    """Refuse what a configuration would take and never read."""
    names = [name for name in inspect.signature(config_class).parameters if name not in ("text_config", "kwargs")]
    for name in arguments:
        if name not in names:
            raise InputError(f"from_backbone: unknown field {name!r}; {nearest(name, names)}")


__all__ = [
    "CACHE",
    "check_fields",
    "decoder_arguments",
    "end_tokens",
    "evaluating",
    "execution_device",
    "greedy_generation",
    "new_backbone",
    "next_word_loss",
    "pad_prompts",
    "pretrained_backbone",
    "published_config",
    "real_positions",
    "reject_adapter",
    "tokenizer_of",
    "word_head",
]
