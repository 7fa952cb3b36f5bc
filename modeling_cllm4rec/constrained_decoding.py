"""Search among real items only: a tree of all indices on tensors, and beams that never leave it.

This file stands alone: it is copied into every saved folder.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import LogitsProcessor, PreTrainedModel

from .item_index import ItemIndex
from .language_model import word_head

LOGITS_AT_ONCE = 1 << 26
"""Most logits over the vocabulary in memory at one time: 256 MB in float32."""


class ItemTrie:
    """All indices as a tree, in compressed sparse rows: nodes of a level are sorted, children stand together.

    Level 0 has one node, the root; level h has a node for each prefix of h codes; at level H each node is a leaf, one item.

    Args:
        codes: (J, H) integers in [0, codebook_size), rows all different.

    Attributes:
        leaf_items: (J,) item indices in the order of the leaves.
        child_starts: for each level below H, (nodes + 1,) where the children of its nodes begin in the next level.
        codes_of: for each level but the root's, (nodes,) the last code of a node's prefix.
        leaf_starts: for each level, (nodes + 1,) where the leaves below its nodes begin.

    Raises:
        ValueError: codes that collide or lie outside the codebook.

    Example:
        >>> trie = ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
        >>> trie.leaf_items.tolist(), trie.child_starts[0].tolist(), trie.child_starts[1].tolist()
        ([1, 0, 2], [0, 2], [0, 1, 3])
    """

    def __init__(self, codes: np.ndarray | torch.Tensor, codebook_size: int) -> None:
        index = ItemIndex(np.asarray(codes), codebook_size)
        self.codebook_size, self.num_levels, self.num_items = codebook_size, index.num_levels, index.num_items
        order = np.lexsort(index.codes.T[::-1])
        rows = index.codes[order]
        differs = np.concatenate([np.ones((1, self.num_levels), bool), rows[1:] != rows[:-1]])
        opens = np.logical_or.accumulate(differs, axis=1)  # (J, H): a leaf opens a new node of level h + 1
        self.leaf_items = torch.from_numpy(order)
        self.child_starts: list[torch.Tensor] = []
        self.codes_of: list[torch.Tensor] = []
        self.leaf_starts = [torch.tensor([0, self.num_items])]
        for level in range(self.num_levels):
            first = np.flatnonzero(opens[:, level])
            starts = np.searchsorted(first, self.leaf_starts[-1].numpy())
            self.child_starts.append(torch.from_numpy(starts))
            self.codes_of.append(torch.from_numpy(rows[first, level].astype(np.int64)))
            self.leaf_starts.append(torch.from_numpy(np.append(first, self.num_items)))
        self.leaf_of_item = torch.empty(self.num_items, dtype=torch.int64)
        self.leaf_of_item[self.leaf_items] = torch.arange(self.num_items)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.leaf_items.device

    def to(self, device: torch.device | str) -> ItemTrie:
        """The same tree on a device."""
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(ItemTrie)
        for name, value in self.__dict__.items():
            if isinstance(value, torch.Tensor):
                value = value.to(device)
            elif isinstance(value, list):
                value = [one.to(device) for one in value]
            setattr(moved, name, value)
        return moved

    def children(self, level: int, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The children of some nodes, one after the other.

        Args:
            level: of the nodes; nodes: (n,) node numbers, -1 for none.

        Returns:
            (children,) the place in `nodes` of each child's parent, and (children,) node numbers of level + 1.

        Example:
            >>> trie = ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
            >>> [one.tolist() for one in trie.children(1, torch.tensor([1, -1, 0]))]
            [[0, 0, 2], [1, 2, 0]]
        """
        starts = self.child_starts[level]
        real = nodes.clamp(min=0)
        counts = torch.where(nodes < 0, 0, starts[real + 1] - starts[real])
        owners = torch.repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        return owners, starts[real][owners] + torch.arange(len(owners), device=owners.device) - before[owners]

    def walk(self, codes: torch.Tensor) -> torch.Tensor:
        """(n,) nodes that prefixes lead to, -1 where there is none.

        Args:
            codes: (n, h) with h < H; a code outside the codebook leads nowhere.
        """
        nodes = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        for level in range(codes.shape[1]):
            owners, found = self.children(level, nodes)
            fits = self.codes_of[level][found] == codes[owners, level]
            nodes = torch.full_like(nodes, -1).index_copy(0, owners[fits], found[fits])
        return nodes

    def permitted(
        self, rows: int, seen: tuple[np.ndarray, np.ndarray] | None = None, candidates: np.ndarray | None = None
    ) -> Permitted:
        """What each of some rows may still be given.

        Args:
            rows: B; seen: (indptr (B + 1,), item indices) that may not be given to each row.
            candidates: item indices to choose from; None means all.

        Raises:
            ValueError: a row that nothing is left for (named).
        """
        return Permitted(self, rows, seen, candidates)


class Permitted:
    """How many permitted leaves lie below a node, for each row: prefix sums over the candidates minus what was seen."""

    def __init__(
        self, trie: ItemTrie, rows: int, seen: tuple[np.ndarray, np.ndarray] | None, candidates: np.ndarray | None
    ) -> None:
        self.trie, device = trie, trie.device
        allowed = torch.ones(trie.num_items, dtype=torch.int64, device=device)
        if candidates is not None:
            allowed = torch.zeros_like(allowed)
            allowed[trie.leaf_of_item[torch.as_tensor(np.asarray(candidates, dtype=np.int64), device=device)]] = 1
        self.before = torch.cat([allowed.new_zeros(1), allowed.cumsum(0)])  # (J + 1,) permitted leaves before a leaf
        self.seen = torch.zeros(0, dtype=torch.int64, device=device)
        if seen is not None:
            indptr, items = (torch.as_tensor(np.asarray(one, dtype=np.int64), device=device) for one in seen)
            row = torch.repeat_interleave(indptr[1:] - indptr[:-1])
            leaves = trie.leaf_of_item[items]
            counted = allowed[leaves].bool()
            # One sorted list of (row, leaf), each once: what a row has seen between two leaves is a difference of places.
            self.seen = (row * (trie.num_items + 1) + leaves)[counted].unique()
        left = self.count(torch.arange(rows, device=device), 0, torch.zeros(rows, dtype=torch.int64, device=device))
        if bool((left < 1).any()):
            empty = int((left < 1).nonzero()[0])
            choices = "items" if candidates is None else "candidates"
            raise ValueError(
                f"nothing is left to recommend to row {empty}: all {choices} were seen; give other ones, or exclude_seen=False"
            )

    def count(self, rows: torch.Tensor, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """(n,) permitted leaves below (n,) nodes of a level, each for a row."""
        first, last = self.trie.leaf_starts[level][nodes], self.trie.leaf_starts[level][nodes + 1]
        base = rows * (self.trie.num_items + 1)
        seen = torch.searchsorted(self.seen, base + last) - torch.searchsorted(self.seen, base + first)
        return self.before[last] - self.before[first] - seen


class TrieLogitsProcessor(LogitsProcessor):
    """For `generate`: after the prompt, only tokens that go on towards a real item are left.

    It keeps nothing between calls: where a row stands follows from its tokens.

    Args:
        trie: all indices; first_index_token: token id of code 0 of the first level.
        prompt_length: tokens of the (padded) prompts, equal for all rows of a batch.
        end_token_id: what alone may follow a whole index; None lets everything follow (for `max_new_tokens` = H).

    Example:
        >>> rules = TrieLogitsProcessor(model.trie, model.config.first_index_token, ids.shape[1])  # doctest: +SKIP
        >>> model.backbone.generate(ids, num_beams=5, max_new_tokens=4, logits_processor=[rules])  # doctest: +SKIP
    """

    def __init__(self, trie: ItemTrie, first_index_token: int, prompt_length: int, end_token_id: int | None = None) -> None:
        if prompt_length < 1:
            raise ValueError(f"prompt_length is {prompt_length}; a prompt has at least one token")
        self.trie, self.first_index_token, self.prompt_length = trie, first_index_token, prompt_length
        self.end_token_id = end_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """-inf on every token that is no continuation: (B, T) tokens so far, (B, V) scores."""
        written = input_ids[:, self.prompt_length :]
        level = written.shape[1]
        masked: Any = torch.full_like(scores, float("-inf"))
        if level >= self.trie.num_levels:
            if self.end_token_id is None:
                return scores
            masked[:, self.end_token_id] = scores[:, self.end_token_id]
            return masked
        trie = self.trie.to(scores.device)
        offsets = self.first_index_token + torch.arange(level, device=written.device) * trie.codebook_size
        owners, found = trie.children(level, trie.walk(written - offsets))
        tokens = self.first_index_token + level * trie.codebook_size + trie.codes_of[level][found]
        masked[owners, tokens] = scores[owners, tokens]
        return masked


class _Encoded(NamedTuple):
    """Prompts that were read once: their cache, real tokens, lengths, and the state that predicts what follows."""

    cache: Any
    mask: torch.Tensor  # (B, T) bool
    lengths: torch.Tensor  # (B,)
    state: torch.Tensor  # (B, K)


class _Reader:
    """Reads prompts, then tokens after them, each of which sees the prompt and its own ancestors only."""

    def __init__(self, language_model: PreTrainedModel, trie: ItemTrie, first_index_token: int) -> None:
        self.body: Any = language_model.base_model
        self.head: nn.Module = word_head(language_model)
        self.trie, self.first_index_token = trie, first_index_token
        self.context = int(language_model.config.get_text_config().max_position_embeddings)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> _Encoded:
        if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()) or not bool(attention_mask[:, 0].all()):
            raise ValueError("prompts must be padded on the right: a row's real tokens come first (prompt_assembly.pad_right)")
        lengths = attention_mask.sum(1)
        if int(lengths.max()) + self.trie.num_levels > self.context:
            raise ValueError(
                f"the longest prompt has {int(lengths.max())} tokens and an index {self.trie.num_levels}, but the context holds "
                f"{self.context}; shorten the history (max_history)"
            )
        out = self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=True, return_dict=True)
        state = out.last_hidden_state[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        return _Encoded(out.past_key_values, attention_mask.bool(), lengths, state)

    def read(self, encoded: _Encoded, level: int, codes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """(B, n, K) states of (B, n) codes of a level, appended to the cache.

        Args:
            visible: (B, n, appended + n) which of the tokens behind the prompt each one sees, itself included.
        """
        rows, width = codes.shape
        tokens = self.first_index_token + level * self.trie.codebook_size + codes
        mask = torch.cat([encoded.mask[:, None].expand(rows, width, -1), visible], dim=2)[:, None]
        out = self.body(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(encoded.lengths + level)[:, None].expand(rows, width),
            past_key_values=encoded.cache,
            use_cache=True,
            return_dict=True,
        )
        return out.last_hidden_state

    def log_probabilities(self, states: torch.Tensor, level: int) -> torch.Tensor:
        """(n, codebook_size) ln p of a level's codes, out of the whole vocabulary, for (n, K) states; float32."""
        first = self.first_index_token + level * self.trie.codebook_size
        parts = []
        size = max(1, LOGITS_AT_ONCE // (first + self.trie.codebook_size))
        for part in states.split(size):
            logits = self.head(part).float()
            parts.append(logits[:, first : first + self.trie.codebook_size] - logits.logsumexp(-1, keepdim=True))
        return torch.cat(parts)


@torch.no_grad()
def beam_search(
    language_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: ItemTrie,
    first_index_token: int,
    num_beams: int,
    seen: tuple[np.ndarray, np.ndarray] | None = None,
    candidates: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The items of the best indices after each prompt, by beam search in the tree of real items.

    The prompt is read once. The beams of a row are tokens behind it, which see the prompt and their own ancestors through
    the attention mask: no cache is copied or reordered. A beam goes on only where a permitted item lies below.

    Args:
        language_model: a causal language model whose vocabulary holds the index tokens, in evaluation mode.
        input_ids: (B, T) prompts, padded on the right; attention_mask: (B, T).
        num_beams: beams of each row, never changed; exact from the number of permitted items on.
        seen: (indptr (B + 1,), item indices) that a row is not given; candidates: item indices to choose from.

    Returns:
        (B, num_beams) item indices, best first, -1 where a row has fewer, and (B, num_beams) float32 ln p of their
        indices, -inf there. Of equal scores the first in the order of the tree comes first.

    Raises:
        ValueError: no beams, prompts padded on the left or too long, a row that nothing is left for.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; it must be 1 or more")
    rows, device = len(input_ids), input_ids.device
    permitted = trie.permitted(rows, seen, candidates)
    reader = _Reader(language_model, trie, first_index_token)
    encoded = reader.encode(input_ids, attention_mask)
    states = encoded.state[:, None]  # (B, beams, K)
    nodes = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    scores = torch.zeros(rows, 1, device=device)
    visible = torch.zeros(rows, 1, 0, dtype=torch.bool, device=device)  # (B, beams, tokens behind the prompt)
    for level in range(trie.num_levels):
        beams = nodes.shape[1]
        steps = reader.log_probabilities(states.flatten(0, 1), level).view(rows, beams, -1)
        owners, children = trie.children(level, nodes.flatten())
        row, beam = owners // beams, owners % beams
        keep = permitted.count(row, level + 1, children) > 0
        row, beam, children = row[keep], beam[keep], children[keep]
        values = scores[row, beam] + steps[row, beam, trie.codes_of[level][children]]
        # Children stand in the order of rows, but within a row in that of the beams: put each into a place of its own.
        counts = torch.bincount(row, minlength=rows)
        place = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
        width = int(counts.max())
        grid = torch.full((rows, width), float("-inf"), device=device)
        grid[row, place] = values
        child_grid = torch.full((rows, width), -1, dtype=torch.int64, device=device)
        child_grid[row, place] = children
        beam_grid = torch.zeros((rows, width), dtype=torch.int64, device=device)
        beam_grid[row, place] = beam
        best = _best_first(grid, child_grid, min(num_beams, width))
        scores, nodes, parents = (one.gather(1, best) for one in (grid, child_grid, beam_grid))
        if level + 1 == trie.num_levels:
            break
        kept = nodes.shape[1]
        own = torch.eye(kept, dtype=torch.bool, device=device).expand(rows, kept, kept)
        visible = torch.cat([visible.gather(1, parents[..., None].expand(-1, -1, visible.shape[2])), own], dim=2)
        states = reader.read(encoded, level, trie.codes_of[level][nodes.clamp(min=0)], visible)
    items = torch.where(nodes < 0, -1, trie.leaf_items[nodes.clamp(min=0)])
    missing = num_beams - items.shape[1]
    if missing:
        items = torch.cat([items, items.new_full((rows, missing), -1)], dim=1)
        scores = torch.cat([scores, scores.new_full((rows, missing), float("-inf"))], dim=1)
    return items, scores


def _best_first(scores: torch.Tensor, nodes: torch.Tensor, count: int) -> torch.Tensor:
    """(B, count) places of the best scores, best first; of equal ones the lower node first, as it stands in the tree."""
    by_node = nodes.argsort(dim=1, stable=True)
    by_score = scores.gather(1, by_node).argsort(dim=1, descending=True, stable=True)
    return by_node.gather(1, by_score)[:, :count]


@torch.no_grad()
def score_all(
    language_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: ItemTrie,
    first_index_token: int,
    nodes_at_a_time: int = 512,
) -> torch.Tensor:
    """ln p of the index of every item after each prompt, exact.

    The tree is read level by level: each prefix once for a row, `nodes_at_a_time` of them in one pass.

    Args:
        language_model, input_ids, attention_mask, trie, first_index_token: as in `beam_search`.

    Returns:
        (B, J) float32, column j = item_index j.
    """
    if nodes_at_a_time < 1:
        raise ValueError(f"nodes_at_a_time is {nodes_at_a_time}; it must be 1 or more")
    reader = _Reader(language_model, trie, first_index_token)
    encoded = reader.encode(input_ids, attention_mask)
    rows, device = len(input_ids), input_ids.device
    scores = torch.full((rows, trie.num_items), float("-inf"), device=device)
    everything = torch.zeros(1, dtype=torch.int64, device=device)
    root = torch.zeros(rows, 1, device=device)

    def descend(level: int, nodes: torch.Tensor, before: torch.Tensor, states: torch.Tensor, visible: torch.Tensor) -> None:
        """Score what lies below (n,) nodes, of scores (B, n) and states (B, n, K), which see (n, tokens) behind the prompt."""
        steps = reader.log_probabilities(states.flatten(0, 1), level).view(rows, len(nodes), -1)
        owners, children = trie.children(level, nodes)
        values = before[:, owners] + steps[:, owners, trie.codes_of[level][children]]
        if level + 1 == trie.num_levels:
            scores[:, trie.leaf_items[children]] = values
            return
        for part in torch.arange(len(children), device=device).split(nodes_at_a_time):
            own = torch.eye(len(part), dtype=torch.bool, device=device)
            sees = torch.cat([visible[owners[part]], own], dim=1)
            codes = trie.codes_of[level][children[part]].expand(rows, -1)
            below = reader.read(encoded, level, codes, sees.expand(rows, -1, -1))
            descend(level + 1, children[part], values[:, part], below, sees)
            encoded.cache.crop(-len(part))  # forget this part, go on with the next

    descend(0, everything, root, encoded.state[:, None], torch.zeros(1, 0, dtype=torch.bool, device=device))
    return scores


__all__ = ["ItemTrie", "Permitted", "TrieLogitsProcessor", "beam_search", "score_all"]
