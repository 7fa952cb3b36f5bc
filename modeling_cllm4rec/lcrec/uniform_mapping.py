"""Uniform semantic mapping of the last level, of items in conflict or of the whole catalogue (section III-B of LC-Rec)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from modeling_cllm4rec.lcrec.semantic_ids import ITEMS_AT_ONCE, residuals, row_numbers, sinkhorn, squared_distances_to

__all__ = ["spread_conflicts", "spread_last_level"]

CONFLICT_ROUNDS = 20
"""Most rounds of `spread_conflicts`, as in the released code."""
GROUPED_ITEMS_AT_ONCE = 1024
"""Items of small groups that are spread together: their shares of 256 codes stay in a processor's cache over all iterations."""
EQUAL_SHARES = 0.1
"""Relative difference up to which two shares of an item count as equal: what 50 iterations of Sinkhorn-Knopp leave is below."""

Integers = npt.NDArray[np.int64]


def spread_conflicts(
    latents: np.ndarray,
    codebooks: np.ndarray,
    codes: np.ndarray,
    epsilon: float,
    rounds: int = CONFLICT_ROUNDS,
    seed: int = 0,
) -> npt.NDArray[np.int32]:
    """Return (J, H) codes with the last code of items in conflict by uniform semantic mapping; epsilon 0 changes nothing.

    As in the paper, items that share all their codes are a group, and Sinkhorn-Knopp spreads each group over all codes of the
    last level. A new code may meet that of another item under the same prefix, so this is repeated until no items share their
    codes, no code changes, or `rounds` are over. Items with equal latents stay together: see `assign_unique_codes`.

    A code of a group of fewer items than codes has one item that takes nearly all of it, and an item takes several codes in
    equal parts. It gets the nearest of these; in the released code, rounding errors decide.

    Args:
        latents: (J, d); codebooks: (H, K, d); codes: (J, H) the nearest ones.
        epsilon: see `sinkhorn`; seed: of the division of groups of more than 65,536 items.

    Example:
        >>> codebooks = np.array([[[0.0], [10.0]], [[-1.0], [1.0]]])
        >>> spread_conflicts(np.array([[0.2], [0.6], [9.0]]), codebooks, np.array([[0, 1], [0, 1], [1, 0]]), 0.003).tolist()
        [[0, 0], [0, 1], [1, 0]]
    """
    spread = np.array(codes, dtype=np.int32)
    moved, sizes = np.ones(len(spread), dtype=bool), np.zeros(len(spread), dtype=np.int64)
    for _ in range(rounds if epsilon else 0):
        items, first, counts = _conflicts(spread, codebooks.shape[1])
        # The same group gets the same codes again, so only groups that the last round changed are spread.
        changed = np.array([], dtype=bool)
        if len(first):
            changed = np.logical_or.reduceat(moved[items], first) | (sizes[items[first]] != counts)
        if not changed.any():
            break
        sizes[:] = 0
        sizes[items] = np.repeat(counts, counts)
        before = spread[:, -1].copy()
        for count in np.unique(counts[changed]).tolist():
            groups = items[first[changed & (counts == count)][:, None] + np.arange(count)]
            _spread(spread, latents, codebooks, groups, epsilon, seed)
        moved = spread[:, -1] != before
    return spread


def spread_last_level(latents: np.ndarray, codebooks: np.ndarray, codes: np.ndarray, epsilon: float, seed: int = 0) -> np.ndarray:
    """Return (J, H) codes with the last level by uniform semantic mapping over the catalogue; epsilon 0 changes nothing.

    A catalogue of more than 65,536 items is divided at random into parts of equal size, and each part is spread evenly.

    Args:
        latents: (J, d); codebooks: (H, K, d); codes: (J, H) the nearest ones.
        epsilon: see `sinkhorn`; seed: of the division.
    """
    if not epsilon:
        return codes
    spread = codes.copy()
    _spread(spread, latents, codebooks, np.arange(len(codes))[None], epsilon, seed)
    return spread


def _conflicts(codes: np.ndarray, codebook_size: int) -> tuple[Integers, Integers, Integers]:
    """Return the items that share their codes, group after group, the place of each group's first item, and its size."""
    numbers = row_numbers(codes, codebook_size)
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    shared = counts > 1
    return order[np.repeat(shared, counts)], np.cumsum(counts[shared]) - counts[shared], counts[shared]


def _spread(
    spread: np.ndarray, latents: np.ndarray, codebooks: np.ndarray, groups: np.ndarray, epsilon: float, seed: int
) -> None:
    """Set the last codes of groups of items (groups, n) by uniform semantic mapping within each, in place."""
    count, size = groups.shape
    if size > ITEMS_AT_ONCE:
        parts = -(-size // ITEMS_AT_ONCE)
        random = np.random.default_rng(seed)
        batches = [part[None] for group in groups for part in np.array_split(group[random.permutation(size)], parts)]
    else:
        at_once = max(1, GROUPED_ITEMS_AT_ONCE // max(size, 1))
        batches = [groups[start : start + at_once] for start in range(0, count, at_once)]
    level = spread.shape[1] - 1
    for batch in batches:
        items = batch.reshape(-1)
        rest = residuals(latents[items], codebooks, spread[items], level)
        distances = torch.from_numpy(squared_distances_to(rest, codebooks[level])).reshape(*batch.shape, -1)
        shares = sinkhorn(distances, epsilon)
        if size < codebooks.shape[1]:
            equal = shares >= (1 - EQUAL_SHARES) * shares.amax(-1, keepdim=True)
            chosen = torch.where(equal, distances, torch.inf).argmin(-1)
        else:
            chosen = shares.argmax(-1)
        spread[batch, level] = chosen.numpy()
