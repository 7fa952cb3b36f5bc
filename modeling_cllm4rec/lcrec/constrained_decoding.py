"""Constrained decoding: the trie of all semantic IDs on tensors, and the logits processor for `generate`.

This file is copied into every saved folder.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from ..core.errors import InputError
from .semantic_ids import row_numbers

SeenItems = tuple[Any, Any]
"""Compressed rows of item indices (arrays or tensors): row b has seen `items[indptr[b] : indptr[b + 1]]`."""


class ItemTrie:
    """The trie of all semantic IDs: level 0 is the root, a node of level h a prefix of h codes, a node of level H an item.

    Items are sorted by their codes, so that the leaves below a node and the children of a node are ranges. The trie is
    therefore stored as compressed sparse rows, and each look-up handles many nodes at once by arithmetic on arrays.

    Args:
        codes: (J, H) integers in [0, codebook_size), all rows different; an array or a tensor.
        codebook_size: K, codes of a level.

    Attributes:
        keys: for each level, (nodes,) ascending int64 `parent * K + code`; of the root, 0.
        first_child: for each level but the last, (nodes + 1,): children of node i are first_child[i] to first_child[i + 1].
        first_leaf: for each level, (nodes + 1,): the same for the leaves below a node.
        leaf_items: (J,) item_index of each leaf; item_leaves: (J,) the inverse.

    Raises:
        InputError: no items, codes outside the codebook, or items that share their codes.

    Example:
        >>> trie = ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
        >>> owner, child = trie.children(1, torch.tensor([0, 1]))  # the two nodes of level 1: code 0 and code 1
        >>> owner.tolist(), trie.codes(2, child).tolist(), trie.leaf_items[child].tolist()
        ([0, 1, 1], [2, 0, 1], [1, 0, 2])
    """

    def __init__(self, codes: Any, codebook_size: int) -> None:
        codes = _checked_codes(codes, codebook_size)
        self.codebook_size = codebook_size
        self.num_items, self.num_levels = codes.shape
        # Sorted by their codes, items with a common prefix are neighbours, so a node is a range of leaves and its number
        # grows with its key. A child is then found by binary search, without pointers or dictionaries.
        order = np.argsort(row_numbers(codes, codebook_size))
        codes = np.take(codes, order, axis=0)
        starts_node = np.ones(codes.shape, dtype=bool)  # [leaf, h - 1]: a node of level h begins at this leaf
        np.logical_or.accumulate(codes[1:] != codes[:-1], axis=1, out=starts_node[1:])
        _check_unique(codes, order, starts_node[:, -1])
        starts = np.zeros(1, dtype=np.int64)
        node_of_leaf = np.zeros(self.num_items, dtype=np.int64)
        keys, first_child, first_leaf = [np.zeros(1, np.int64)], [], [np.array([0, self.num_items])]
        for level in range(self.num_levels):
            parent, parent_starts = node_of_leaf, starts
            starts = np.flatnonzero(starts_node[:, level])
            node_of_leaf = np.cumsum(starts_node[:, level]) - 1
            keys.append(parent[starts] * codebook_size + codes[starts, level])
            first_child.append(np.append(node_of_leaf[parent_starts], len(starts)))
            first_leaf.append(np.append(starts, self.num_items))
        self.keys = [torch.from_numpy(array) for array in keys]
        self.first_child = [torch.from_numpy(array) for array in first_child]
        self.first_leaf = [torch.from_numpy(array) for array in first_leaf]
        self.leaf_items = torch.from_numpy(order)
        self.item_leaves = torch.empty_like(self.leaf_items)
        self.item_leaves[self.leaf_items] = torch.arange(self.num_items)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.leaf_items.device

    def to(self, device: torch.device | str) -> ItemTrie:
        """Return the trie on a device: itself if it is on that device already, else a copy."""
        if self.device == torch.device(device):
            return self
        moved = copy.copy(self)
        for name in ("keys", "first_child", "first_leaf"):
            setattr(moved, name, [tensor.to(device) for tensor in getattr(self, name)])
        moved.leaf_items, moved.item_leaves = self.leaf_items.to(device), self.item_leaves.to(device)
        return moved

    def num_nodes(self, level: int) -> int:
        """Return the number of nodes of a level in [0, H]."""
        return len(self.keys[level])

    def codes(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """Return the last code of nodes of a level in [1, H], in the shape of `nodes`."""
        return self.keys[level][nodes] % self.codebook_size

    def parents(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """Return the parents, nodes of level - 1, of nodes of a level in [1, H], in the shape of `nodes`."""
        return self.keys[level][nodes] // self.codebook_size

    def children(self, level: int, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all children of (n,) nodes of a level in [0, H): (children,) positions in `nodes`, and nodes of level + 1.

        They are in the order of `nodes`, and those of one node in ascending order of codes.
        """
        start = self.first_child[level][nodes]
        counts = self.first_child[level][nodes + 1] - start
        owner = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        skipped = start - (counts.cumsum(0) - counts)
        return owner, torch.arange(len(owner), device=nodes.device) + skipped[owner]

    def child(self, level: int, nodes: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Return the (n,) children of (n,) nodes of a level in [0, H) by (n,) codes of any value.

        A child is -1 where there is none, or where the node is -1.

        Example:
            >>> trie = ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
            >>> trie.child(0, torch.tensor([0, 0, -1]), torch.tensor([1, 2, 0])).tolist()
            [1, -1, -1]
        """
        keys = self.keys[level + 1]
        key = nodes * self.codebook_size + codes
        place = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
        is_code = (codes >= 0) & (codes < self.codebook_size)
        return torch.where((nodes >= 0) & is_code & (keys[place] == key), place, -1)

    def item_codes(self, items: torch.Tensor) -> torch.Tensor:
        """Return the (n, H) codes of (n,) item indices."""
        leaves = self.item_leaves[items]
        nodes = [torch.searchsorted(first, leaves, right=True) - 1 for first in self.first_leaf[1:]]
        return torch.stack([self.codes(level, of_level) for level, of_level in enumerate(nodes, start=1)], dim=1)

    def candidates(self, num_rows: int, seen: SeenItems | None = None, candidates: Any = None) -> CandidateItems:
        """Return the trie pruned for each row of a batch: `CandidateItems`."""
        return CandidateItems(self, num_rows, seen, candidates)


class CandidateItems:
    """The candidates of each row of a batch as a pruned trie: those of the call without the row's seen items.

    Args:
        trie: the trie of the whole catalogue.
        num_rows: rows B of the batch.
        seen: seen items of each row, which are excluded; None excludes nothing.
        candidates: item indices that all rows choose from; None means the whole catalogue.

    Raises:
        InputError: no candidates at all, or item indices that do not exist.

    Example:
        >>> trie = ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
        >>> candidates = trie.candidates(2, seen=(np.array([0, 0, 1]), np.array([1])), candidates=[1, 2])
        >>> candidates.count(1, rows=torch.tensor([0, 0, 1, 1]), nodes=torch.tensor([0, 1, 0, 1])).tolist()
        [1, 1, 0, 1]
    """

    def __init__(self, trie: ItemTrie, num_rows: int, seen: SeenItems | None = None, candidates: Any = None) -> None:
        # A (B, J) mask would take the size of the catalogue for each row. Candidates are the same for all rows, so one prefix
        # sum over the leaves counts them below any node; seen items are few, so a row's are counted by binary search.
        self.trie, self.num_rows = trie, num_rows
        is_candidate = torch.ones(trie.num_items, dtype=torch.bool, device=trie.device)  # by leaf
        if candidates is not None:
            is_candidate = torch.zeros_like(is_candidate)
            is_candidate[trie.item_leaves[_item_tensor("candidates", candidates, trie)]] = True
        zero = torch.zeros(1, dtype=torch.int64, device=trie.device)
        self._candidates_before = torch.cat([zero, is_candidate.cumsum(0)])  # (J + 1,)
        if not self._candidates_before[-1]:
            raise InputError("candidates are empty; give at least one item, or None for all items")
        self._seen = zero[:0]  # ascending row * J + leaf of the seen candidates
        if seen is not None:
            rows, leaves = _seen_leaves(seen, trie, num_rows)
            counts = is_candidate[leaves]
            self._seen = torch.unique(rows[counts] * trie.num_items + leaves[counts])

    def count(self, level: int, rows: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """Return the number of candidates of (n,) rows below (n,) nodes of a level in [0, H]: (n,)."""
        first, last = self.trie.first_leaf[level][nodes], self.trie.first_leaf[level][nodes + 1]
        count = self._candidates_before[last] - self._candidates_before[first]
        if not len(self._seen):
            return count
        start = rows * self.trie.num_items
        return count - torch.searchsorted(self._seen, start + last) + torch.searchsorted(self._seen, start + first)

    def rows_with_items(self) -> torch.Tensor:
        """Return which rows have a candidate left: (B,) bool."""
        rows = torch.arange(self.num_rows, device=self.trie.device)
        return self.count(0, rows, torch.zeros_like(rows)) > 0


class TrieLogitsProcessor(LogitsProcessor):
    """Logits processor that makes `generate` write the semantic ID of a candidate and nothing else.

    It keeps no state between calls: the level and the node of a row follow from its tokens, for all rows at once.
    For a batch of prompts, `prompt_length` is their padded width. After H tokens only the end token has a finite score; set
    `max_new_tokens` to H to stop without one. Rows that already left the trie get -inf on every token (`generate` fills up
    with such beams where there are more beams than continuations).

    Args:
        trie: the semantic IDs of all items, on the model's device.
        first_index_token: token id of code 0 of level 0; code c of level h has `first_index_token + h * K + c`.
        prompt_length: columns of `input_ids` that are the prompt; 0 when `generate` is given `inputs_embeds`.
        end_token_id: the end token.
        candidates: prunes the trie for each prompt; the beams of one prompt are consecutive rows, as in `generate`.

    Raises:
        InputError: a prompt without candidates: `generate` cannot write nothing.

    Example:
        >>> trie = ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
        >>> processor = TrieLogitsProcessor(trie, first_index_token=4, prompt_length=2)
        >>> processor(torch.tensor([[9, 9, 5]]), torch.zeros(1, 10)).isfinite().nonzero()[:, 1].tolist()  # after code 1: 0 or 1
        [7, 8]
    """

    def __init__(
        self,
        trie: ItemTrie,
        first_index_token: int,
        prompt_length: int,
        end_token_id: int | None = None,
        candidates: CandidateItems | None = None,
    ) -> None:
        if prompt_length < 0:
            raise InputError(f"prompt_length is {prompt_length}; it must be 0 or more")
        if candidates is not None:
            _check_rows_have_candidates(candidates)
        self.trie, self.candidates = trie, candidates
        self.first_index_token, self.prompt_length, self.end_token_id = first_index_token, prompt_length, end_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the (rows, V) scores with -inf on every token that does not continue the semantic ID of a candidate."""
        check_vocabulary(scores.shape[-1], self.trie, self.first_index_token)
        written = input_ids[:, self.prompt_length :]
        level = written.shape[1]
        masked = torch.full_like(scores, float("-inf"))
        if level >= self.trie.num_levels:
            if self.end_token_id is None:
                raise InputError(
                    f"a semantic ID has {self.trie.num_levels} tokens and all are written: set max_new_tokens to "
                    f"{self.trie.num_levels}, or give end_token_id"
                )
            masked[:, self.end_token_id] = scores[:, self.end_token_id]
        else:
            rows, tokens = self._continuations(written, level)
            masked[rows, tokens] = scores[rows, tokens]
        return masked

    def _continuations(self, written: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all pairs of a row and a token that may follow it, as two arrays."""
        trie = self.trie
        nodes = torch.zeros(len(written), dtype=torch.int64, device=written.device)
        for step in range(level):
            nodes = trie.child(step, nodes, written[:, step] - self.first_index_token - step * trie.codebook_size)
        # Of the K codes of a level only those of children with a candidate below may follow: a prefix without one would end
        # in a semantic ID that no item has, or in a seen item.
        inside = (nodes >= 0).nonzero().flatten()
        owner, child = trie.children(level, nodes[inside])
        rows = inside[owner]
        if self.candidates is not None:
            beams, rest = divmod(len(written), self.candidates.num_rows)
            if rest:
                raise InputError(
                    f"got {len(written)} rows for candidates of {self.candidates.num_rows} prompts; "
                    "the rows must be a multiple of the prompts"
                )
            some_left = self.candidates.count(level + 1, rows // beams, child) > 0
            rows, child = rows[some_left], child[some_left]
        return rows, self.first_index_token + level * trie.codebook_size + trie.codes(level + 1, child)


def check_vocabulary(vocabulary: int, trie: ItemTrie, first_index_token: int) -> None:
    """Raise InputError if the tokens of semantic IDs are not within a vocabulary of `vocabulary` tokens."""
    last = first_index_token + trie.num_levels * trie.codebook_size - 1
    if first_index_token < 0 or last >= vocabulary:
        raise InputError(
            f"first_index_token is {first_index_token}: {trie.num_levels} levels of {trie.codebook_size} codes take the tokens "
            f"up to {last}, and the model has tokens 0 to {vocabulary - 1}; resize its embeddings, or correct first_index_token"
        )


def _checked_codes(codes: Any, codebook_size: int) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != 2 or 0 in codes.shape or not np.issubdtype(codes.dtype, np.integer):
        raise InputError(
            f"codes have shape {codes.shape} and type {codes.dtype}; expected (items, levels) integers, at least one"
        )
    if codes.min() < 0 or codes.max() >= codebook_size:
        outside = np.argwhere((codes < 0) | (codes >= codebook_size))
        item, level = outside[0]
        raise InputError(
            f"codes: item {item} has the code {codes[item, level]} on level {level}; with a codebook_size of {codebook_size} "
            f"codes lie in [0, {codebook_size}); the semantic IDs belong to another codebook ({len(outside)} such codes)"
        )
    return codes


def _check_unique(codes: np.ndarray, order: np.ndarray, differs: np.ndarray) -> None:
    """Raise InputError if a row of sorted codes equals the one before."""
    twins = np.flatnonzero(~differs)
    if len(twins):
        pairs = [
            f"{min(order[leaf - 1 : leaf + 1])} and {max(order[leaf - 1 : leaf + 1])} share {codes[leaf].tolist()}"
            for leaf in twins[:5]
        ]
        raise InputError(
            f"codes collide: items {'; items '.join(pairs)} ({len(twins)} collisions); every item needs codes of its own: "
            "index the catalogue again"
        )


def _check_rows_have_candidates(candidates: CandidateItems) -> None:
    """Raise InputError if a row has no candidate left."""
    nothing = (~candidates.rows_with_items()).nonzero().flatten()
    if len(nothing):
        raise InputError(
            f"candidates: row {int(nothing[0])} ({len(nothing)} of {candidates.num_rows} rows) has seen all candidates, and "
            "generate cannot write nothing; leave these prompts out, give more candidates, or include seen items"
        )


def _item_tensor(name: str, items: Any, trie: ItemTrie) -> torch.Tensor:
    tensor = torch.as_tensor(items, device=trie.device).long().flatten()
    outside = (tensor < 0) | (tensor >= trie.num_items)
    if outside.any():
        raise InputError(f"{name} hold item_index {int(tensor[outside][0])}; items are 0 to {trie.num_items - 1}")
    return tensor


def _seen_leaves(seen: SeenItems, trie: ItemTrie, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and the leaves of the seen items."""
    indptr = torch.as_tensor(seen[0], device=trie.device).long()
    items = _item_tensor("seen items", seen[1], trie)
    lengths = indptr.diff()
    if len(indptr) != num_rows + 1 or indptr[0] != 0 or indptr[-1] != len(items) or (lengths < 0).any():
        raise InputError(
            f"seen: indptr has {len(indptr)} entries from {indptr[:1].tolist()} to {indptr[-1:].tolist()}; "
            f"expected {num_rows + 1}, ascending from 0 to the {len(items)} items"
        )
    return torch.arange(num_rows, device=trie.device).repeat_interleave(lengths), trie.item_leaves[items]


__all__ = ["CandidateItems", "ItemTrie", "SeenItems", "TrieLogitsProcessor", "check_vocabulary"]
