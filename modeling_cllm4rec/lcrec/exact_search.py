"""The exact best items of a whole catalogue, from the part of the trie of semantic IDs that can hold them.

The score of a prefix is ln p of its codes, and each further code lowers it. So no item is likelier than a prefix of its codes,
and what is less likely than the k-th best item so far need not be read. At most 1 / p prefixes of a level are as likely as an
item of probability p, whatever the size of the catalogue.

This file is copied into every saved folder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..core.errors import InputError
from .beam_search import MOST_NODES, FoundItems, bounded_search
from .constrained_decoding import CandidateItems, ItemTrie, SeenItems
from .prompt_tree import PromptTree

FIRST_BEAMS = 20
"""Beams of the search whose k-th item is the first bound."""
ROUNDING = 1e-3
"""Nats by which two passes over the same tokens may differ; in 16 bits they differ more, and near-equal items may swap."""


@torch.no_grad()
def best_of_all(
    language_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: ItemTrie,
    first_index_token: int,
    k: int,
    seen: SeenItems | None = None,
    candidates: Any = None,
    nodes_at_a_time: int = 256,
    most_nodes: int = MOST_NODES,
) -> FoundItems:
    """Return the k likeliest candidates after each prompt, as if all were scored.

    A beam search gives a first bound, which most often proves its own list. For the other prompts the trie is read depth first,
    the likeliest prefixes first, without those below the bound, which rises with the items found.

    Args:
        k: how many.
        nodes_at_a_time: prefixes that are read in one pass.
        most_nodes: prefixes that may be read for one prompt.

    The other arguments are those of `beam_search`.

    Returns:
        As `beam_search` with k beams.

    Raises:
        InputError: more than `most_nodes` prefixes are as likely as the best items, as without any training; or as `beam_search`.
    """
    for name, value in (("k", k), ("nodes_at_a_time", nodes_at_a_time)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more")
    beams = max(k, FIRST_BEAMS)
    found, bound = bounded_search(
        language_model, input_ids, attention_mask, trie, first_index_token, beams, seen=seen, candidates=candidates
    )
    items, scores = found.items[:, :k].clone(), found.scores[:, :k].clone()
    unproven = (bound > scores[:, -1] - ROUNDING).nonzero().flatten().tolist()
    for row in unproven:
        real = attention_mask[row].bool()
        tree = PromptTree(language_model, input_ids[row][real][None], attention_mask[row][real][None], trie, first_index_token)
        pruned = trie.candidates(1, _seen_of(seen, row), candidates)
        search = _RowSearch(tree, pruned, k, float(scores[row, -1]), nodes_at_a_time, most_nodes)
        search.run()
        items[row], scores[row] = search.items, search.scores
    codes = torch.where(items[..., None] < 0, -1, trie.item_codes(items.clamp(min=0).flatten()).view(*items.shape, -1))
    return FoundItems(items, scores, codes)


class _RowSearch:
    """The search of one prompt.

    Attributes:
        items, scores: (k,) of the best items so far, best first, of equal scores the lower item; -1 and -inf where there are
            fewer.
        least: score below which nothing needs to be read.
    """

    def __init__(
        self, tree: PromptTree, pruned: CandidateItems, k: int, least: float, nodes_at_a_time: int, most_nodes: int
    ) -> None:
        self.tree, self.pruned, self.trie = tree, pruned, pruned.trie
        self.nodes_at_a_time, self.most_nodes = nodes_at_a_time, most_nodes
        self.least, self.nodes_read = least - ROUNDING, 0
        device = self.trie.device
        self.items = torch.full((k,), -1, device=device)
        self.scores = torch.full((k,), float("-inf"), device=device)

    def run(self) -> None:
        """Read whatever may hold one of the best items."""
        device = self.trie.device
        root, nothing = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, 0, dtype=torch.bool, device=device)
        self._below(0, root, torch.zeros(1, device=device), self.tree.prompt_log_probs(), nothing)

    def _below(
        self, level: int, nodes: torch.Tensor, scores: torch.Tensor, log_probs: torch.Tensor, visible: torch.Tensor
    ) -> None:
        """Search below (n,) nodes of a level, which were read.

        Args:
            scores: (n,); log_probs: (n, K) of the codes of the next level after them.
            visible: (n, fed) which tokens in the cache each of them sees.
        """
        trie, level = self.trie, level + 1
        parent, child = trie.children(level - 1, nodes)
        total = scores[parent] + log_probs[parent, trie.codes(level, child)]
        kept = (total >= self.least).nonzero().flatten()
        kept = kept[self.pruned.count(level, torch.zeros_like(kept), child[kept]) > 0]
        parent, child, total = parent[kept], child[kept], total[kept]
        if level == trie.num_levels:
            self._take(trie.leaf_items[child], total)
            return
        fed = self.tree.fed
        order = total.argsort(descending=True, stable=True)
        for piece in order.split(self.nodes_at_a_time):
            piece = piece[total[piece] >= self.least]  # it may have risen since
            if not len(piece):
                break
            self.nodes_read += len(piece)
            if self.nodes_read > self.most_nodes:
                raise InputError(
                    f"more than {self.most_nodes:,} prefixes of semantic IDs are as likely as the best items, so that nearly "
                    f"all {trie.num_items:,} items would have to be scored: the model is not trained for this question; search "
                    "with num_beams, or train longer"
                )
            own = torch.eye(len(piece), dtype=torch.bool, device=trie.device)
            sees = torch.cat([visible[parent[piece]], own], dim=1)
            levels = torch.full_like(piece, level)
            states = self.tree.read(self.tree.tokens(level, child[piece])[None], levels, sees[None])
            self._below(level, child[piece], total[piece], self.tree.code_log_probs(states, level + 1)[0], sees)
            self.tree.forget(fed)

    def _take(self, items: torch.Tensor, scores: torch.Tensor) -> None:
        """Take the best of (n,) items and of those so far."""
        items, scores = torch.cat([self.items, items]), torch.cat([self.scores, scores])
        order = items.argsort(stable=True)
        best = order[scores[order].argsort(descending=True, stable=True)][: len(self.items)]
        self.items, self.scores = items[best], scores[best]
        self.least = max(self.least, float(self.scores[-1]))


def _seen_of(seen: SeenItems | None, row: int) -> SeenItems | None:
    """Return the seen items of one row."""
    if seen is None:
        return None
    indptr, items = seen
    return np.array([0, int(indptr[row + 1] - indptr[row])]), items[int(indptr[row]) : int(indptr[row + 1])]


__all__ = ["best_of_all"]
