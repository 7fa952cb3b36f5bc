"""The indices of a catalogue as a tree on tensors, and a rule for `generate` that lets it name real items only.

This file stands alone: it is copied into every saved folder.
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
    """All item indices as a tree: level 0 is its root, a node of level h stands for h codes, a node of level H is an item.

    Items are sorted by their codes, so that the leaves below a node, and the children of a node, are ranges. That makes the
    tree compressed sparse rows: every question is answered for many nodes at once, by arithmetic on arrays.

    Args:
        codes: (J, H) integers in [0, codebook_size), no two rows alike; an array or a tensor.
        codebook_size: K, codes of a level.

    Attributes:
        keys: for each level, (nodes,) ascending int64 `parent * K + code`; of the root, 0.
        first_child: for each level but the last, (nodes + 1,): children of node i are first_child[i] to first_child[i + 1].
        first_leaf: for each level, (nodes + 1,): the same for the leaves below a node.
        leaf_items: (J,) item index of each leaf; item_leaves: (J,) the other way round.

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
        """Where the tensors are."""
        return self.leaf_items.device

    def to(self, device: torch.device | str) -> ItemTrie:
        """The tree on a device: itself where it is there already, else a copy."""
        if self.device == torch.device(device):
            return self
        moved = copy.copy(self)
        for name in ("keys", "first_child", "first_leaf"):
            setattr(moved, name, [tensor.to(device) for tensor in getattr(self, name)])
        moved.leaf_items, moved.item_leaves = self.leaf_items.to(device), self.item_leaves.to(device)
        return moved

    def num_nodes(self, level: int) -> int:
        """Nodes of a level in [0, H]."""
        return len(self.keys[level])

    def codes(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """The last code of nodes of a level in [1, H]; the shape is that of `nodes`."""
        return self.keys[level][nodes] % self.codebook_size

    def parents(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """The nodes of level - 1 above nodes of a level in [1, H]; the shape is that of `nodes`."""
        return self.keys[level][nodes] // self.codebook_size

    def children(self, level: int, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All children of (n,) nodes of a level in [0, H): (children,) places in `nodes`, and nodes of level + 1.

        They come in the order of `nodes`, and those of one node by ascending code.
        """
        start = self.first_child[level][nodes]
        counts = self.first_child[level][nodes + 1] - start
        owner = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        skipped = start - (counts.cumsum(0) - counts)
        return owner, torch.arange(len(owner), device=nodes.device) + skipped[owner]

    def child(self, level: int, nodes: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """(n,) children of (n,) nodes of a level in [0, H) by (n,) codes of any value; -1 where there is none, or the node is -1.

        Example:
            >>> trie = ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
            >>> trie.child(0, torch.tensor([0, 0, -1]), torch.tensor([1, 2, 0])).tolist()
            [1, -1, -1]
        """
        keys = self.keys[level + 1]
        wanted = nodes * self.codebook_size + codes
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        is_code = (codes >= 0) & (codes < self.codebook_size)
        return torch.where((nodes >= 0) & is_code & (keys[place] == wanted), place, -1)

    def item_codes(self, items: torch.Tensor) -> torch.Tensor:
        """(n, H) codes of (n,) item indices."""
        leaves = self.item_leaves[items]
        nodes = [torch.searchsorted(first, leaves, right=True) - 1 for first in self.first_leaf[1:]]
        return torch.stack([self.codes(level, of_level) for level, of_level in enumerate(nodes, start=1)], dim=1)

    def permitted(self, num_rows: int, seen: SeenItems | None = None, candidates: Any = None) -> PermittedItems:
        """The tree pruned for each row of a batch: `PermittedItems`."""
        return PermittedItems(self, num_rows, seen, candidates)


class PermittedItems:
    """Which nodes of a tree still have an item below that a row may be given. A row that has seen every candidate has none.

    Candidates are counted by prefix sums over the leaves, what a row has seen by its sorted leaves: nothing of the size of
    the catalogue is kept for each row.

    Args:
        trie: the tree.
        num_rows: rows B of the batch.
        seen: what each row must not be given; None forbids nothing.
        candidates: item indices that may be given at all; None stands for all.

    Raises:
        InputError: no candidates at all, or item indices that do not exist.

    Example:
        >>> trie = ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
        >>> permitted = trie.permitted(2, seen=(np.array([0, 0, 1]), np.array([1])), candidates=[1, 2])
        >>> permitted.count(1, rows=torch.tensor([0, 0, 1, 1]), nodes=torch.tensor([0, 1, 0, 1])).tolist()
        [1, 1, 0, 1]
    """

    def __init__(self, trie: ItemTrie, num_rows: int, seen: SeenItems | None = None, candidates: Any = None) -> None:
        self.trie, self.num_rows = trie, num_rows
        is_candidate = torch.ones(trie.num_items, dtype=torch.bool, device=trie.device)  # by leaf
        if candidates is not None:
            is_candidate = torch.zeros_like(is_candidate)
            is_candidate[trie.item_leaves[_item_tensor("candidates", candidates, trie)]] = True
        zero = torch.zeros(1, dtype=torch.int64, device=trie.device)
        self._candidates_before = torch.cat([zero, is_candidate.cumsum(0)])  # (J + 1,)
        if not self._candidates_before[-1]:
            raise InputError("candidates are empty: no item is left to be named; give at least one, or None for all items")
        self._seen = zero[:0]  # ascending row * J + leaf of what counts as a candidate and was seen
        if seen is not None:
            rows, leaves = _seen_leaves(seen, trie, num_rows)
            counts = is_candidate[leaves]
            self._seen = torch.unique(rows[counts] * trie.num_items + leaves[counts])

    def count(self, level: int, rows: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """(n,) items that (n,) rows may be given below (n,) nodes of a level in [0, H]."""
        first, last = self.trie.first_leaf[level][nodes], self.trie.first_leaf[level][nodes + 1]
        count = self._candidates_before[last] - self._candidates_before[first]
        if not len(self._seen):
            return count
        start = rows * self.trie.num_items
        return count - torch.searchsorted(self._seen, start + last) + torch.searchsorted(self._seen, start + first)

    def rows_with_items(self) -> torch.Tensor:
        """(B,) bool: rows that may be given an item."""
        rows = torch.arange(self.num_rows, device=self.trie.device)
        return self.count(0, rows, torch.zeros_like(rows)) > 0


class TrieLogitsProcessor(LogitsProcessor):
    """Lets `generate` write the index of a real item and nothing else.

    It keeps no state between calls: where a row stands follows from its tokens, all rows at once.
    For a batch of prompts, `prompt_length` is their padded width. After H tokens only the end token is permitted; set
    `max_new_tokens` to H to stop without one. Rows that already hold a forbidden token stay forbidden (`generate` fills up
    with such beams of score -inf where there are more beams than ways to go on).

    Args:
        trie: the indices of all items, on the model's device.
        first_index_token: token id of code 0 of level 0; code c of level h has `first_index_token + h * K + c`.
        prompt_length: columns of `input_ids` that are the prompt; 0 when `generate` is given `inputs_embeds`.
        end_token_id: what closes a text.
        permitted: prunes the tree for each prompt; several beams of one prompt stand side by side, as `generate` puts them.

    Raises:
        InputError: a prompt for which nothing is permitted: `generate` has to write something.

    Example:
        >>> trie = ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
        >>> rule = TrieLogitsProcessor(trie, first_index_token=4, prompt_length=2)
        >>> rule(torch.tensor([[9, 9, 5]]), torch.zeros(1, 10)).isfinite().nonzero()[:, 1].tolist()  # after code 1: 0 or 1
        [7, 8]
    """

    def __init__(
        self,
        trie: ItemTrie,
        first_index_token: int,
        prompt_length: int,
        end_token_id: int | None = None,
        permitted: PermittedItems | None = None,
    ) -> None:
        if prompt_length < 0:
            raise InputError(f"prompt_length is {prompt_length}; it must be 0 or more")
        if permitted is not None:
            _check_choice(permitted)
        self.trie, self.permitted = trie, permitted
        self.first_index_token, self.prompt_length, self.end_token_id = first_index_token, prompt_length, end_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, V) scores with -inf on every token that does not go on with a permitted index."""
        check_vocabulary(scores.shape[-1], self.trie, self.first_index_token)
        written = input_ids[:, self.prompt_length :]
        level = written.shape[1]
        masked = torch.full_like(scores, float("-inf"))
        if level >= self.trie.num_levels:
            if self.end_token_id is None:
                raise InputError(
                    f"an index has {self.trie.num_levels} tokens and all are written: set max_new_tokens to "
                    f"{self.trie.num_levels}, or give end_token_id"
                )
            masked[:, self.end_token_id] = scores[:, self.end_token_id]
        else:
            rows, tokens = self._continuations(written, level)
            masked[rows, tokens] = scores[rows, tokens]
        return masked

    def _continuations(self, written: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and tokens that may follow them."""
        trie = self.trie
        nodes = torch.zeros(len(written), dtype=torch.int64, device=written.device)
        for step in range(level):
            nodes = trie.child(step, nodes, written[:, step] - self.first_index_token - step * trie.codebook_size)
        inside = (nodes >= 0).nonzero().flatten()
        owner, child = trie.children(level, nodes[inside])
        rows = inside[owner]
        if self.permitted is not None:
            beams, rest = divmod(len(written), self.permitted.num_rows)
            if rest:
                raise InputError(
                    f"got {len(written)} rows for permitted items of {self.permitted.num_rows} prompts; "
                    "the rows must be a multiple of the prompts"
                )
            some_left = self.permitted.count(level + 1, rows // beams, child) > 0
            rows, child = rows[some_left], child[some_left]
        return rows, self.first_index_token + level * trie.codebook_size + trie.codes(level + 1, child)


def check_vocabulary(vocabulary: int, trie: ItemTrie, first_index_token: int) -> None:
    """Raise InputError if the index tokens are not within a vocabulary of `vocabulary` tokens."""
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
            f"codes lie in [0, {codebook_size}); the index belongs to another codebook ({len(outside)} such codes)"
        )
    return codes


def _check_unique(codes: np.ndarray, order: np.ndarray, differs: np.ndarray) -> None:
    """Refuse sorted codes where a row equals the one before."""
    twins = np.flatnonzero(~differs)
    if len(twins):
        pairs = [
            f"{min(order[leaf - 1 : leaf + 1])} and {max(order[leaf - 1 : leaf + 1])} share {codes[leaf].tolist()}"
            for leaf in twins[:5]
        ]
        raise InputError(
            f"codes collide: items {'; items '.join(pairs)} ({len(twins)} collisions); every item needs codes of its own: "
            "index the catalogue anew"
        )


def _check_choice(permitted: PermittedItems) -> None:
    """Refuse rows that may be given nothing."""
    nothing = (~permitted.rows_with_items()).nonzero().flatten()
    if len(nothing):
        raise InputError(
            f"permitted: row {int(nothing[0])} ({len(nothing)} of {permitted.num_rows} rows) has seen all candidates, and "
            "generate cannot write nothing; leave these prompts out, give more candidates, or permit items seen before"
        )


def _item_tensor(name: str, items: Any, trie: ItemTrie) -> torch.Tensor:
    tensor = torch.as_tensor(items, device=trie.device).long().flatten()
    outside = (tensor < 0) | (tensor >= trie.num_items)
    if outside.any():
        raise InputError(f"{name} hold the item index {int(tensor[outside][0])}; items are 0 to {trie.num_items - 1}")
    return tensor


def _seen_leaves(seen: SeenItems, trie: ItemTrie, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and leaves of what was seen."""
    indptr = torch.as_tensor(seen[0], device=trie.device).long()
    items = _item_tensor("seen items", seen[1], trie)
    lengths = indptr.diff()
    if len(indptr) != num_rows + 1 or indptr[0] != 0 or indptr[-1] != len(items) or (lengths < 0).any():
        raise InputError(
            f"seen: indptr has {len(indptr)} entries from {indptr[:1].tolist()} to {indptr[-1:].tolist()}; "
            f"expected {num_rows + 1}, ascending from 0 to the {len(items)} items"
        )
    return torch.arange(num_rows, device=trie.device).repeat_interleave(lengths), trie.item_leaves[items]


__all__ = ["ItemTrie", "PermittedItems", "SeenItems", "TrieLogitsProcessor", "check_vocabulary"]
