"""The causal language model inside a recommender, whatever its architecture.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import contextlib
import copy
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
from transformers.utils import cached_file

from .errors import InputError, MissingFileError, nearest
from .prompt_assembly import pad_right


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


def published_config(backbone: PreTrainedModel) -> PreTrainedConfig:
    """Return a copy of a backbone's configuration without the place that it was loaded from, which may be a local path.

    A copy, because a shared configuration loses its attention implementation, and attention then its causality.
    """
    config = copy.deepcopy(backbone.config)
    config.name_or_path = ""
    return config


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients within a block; its mode is the same afterwards, even on an error."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


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


def is_left_padded(attention_mask: torch.Tensor | None) -> bool:
    """Return whether a (B, T) mask has padding before some row's first token."""
    return attention_mask is not None and attention_mask.dim() == 2 and not bool(attention_mask[:, 0].all())


def real_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) places of the real tokens among themselves: left padding counts for nothing."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def check_fields(config_class: type[PreTrainedConfig], arguments: dict[str, Any]) -> None:
    """Refuse what a configuration would take and never read."""
    names = [name for name in inspect.signature(config_class).parameters if name not in ("text_config", "kwargs")]
    for name in arguments:
        if name not in names:
            raise InputError(f"from_backbone: unknown field {name!r}; {nearest(name, names)}")


__all__ = [
    "check_fields",
    "end_tokens",
    "evaluating",
    "greedy_generation",
    "is_left_padded",
    "pad_prompts",
    "pretrained_backbone",
    "published_config",
    "real_positions",
    "reject_adapter",
    "tokenizer_of",
    "word_head",
]
