"""Exact, deterministic top-k over a catalogue.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .errors import InputError

PADDING = -1
"""In a ranked list: fewer items were found than were asked for."""
NO_ITEM = -2
"""In a ranked list: the model named something that is no item of the catalogue."""


def top_items(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best items of each row; of equal scores the lower item index comes first.

    Each score becomes an integer of the same order with the item index in its lower half. All these keys differ, so a
    partial sort has one possible result, also where equal scores cross the k-th place.

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
    num_items = scores.shape[-1]
    if not 1 <= k <= num_items:
        raise InputError(f"k is {k}; it must lie between 1 and the number of items to choose from, {num_items}")
    values = scores.float() + 0.0  # -0.0 becomes 0.0: they are equal and must tie
    if values.isnan().any():
        raise InputError("scores hold NaN: the model's weights or inputs are broken; do not rank with it")
    keys = _ordered_bits(values.view(torch.int32)).long() << 32
    keys += torch.arange(num_items - 1, -1, -1, device=scores.device)
    best = keys.topk(k, dim=-1).values
    indices = num_items - 1 - (best & 0xFFFFFFFF)
    found = _ordered_bits((best >> 32).int()).view(torch.float32)
    return indices.masked_fill(found == float("-inf"), -1), found


def top_candidates(
    scores: torch.Tensor, seen: Sequence[np.ndarray] | None, k: int, candidates: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """As `top_items`, without what a row has seen and among the candidates only.

    Args:
        scores: (batch, J), written into.
        seen: item indices of each row that are left out; candidates: sorted (candidates,) item indices, None for all.

    Example:
        >>> top_candidates(torch.tensor([[0.5, 2.0, 3.0, 1.0]]), [np.array([2])], 2, np.array([0, 2, 3]))[0].tolist()
        [[3, 0]]
    """
    if seen is not None:
        row = torch.from_numpy(np.repeat(np.arange(len(seen)), [len(items) for items in seen]))
        scores[row.to(scores.device), torch.from_numpy(np.concatenate(seen)).to(scores.device)] = float("-inf")
    if candidates is None:
        best, found = top_items(scores, k)
    else:
        chosen = torch.from_numpy(candidates).to(scores.device)
        place, found = top_items(scores[:, chosen], k)
        best = torch.where(place >= 0, chosen[place.clamp(min=0)], -1)
    return best.cpu().numpy(), found.cpu().numpy()


def _ordered_bits(bits: torch.Tensor) -> torch.Tensor:
    """Return the bits of float32 numbers as integers of the same order; applied twice, it returns the bits again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


__all__ = ["NO_ITEM", "PADDING", "top_candidates", "top_items"]
