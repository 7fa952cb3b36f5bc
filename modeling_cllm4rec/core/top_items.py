"""Exact, deterministic top-k over a catalogue, in memory that does not grow with it.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from .errors import InputError

PADDING = -1
"""In a ranked list: fewer items were found than were asked for."""
NO_ITEM = -2
"""In a ranked list: the model named something that is no item of the catalogue."""
SCORES_PER_PIECE = 1 << 22
"""Scores that are sorted at one time."""
_LAST = 0xFFFFFFFF


def top_items(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best items of each row; of equal scores the lower item index comes first.

    Args:
        scores: (batch, J), any floating type (compared as float32); -inf marks what may not be recommended.
        k: how many, at most J.

    Returns:
        (batch, k) item indices, -1 where a row has fewer than k items left, and their (batch, k) float32 scores.

    Example:
        >>> indices, values = top_items(torch.tensor([[0.5, 2.0, 2.0, 1.0]]), k=2)
        >>> indices.tolist(), values.tolist()
        ([[1, 2]], [[2.0, 2.0]])
    """
    _check_k(k, scores.shape[-1])
    best = RunningTop(k)
    for piece in scores.split(items_per_piece(len(scores)), dim=-1):
        best.add(piece)
    return best.found()


class RunningTop:
    """The k best items of each row over a catalogue whose scores come piece by piece, exactly as over all scores at once.

    Each score becomes an integer of the same order with the item index in its lower half, complemented. All these keys differ, so
    a partial sort has one possible result, also where equal scores cross the k-th place, and pieces change nothing.

    Args:
        k: how many.

    Example:
        >>> best = RunningTop(2)
        >>> best.add(torch.tensor([[0.5, 2.0]]))
        >>> best.add(torch.tensor([[2.0, 1.0]]))
        >>> best.found()[0].tolist()
        [[1, 2]]
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.num_items = 0
        self.keys: torch.Tensor | None = None

    def add(self, scores: torch.Tensor) -> None:
        """Compare (batch, items) scores of the next items with the best so far.

        Raises:
            InputError: a score is NaN.
        """
        values = scores.float() + 0.0  # -0.0 becomes 0.0: they are equal and must tie
        if values.isnan().any():
            raise InputError("scores hold NaN: the model's weights or inputs are broken; do not rank with it")
        keys = _ordered_bits(values.view(torch.int32)).long() << 32
        first, self.num_items = self.num_items, self.num_items + scores.shape[-1]
        keys += torch.arange(_LAST - first, _LAST - self.num_items, -1, device=scores.device)
        if self.keys is not None:
            keys = torch.cat([self.keys, keys], dim=-1)
        self.keys = keys.topk(min(self.k, keys.shape[-1]), dim=-1).values

    def found(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `top_items` returns of all scores so far.

        Raises:
            InputError: there were fewer than k items.
        """
        _check_k(self.k, self.num_items)
        assert self.keys is not None
        indices = _LAST - (self.keys & _LAST)
        scores = _ordered_bits((self.keys >> 32).int()).view(torch.float32)
        return indices.masked_fill(scores == float("-inf"), -1), scores


def items_per_piece(rows: int) -> int:
    """Return the number of items of a piece of the catalogue for so many rows of scores: at least 1,024.

    A sort takes 24 bytes a score, so a piece takes about 100 MB.
    """
    return max(1024, SCORES_PER_PIECE // max(rows, 1) // 64 * 64)


def top_candidates(
    scores: torch.Tensor | Iterable[torch.Tensor], seen: Sequence[np.ndarray] | None, k: int, candidates: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """As `top_items`, without what a row has seen and among the candidates only.

    Args:
        scores: (batch, J), or pieces (batch, items) that make up the catalogue in its order; written into.
        seen: item indices of each row that are left out; candidates: sorted (candidates,) item indices, None for all.

    Example:
        >>> top_candidates(torch.tensor([[0.5, 2.0, 3.0, 1.0]]), [np.array([2])], 2, np.array([0, 2, 3]))[0].tolist()
        [[3, 0]]
    """
    if isinstance(scores, torch.Tensor):
        scores = scores.split(items_per_piece(len(scores)), dim=1)
    row, item = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if seen is not None and len(seen):
        row, item = np.repeat(np.arange(len(seen)), [len(items) for items in seen]), np.concatenate(seen).astype(np.int64)
        order = np.argsort(item, kind="stable")
        row, item = row[order], item[order]
    running, start = RunningTop(k), 0
    for piece in scores:
        stop = start + piece.shape[1]
        here = slice(*np.searchsorted(item, [start, stop]))
        places = torch.from_numpy(row[here]).to(piece.device), torch.from_numpy(item[here] - start).to(piece.device)
        piece[places] = float("-inf")
        if candidates is not None:
            chosen = candidates[slice(*np.searchsorted(candidates, [start, stop]))] - start
            piece = piece[:, torch.from_numpy(chosen).to(piece.device)]
        running.add(piece)
        start = stop
    best, found = (part.cpu().numpy() for part in running.found())
    return best if candidates is None else np.where(best >= 0, candidates[best.clip(min=0)], -1), found


def _check_k(k: int, num_items: int) -> None:
    if not 1 <= k <= num_items:
        raise InputError(f"k is {k}; it must lie between 1 and the number of items to choose from, {num_items}")


def _ordered_bits(bits: torch.Tensor) -> torch.Tensor:
    """Return the bits of float32 numbers as integers of the same order; applied twice, it returns the bits again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


__all__ = ["NO_ITEM", "PADDING", "RunningTop", "items_per_piece", "top_candidates", "top_items"]
