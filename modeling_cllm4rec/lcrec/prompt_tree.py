"""The states of a prompt and of the tree of tokens that continue it, with one cache ("tree attention").

The tokens that continue a prompt form a tree. They are fed to the model as one row, whatever branch they are on, with a mask
that lets each see the prompt, the tokens above it and itself. So the cache of the prompt is not copied for each branch, and no
cache is reordered when beams change places.

This file is copied into every saved folder.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from ..core.errors import InputError
from ..core.language_model import CACHE, real_positions, word_head
from .constrained_decoding import ItemTrie, check_vocabulary

LOGITS_AT_A_TIME = 2**24
"""Logits that are in memory at once: 64 MB in float32."""
TREE_ATTENTION = ("eager", "sdpa")
"""Attention implementations that take a mask of its own for each token, which tree attention needs."""


class PromptTree:
    """The cache of a batch of prompts, and of the tree of tokens that continue them.

    Attributes:
        prompt_state: (B, width) state of the last real token of each prompt.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        trie: ItemTrie,
        first_index_token: int,
    ) -> None:
        if language_model.training:
            raise InputError("the language model is in training mode, where dropout makes scores random; call .eval() first")
        self.trie, self.first_index_token = trie, first_index_token
        self.decoder, self.head = language_model.base_model, word_head(language_model)
        config = language_model.config.get_text_config()
        self.rows_at_a_time = max(1, LOGITS_AT_A_TIME // config.vocab_size)
        self.prompt_mask = attention_mask.bool()  # (B, T)
        self.lengths = attention_mask.sum(1)
        _check_prompts(config, input_ids, self.prompt_mask, self.lengths, trie.num_levels)
        self.cache = DynamicCache()
        self.fed = 0  # tokens in the cache after the prompts
        hidden = self._states(input_ids, attention_mask, real_positions(attention_mask))
        last = (torch.arange(input_ids.shape[1], device=input_ids.device) * attention_mask).argmax(1)
        self.prompt_state = hidden[torch.arange(len(hidden), device=hidden.device), last]

    def tokens(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """Return the token ids of nodes of a level in [1, H], of any shape."""
        return self.first_index_token + (level - 1) * self.trie.codebook_size + self.trie.codes(level, nodes)

    def read(self, tokens: torch.Tensor, levels: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Feed (B, n) tokens of (n,) levels; they stay in the cache.

        Args:
            visible: (B or 1, n, fed before + n) whether each of them sees a token after the prompt.

        Returns:
            (B, n, width) states.
        """
        rows, number = tokens.shape
        prompt = self.prompt_mask[:, None].expand(-1, number, -1)
        sees = torch.cat([prompt, visible.expand(rows, -1, -1)], dim=2)[:, None]  # (B, 1, n, T + fed)
        # A float mask, because "eager" adds the mask to the attention weights and would add booleans as 0 and 1.
        dtype = self.prompt_state.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)
        self.fed += number
        # Positions follow levels, not places in the row: in the text of each beam, a token of level h is h - 1 after the prompt.
        return self._states(tokens, mask, self.lengths[:, None] + levels - 1)

    def forget(self, kept: int = 0) -> None:
        """Drop the tokens after the prompts from the cache, but for the first `kept` of them."""
        if self.fed > kept:  # crop(-0) would drop the prompts
            self.cache.crop(kept - self.fed)
        self.fed = kept

    def prompt_log_probs(self) -> torch.Tensor:
        """Return ln p of the codes of level 1 after the prompts: (B, K)."""
        return self.code_log_probs(self.prompt_state, 1)

    def code_log_probs(self, states: torch.Tensor, level: int) -> torch.Tensor:
        """Return ln p, over the whole vocabulary, of the codes of a level in [1, H] after (..., width) states.

        Returns:
            (..., K) float32.
        """
        first = self.first_index_token + (level - 1) * self.trie.codebook_size
        log_probs = []
        # The logits of all beams over a vocabulary of 100,000 words would take more memory than the model: part by part.
        for part in states.flatten(0, -2).split(self.rows_at_a_time):
            logits = self.head(part).float().to(part.device)
            check_vocabulary(logits.shape[-1], self.trie, self.first_index_token)
            codes = logits[:, first : first + self.trie.codebook_size]
            log_probs.append(codes - logits.logsumexp(dim=1, keepdim=True))
        return torch.cat(log_probs).unflatten(0, states.shape[:-1])

    def _states(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        outputs = self.decoder(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            return_dict=True,
            **{CACHE: self.cache},
        )
        # With a device_map, the last layers may be on another device than the prompts and the tree.
        states: torch.Tensor = outputs.last_hidden_state.to(tokens.device)
        return states


def _check_prompts(
    config: PreTrainedConfig, input_ids: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor, num_levels: int
) -> None:
    """Check that prompts and attention give the scores of plain forward passes."""
    if input_ids.ndim != 2 or mask.shape != input_ids.shape or not len(input_ids):
        raise InputError(
            f"input_ids have shape {tuple(input_ids.shape)} and attention_mask {tuple(mask.shape)}; "
            "both must be (prompts, tokens), with one prompt or more"
        )
    if not bool((lengths > 0).all()):
        raise InputError(f"row {int(lengths.argmin())}: the prompt is empty (its attention_mask is 0 throughout)")
    longest, room = int(lengths.max()), config.max_position_embeddings
    if longest + num_levels > room:
        raise InputError(
            f"row {int(lengths.argmax())}: the prompt takes {longest} tokens and a semantic ID {num_levels}, but the context "
            f"holds {room}; shorten the prompt"
        )
    if config._attn_implementation not in TREE_ATTENTION:
        raise InputError(
            f"attn_implementation is {config._attn_implementation!r}, which takes no mask of its own for each token; "
            f"load the model with one of {', '.join(TREE_ATTENTION)}"
        )
    _check_windows(config, longest + num_levels)


def _check_windows(config: PreTrainedConfig, length: int) -> None:
    """Check that all layers see all tokens; not every configuration has these two fields."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise InputError(
            f"the backbone has layers of {', '.join(sorted(kinds))}; beams can share a cache of attention layers only"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and length > window:
        raise InputError(
            f"prompt and semantic ID take {length} tokens, and the backbone's sliding window holds {window}; shorten the prompt"
        )


__all__ = ["PromptTree"]
