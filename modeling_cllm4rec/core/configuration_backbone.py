"""Base of both systems' configurations: a causal language model inside, under `text_config`.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class BackboneConfig(PreTrainedConfig):
    """A configuration around that of a causal language model."""

    sub_configs = {"text_config": AutoConfig}

    def __init__(self, text_config: PreTrainedConfig | dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.text_config = self.read_text_config(text_config)
        kwargs["tie_word_embeddings"] = False  # text_config.tie_word_embeddings decides on ties
        super().__init__(**kwargs)

    @staticmethod
    def read_text_config(text_config: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig:
        """Return the configuration of the language model, given as such or as a dict with `model_type`."""
        if isinstance(text_config, dict):
            return AutoConfig.for_model(**text_config)
        if text_config is None:  # transformers builds a default config when it compares configs for printing
            return AutoConfig.for_model("gpt2")
        return text_config

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


__all__ = ["BackboneConfig"]
