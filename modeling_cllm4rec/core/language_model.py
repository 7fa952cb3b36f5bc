"""What both systems ask of the causal language model inside, whatever its kind.

This file stands alone: it is copied into every saved folder.
"""

from __future__ import annotations

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .errors import InputError


def word_head(language_model: PreTrainedModel) -> nn.Module:
    """What turns the decoder's states (..., K) into logits (..., N): BERT's has a layer more than GPT-2's.

    Raises:
        InputError: a model with more parts than a decoder and its output layer.
    """
    body = language_model.base_model
    heads = [module for module in language_model.children() if module is not body]
    if len(heads) != 1:
        raise InputError(
            f"{type(language_model).__name__} has {len(heads)} parts beside its decoder; expected its output layer alone"
        )
    return heads[0]


class HoldsLanguageModel:
    """Gives transformers what it asks of a model whose language model is in `backbone`."""

    backbone: Any

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings (N, K) of the language model."""
        embeddings: nn.Module = self.backbone.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the language model."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The language model's output layer."""
        layer: nn.Module | None = self.backbone.get_output_embeddings()
        return layer

    def get_decoder(self) -> nn.Module:
        """The language model without its output layer."""
        body: nn.Module = self.backbone.base_model
        return body

    @property
    def word_head(self) -> nn.Module:
        """From (..., K) states to (..., N) logits over the language model's tokens: f_c in CLLM4Rec."""
        return word_head(self.backbone)


def tokenizer_of(name_or_path: str | Path) -> PreTrainedTokenizerBase | None:
    """The backbone's tokenizer, None if its folder has none (`AutoTokenizer` would make an empty one)."""
    for file in ("tokenizer_config.json", "tokenizer.json"):
        if cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False) is not None:
            return AutoTokenizer.from_pretrained(name_or_path)
    return None


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


def greedy_generation(own: GenerationConfig, tokenizer: PreTrainedTokenizerBase | None) -> GenerationConfig:
    """How a model writes by default: always the likeliest word, up to the token that closes a text.

    Of the backbone's own settings, which may sample, only its tokens are taken. Where it names none, its tokenizer does:
    the end of text, else the separator (BERT), as in the documents that it is trained on.
    """
    bos, eos, pad = own.bos_token_id, own.eos_token_id, own.pad_token_id
    if tokenizer is not None and eos is None:
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if tokenizer is not None and pad is None:
        pad = tokenizer.pad_token_id
    if pad is None:
        pad = eos[0] if isinstance(eos, list) else eos
    return GenerationConfig(do_sample=False, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)


def is_left_padded(attention_mask: torch.Tensor | None) -> bool:
    """Whether a (B, T) mask has padding before some row's first token."""
    return attention_mask is not None and attention_mask.dim() == 2 and not bool(attention_mask[:, 0].all())


def real_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) places of the real tokens among themselves: left padding counts for nothing."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def check_fields(config_class: type[PreTrainedConfig], arguments: dict[str, Any]) -> None:
    """Refuse what a configuration would take and never read."""
    names = [name for name in inspect.signature(config_class).parameters if name not in ("text_config", "kwargs")]
    for name in arguments:
        if name not in names:
            near = difflib.get_close_matches(name, names)
            raise InputError(f"from_backbone: unknown field {name!r}; nearest: {near or names}")


__all__ = [
    "HoldsLanguageModel",
    "check_fields",
    "reject_adapter",
    "greedy_generation",
    "is_left_padded",
    "real_positions",
    "tokenizer_of",
    "word_head",
]
