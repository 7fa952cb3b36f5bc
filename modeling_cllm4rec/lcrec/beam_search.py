"""Constrained beam search and exact scoring over the semantic IDs of a catalogue, with one cache for all beams of a prompt.

The tokens that continue a prompt form a tree. They are fed to the model as one row, whatever branch they are on, with a mask
that lets each see the prompt, the tokens above it and itself ("tree attention"). So the cache of the prompt is not copied
for each beam, and no cache is reordered when beams change places.

This file is copied into every saved folder.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from ..core.errors import InputError
from ..core.language_model import real_positions, word_head
from ..core.top_items import top_items
from .constrained_decoding import CandidateItems, ItemTrie, SeenItems, check_vocabulary

LOGITS_AT_A_TIME = 2**24
"""Logits that are in memory at once: 64 MB in float32."""
TREE_ATTENTION = ("eager", "sdpa")
"""Attention implementations that take a mask of its own for each token, which tree attention needs."""


class FoundItems(NamedTuple):
    """Items found by a search with n beams, best first; fewer than n where a row has fewer candidates.

    Attributes:
        items: (B, n) int64 item indices, -1 for none.
        scores: (B, n) float32, -inf for none.
        codes: (B, n, H) int64 codes of the beams' tokens, -1 for none.
    """

    items: torch.Tensor
    scores: torch.Tensor
    codes: torch.Tensor


@torch.no_grad()
def beam_search(
    language_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: ItemTrie,
    first_index_token: int,
    num_beams: int,
    seen: SeenItems | None = None,
    candidates: Any = None,
) -> FoundItems:
    """Return the likeliest candidates after each prompt by constrained beam search, without duplicates, best first.

    The score of an item is ln p of its semantic ID: the sum over levels of the log softmax over the whole vocabulary, as
    `generate` and `score_all` compute it, so the scores are exact. With as many beams as candidates none is missed. Of equal
    scores the lower item_index comes first. A branch without candidates never takes a beam.

    Args:
        language_model: any causal language model, in evaluation mode, with attention "eager" or "sdpa".
        input_ids: (B, T) prompts, padded on the right or on the left; attention_mask: (B, T) ones for real tokens.
        trie: the semantic IDs of all items, on the model's device.
        first_index_token: token id of code 0 of level 0; code c of level h has `first_index_token + h * K + c`.
        num_beams: n; neither memory nor the number of items changes it.
        seen: seen items of each row, which are excluded; candidates: item indices that all rows choose from.

    Raises:
        InputError: num_beams below 1, no candidates at all, a prompt that is empty or leaves no room for a semantic ID, a model
            in training mode or with another kind of attention.
    """
    if num_beams < 1:
        raise InputError(f"num_beams is {num_beams}; it must be 1 or more")
    rows = len(input_ids)
    pruned = trie.candidates(rows, seen, candidates)
    tree = _PromptTree(language_model, input_ids, attention_mask, trie, first_index_token)
    if not pruned.rows_with_items().any():
        nothing = torch.full((rows, num_beams, trie.num_levels), -1, device=trie.device)
        return FoundItems(nothing[..., 0], torch.full(nothing.shape[:2], float("-inf"), device=trie.device), nothing)
    nodes = torch.zeros(rows, 1, dtype=torch.int64, device=trie.device)
    scores = torch.zeros(rows, 1, device=trie.device)
    log_probs = tree.prompt_log_probs()[:, None]
    visible = torch.zeros(rows, 1, 0, dtype=torch.bool, device=trie.device)
    codes = torch.zeros(rows, 1, 0, dtype=torch.int64, device=trie.device)
    for level in range(1, trie.num_levels + 1):
        nodes, scores, parents = _expand(pruned, level, nodes, scores, log_probs, num_beams)
        written = trie.codes(level, nodes.clamp(min=0))
        codes = torch.cat([codes.take_along_dim(parents[..., None], dim=1), written[..., None]], dim=2)
        if level < trie.num_levels:
            # The cache keeps the tokens of all earlier beams, also of those that were dropped. A beam sees the columns that
            # its parent saw, which are its own prefix, and itself; columns of other branches stay hidden.
            own = torch.eye(nodes.shape[1], dtype=torch.bool, device=trie.device).expand(rows, -1, -1)
            above = visible.take_along_dim(parents[..., None], dim=1)
            visible = torch.cat([above, own], dim=2)
            states = tree.read(tree.tokens(level, nodes.clamp(min=0)), torch.full_like(nodes[0], level), visible)
            log_probs = tree.code_log_probs(states, level + 1)
    missing = num_beams - nodes.shape[1]
    items = torch.where(nodes >= 0, trie.leaf_items[nodes.clamp(min=0)], -1)
    codes = codes.masked_fill(nodes[..., None] < 0, -1)
    return FoundItems(
        torch.nn.functional.pad(items, (0, missing), value=-1),
        torch.nn.functional.pad(scores, (0, missing), value=float("-inf")),
        torch.nn.functional.pad(codes, (0, 0, 0, missing), value=-1),
    )


@torch.no_grad()
def score_all(
    language_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: ItemTrie,
    first_index_token: int,
    nodes_at_a_time: int = 256,
) -> torch.Tensor:
    """Return the exact ln p of the semantic ID of every item after each prompt.

    The trie is read in subtrees, each in one pass, so that a common prefix of items is read once.

    Args:
        nodes_at_a_time: nodes of the last level but one in a subtree; with those above them, at most H - 1 times as many
            tokens are fed for each prompt.

    The other arguments and the errors are those of `beam_search`.

    Returns:
        (B, J) float32.
    """
    if nodes_at_a_time < 1:
        raise InputError(f"nodes_at_a_time is {nodes_at_a_time}; it must be 1 or more")
    tree = _PromptTree(language_model, input_ids, attention_mask, trie, first_index_token)
    prompt_log_probs = tree.prompt_log_probs()  # (B, K)
    if trie.num_levels == 1:
        return prompt_log_probs[:, trie.codes(1, trie.item_leaves)]
    scores = torch.empty(len(input_ids), trie.num_items, device=trie.device)
    last = trie.num_levels - 1
    for start in range(0, trie.num_nodes(last), nodes_at_a_time):
        subtree = _subtree(trie, start, min(start + nodes_at_a_time, trie.num_nodes(last)))
        scores[:, trie.leaf_items[subtree[-1]]] = _score_subtree(tree, subtree, prompt_log_probs)
    return scores


@torch.no_grad()
def check_tree_attention(language_model: PreTrainedModel) -> None:
    """Check that the scores of a language model by `score_all` are those of its plain forward passes.

    They differ where its positions or attention ignore the mask and positions that are given, or where its logits are not
    its output layer applied to its decoder's states.

    Raises:
        InputError: a difference above 1e-3 on a probe of two prompts and eight semantic IDs; or see `beam_search`.
    """
    device = language_model.device
    codes = torch.cartesian_prod(*[torch.arange(2)] * 3)
    prompts = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 0, 0]], device=device)
    lengths = (5, 3)
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long().to(device)
    ours = score_all(language_model, prompts, mask, ItemTrie(codes, 2).to(device), first_index_token=0, nodes_at_a_time=3)
    tokens = (codes + 2 * torch.arange(3)).to(device)
    for row, length in enumerate(lengths):
        ids = torch.cat([prompts[row, :length].expand(len(tokens), -1), tokens], dim=1)
        log_probs = language_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().log_softmax(-1)
        plain = log_probs[:, length - 1 : -1].gather(2, tokens[..., None]).sum(dim=(1, 2))
        difference = float((ours[row] - plain).abs().max())
        if not difference <= 1e-3 * max(1.0, float(plain.abs().max())):
            raise InputError(
                f"{type(language_model).__name__} scores a semantic ID {difference:.2g} nats apart when beams share one cache: "
                "its attention, positions or logits are computed in a way that the search does not reproduce; choose another "
                "backbone"
            )


class _PromptTree:
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

    def forget(self) -> None:
        """Drop all tokens after the prompts from the cache."""
        self.cache.crop(-self.fed)
        self.fed = 0

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
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
        )
        # With a device_map, the last layers may be on another device than the prompts and the tree.
        states: torch.Tensor = outputs.last_hidden_state.to(tokens.device)
        return states


def _expand(
    candidates: CandidateItems,
    level: int,
    nodes: torch.Tensor,
    scores: torch.Tensor,
    log_probs: torch.Tensor,
    num_beams: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best nodes with candidates of a level in [1, H] below the beams of the level before.

    Args:
        nodes: (B, m), -1 where there is none, in ascending order, so that children are in the order of the leaves.
        scores: (B, m); log_probs: (B, m, K) of the codes of `level` after them.

    Returns:
        (B, n) nodes, scores and parents (positions among the m beams), where n is `num_beams`, or less if no row has that many
        children: in ascending order of nodes with -1 last; on level H best first, of equal scores the lower item.
    """
    trie = candidates.trie
    alive = (nodes >= 0).flatten().nonzero().flatten()
    place, child = trie.children(level - 1, nodes.flatten()[alive])
    parent = alive[place]
    row = parent // nodes.shape[1]
    kept = candidates.count(level, row, child) > 0
    child, parent, row = child[kept], parent[kept], row[kept]
    if level == trie.num_levels:
        # `top_items` prefers the earlier of equal scores, so children in the order of item_index break ties by item.
        by_item = (row * trie.num_items + trie.leaf_items[child]).argsort()
        child, parent, row = child[by_item], parent[by_item], row[by_item]
    total = scores.flatten()[parent] + log_probs.flatten(0, 1)[parent, trie.codes(level, child)]

    # Rows have different numbers of children: they are padded with -inf to one table of scores.
    counts = row.bincount(minlength=len(nodes))
    first = counts.cumsum(0) - counts
    table = torch.full((len(nodes), int(counts.max())), float("-inf"), device=total.device)
    table[row, torch.arange(len(row), device=row.device) - first[row]] = total
    best, found = top_items(table, min(num_beams, table.shape[1]))
    if level < trie.num_levels:
        # Back into the order of nodes, with the missing ones (-1) last: `children` then gives leaves in ascending order.
        best = best.masked_fill(best < 0, table.shape[1]).sort(dim=1).values
        best = best.masked_fill(best == table.shape[1], -1)
        found = table.gather(1, best.clamp(min=0)).masked_fill(best < 0, float("-inf"))
    chosen = (first[:, None] + best).clamp(min=0, max=len(child) - 1)
    missing = best < 0
    return child[chosen].masked_fill(missing, -1), found, (parent[chosen] % nodes.shape[1]).masked_fill(missing, 0)


def _subtree(trie: ItemTrie, start: int, stop: int) -> list[torch.Tensor]:
    """Return the nodes of levels 1 to H around nodes start to stop of level H - 1: all above them and the leaves below."""
    last = trie.num_levels - 1
    leaves = trie.first_child[last][torch.tensor([start, stop], device=trie.device)].tolist()
    ends = {last: (start, stop), last + 1: tuple(leaves)}
    for level in range(last, 1, -1):
        below = torch.tensor([ends[level][0], ends[level][1] - 1], device=trie.device)
        low, high = trie.parents(level, below).tolist()
        ends[level - 1] = (low, high + 1)
    return [torch.arange(*ends[level], device=trie.device) for level in range(1, last + 2)]


def _score_subtree(tree: _PromptTree, subtree: list[torch.Tensor], prompt_log_probs: torch.Tensor) -> torch.Tensor:
    """Return ln p of the semantic IDs of a subtree's leaves, from one pass: (B, leaves)."""
    trie, rows = tree.trie, len(prompt_log_probs)
    fed = subtree[:-1]  # leaves have no successor, so their tokens need not be read
    sizes = [len(nodes) for nodes in fed]
    above = [trie.parents(level, nodes) - subtree[level - 2][0] for level, nodes in enumerate(subtree[1:], start=2)]
    tokens = torch.cat([tree.tokens(level, nodes) for level, nodes in enumerate(fed, start=1)])
    levels = torch.arange(1, len(subtree), device=trie.device).repeat_interleave(torch.tensor(sizes, device=trie.device))
    # A node sees itself and whatever its parent sees; parents come first, so one pass over the levels fills the mask.
    visible = torch.eye(len(tokens), dtype=torch.bool, device=trie.device)
    for number in range(1, len(fed)):
        first = sum(sizes[:number])
        visible[first : first + sizes[number]] |= visible[first - sizes[number - 1] + above[number - 1]]
    states = tree.read(tokens.expand(rows, -1), levels, visible[None])
    tree.forget()
    scores = prompt_log_probs[:, trie.codes(1, subtree[0])]
    for level, (of_level, parents) in enumerate(zip(states.split(sizes, dim=1), above, strict=True), start=2):
        gained = tree.code_log_probs(of_level, level)[:, parents, trie.codes(level, subtree[level - 1])]
        scores = scores[:, parents] + gained
    return scores


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


__all__ = ["FoundItems", "beam_search", "check_tree_attention", "score_all"]
