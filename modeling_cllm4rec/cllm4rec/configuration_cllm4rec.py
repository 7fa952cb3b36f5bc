"""Configuration of CLLM4Rec (arXiv 2311.01343): a causal language model with user and item ID tokens.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from ..core.configuration_backbone import MOST, BackboneConfig, check_count, check_fingerprint, check_prompt
from ..core.errors import InputError

AUTO_MAP = {
    "AutoConfig": "configuration_cllm4rec.CLLM4RecConfig",
    "AutoModel": "modeling_cllm4rec.CLLM4RecForRecommendation",
    "AutoModelForCausalLM": "modeling_cllm4rec.CLLM4RecForCausalLM",
}
"""Auto class of transformers -> the class in a saved folder's own code."""

PromptPieces = list[Any]
"""A prompt cut at its placeholders: lists of text token ids between the words `"user"`, `"item"` and `"items"`."""


class CLLM4RecConfig(BackboneConfig):
    """Shape of a CLLM4Rec model.

    Args:
        text_config: configuration of the causal language model inside (any `AutoModelForCausalLM`), as a
            `PreTrainedConfig` or a dict with `model_type`.
        num_users: number I of user ID tokens; user i has token id `id_offset + i`.
        num_items: number J of item ID tokens; item j has token id `id_offset + num_users + j`.
        id_offset: number N of text token ids, at least the backbone's vocabulary size (default: exactly that).
        initializer_range: standard deviation of fresh ID rows (0.02 in the released code).
        recommendation_prompts: the finetuning prompt (section 3.4 of the paper) cut into token ids, under `"known"`
            (with the user's token) and `"anonymous"` (for a user without one); see `prompt_assembly.py`.
        max_history_tokens: longest prompt in tokens, items included; `None` means the backbone's context.
        catalogue_fingerprint: SHA-256 of the item ids in their order, so that a checkpoint knows its catalogue.

    Example:
        >>> from transformers import GPT2Config
        >>> config = CLLM4RecConfig(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=10), num_users=2, num_items=3)
        >>> config.id_offset, config.total_tokens
        (10, 15)
    """

    model_type = "cllm4rec"
    # `Trainer.predict` returns the scores of the items alone.
    keys_to_ignore_at_inference = ["cache", "past_key_values", "last_hidden_state"]

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        num_users: int = 0,
        num_items: int = 0,
        id_offset: int | None = None,
        initializer_range: float = 0.02,
        recommendation_prompts: dict[str, PromptPieces] | None = None,
        max_history_tokens: int | None = None,
        catalogue_fingerprint: str | None = None,
        **kwargs: Any,
    ) -> None:
        text_config = self.read_text_config(text_config)
        vocabulary = text_config.get_text_config().vocab_size
        if id_offset is None:
            id_offset = vocabulary
        check_count("id_offset", id_offset)
        if id_offset < vocabulary:
            raise InputError(
                f"id_offset is {id_offset}, below the backbone's vocabulary of {vocabulary} tokens: "
                f"ID tokens would collide with words; give at least {vocabulary}"
            )
        for name, count in (("num_users", num_users), ("num_items", num_items)):
            check_count(name, count)
        if id_offset + num_users + num_items > MOST:
            raise InputError(
                f"id_offset, num_users and num_items are {id_offset + num_users + num_items} tokens; allowed are {MOST}"
            )
        if isinstance(initializer_range, bool) or not isinstance(initializer_range, (int, float)) or not initializer_range >= 0:
            raise InputError(f"initializer_range is {initializer_range!r}; it must be a number of 0 or more")
        if max_history_tokens is not None:
            check_count("max_history_tokens", max_history_tokens)
        if recommendation_prompts is not None:
            _check_prompts(recommendation_prompts, id_offset, text_config)
        check_fingerprint("catalogue_fingerprint", catalogue_fingerprint)
        self.num_users = num_users
        self.num_items = num_items
        self.id_offset = id_offset
        self.initializer_range = initializer_range
        self.recommendation_prompts = recommendation_prompts
        self.max_history_tokens = max_history_tokens
        self.catalogue_fingerprint = catalogue_fingerprint
        kwargs["auto_map"] = dict(AUTO_MAP)
        super().__init__(text_config, **kwargs)

    @property
    def total_tokens(self) -> int:
        """N + I + J: one more than the largest token id."""
        return self.id_offset + self.num_users + self.num_items

    @property
    def prompt_limit(self) -> int:
        """Longest prompt with a history, in tokens: `max_history_tokens`, or the backbone's context."""
        if self.max_history_tokens is None:
            return self.context_length
        if not 0 < self.max_history_tokens <= self.context_length:
            raise InputError(
                f"max_history_tokens is {self.max_history_tokens}; the backbone's context allows 1 to {self.context_length}"
            )
        return self.max_history_tokens


def _check_prompts(prompts: Any, tokens: int, text_config: PreTrainedConfig) -> None:
    """Check the two prompts for recommending."""
    if not isinstance(prompts, dict) or set(prompts) != {"known", "anonymous"}:
        raise InputError(f"recommendation_prompts is {str(prompts)[:100]}; it must have the prompts 'known' and 'anonymous'")
    for name, words in (("known", ("user", "items")), ("anonymous", ("items",))):
        check_prompt(f"recommendation_prompts[{name!r}]", prompts[name], tokens, words, text_config)


__all__ = ["AUTO_MAP", "CLLM4RecConfig", "PromptPieces"]
