"""Base of both systems' configurations: a causal language model inside, under `text_config`.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from .errors import InputError

MOST = 2**31 - 1
"""Largest number of tokens, users and items: dense indices have 32 bits."""


class BackboneConfig(PreTrainedConfig):
    """A configuration around that of a causal language model.

    Args:
        text_config: configuration of the language model, as a `PreTrainedConfig` or a dict with `model_type`.
        linear_parts: names of the linear models of a hybrid, so that a folder that has lost their file is no other model.
    """

    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self, text_config: PreTrainedConfig | dict[str, Any] | None = None, linear_parts: list[str] | None = None, **kwargs: Any
    ) -> None:
        self.text_config = self.read_text_config(text_config)
        if linear_parts is not None and not (
            isinstance(linear_parts, list) and all(isinstance(name, str) for name in linear_parts)
        ):
            raise InputError(f"linear_parts is {str(linear_parts)[:100]}; it must be a list of the names of linear models")
        self.linear_parts = linear_parts or []
        if kwargs.get("dtype") is not None:
            _check_dtype(kwargs["dtype"])
        kwargs["tie_word_embeddings"] = False  # text_config.tie_word_embeddings decides on ties
        super().__init__(**kwargs)

    @staticmethod
    def read_text_config(text_config: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig:
        """Return the configuration of the language model, given as such or as a dict with `model_type`."""
        if isinstance(text_config, PreTrainedConfig):
            return text_config
        if text_config is None:  # transformers builds a default config when it compares configs for printing
            return AutoConfig.for_model("gpt2")
        if not isinstance(text_config, dict) or not isinstance(text_config.get("model_type"), str):
            raise InputError(
                f"text_config is {str(text_config)[:100]}; it must be the configuration of a language model with its model_type"
            )
        try:
            found = AutoConfig.for_model(**text_config)
            sizes = found.get_text_config()
            whole = {name: getattr(sizes, name, 1) for name in ("vocab_size", "hidden_size", "max_position_embeddings")}
        except Exception as error:  # each architecture checks its fields in its own way
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"text_config describes no language model ({type(error).__name__}: {reason})") from error
        for name, value in whole.items():
            check_count(f"text_config.{name}", value, 1)
        return found

    @property
    def hidden_size(self) -> int:
        """Width K of the language model and of every row of a token."""
        return int(self.text_config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """Tokens of the language model itself."""
        return int(self.text_config.get_text_config().vocab_size)

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens that the language model can read."""
        return int(self.text_config.get_text_config().max_position_embeddings)


def check_count(name: str, value: Any, least: int = 0, most: int = MOST) -> None:
    """Check that a field is a whole number.

    Raises:
        InputError: it is none, or out of range.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= int(value) <= most:
        allowed = f"{least} or more" if most == MOST and not (whole and value > most) else f"{least} to {most}"
        raise InputError(f"{name} is {value!r:.100}; it must be {allowed}, a whole number")


def check_tokens(name: str, value: Any, tokens: int, words: Sequence[str] = ()) -> None:
    """Check that a field is a list of token ids below `tokens`, and of segments of them and of words such as "items".

    Args:
        words: placeholders that may be among the segments; without any, the field is one segment.

    Raises:
        InputError: it is something else, or has a token id that does not exist.
    """
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{name} is {str(value)[:100]}; it must be a list of token ids")
    for one in value:
        if words and isinstance(one, (list, tuple)):
            check_tokens(name, one, tokens)
        elif words and one not in words:
            raise InputError(f"{name} holds {str(one)[:100]!r}; its segments are lists of token ids and {', '.join(words)}")
        elif not words and (isinstance(one, bool) or not isinstance(one, Integral) or not 0 <= int(one) < tokens):
            raise InputError(f"{name} holds the token {str(one)[:100]}; token ids go from 0 to {tokens - 1}")


def check_prompt(name: str, value: Any, tokens: int, words: Sequence[str], text_config: PreTrainedConfig) -> None:
    """Check that a field is a prompt, cut at its placeholders, whose own tokens fit into the context.

    Args:
        words: the placeholders, each of which the prompt has once. A prompt without one would answer all questions alike.

    Raises:
        InputError: see `check_tokens`; or a placeholder is missing or repeated, or it is longer than the context.
    """
    check_tokens(name, value, tokens, words)
    found = [one for one in value if isinstance(one, str)]
    if sorted(found) != sorted(words):
        raise InputError(f"{name} has the placeholders {found}; it must have {' and '.join(words)}, once each")
    length = sum(len(one) for one in value if isinstance(one, (list, tuple)))
    context = getattr(text_config.get_text_config(), "max_position_embeddings", MOST)
    if length > context:
        raise InputError(f"{name} has {length} tokens; the context of the language model holds {context}")


def _check_dtype(value: Any) -> None:
    """Raise InputError if a field is no type of weights."""
    known = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise InputError(f"dtype is {value!r:.100}; it must be a type of weights, such as float32 or bfloat16")


def check_fingerprint(name: str, value: Any) -> None:
    """Check that a field is a SHA-256 in hexadecimal, or None.

    Raises:
        InputError: it is neither.
    """
    if value is not None and not (isinstance(value, str) and len(value) == 64):
        raise InputError(f"{name} is {str(value)[:100]}; it must be a SHA-256 of 64 digits")


__all__ = ["MOST", "BackboneConfig", "check_count", "check_fingerprint", "check_prompt", "check_tokens"]
