"""Metric arithmetic on ranked item indices, for many users at once and without a Python loop over users.

`hits` marks the recommended items that are true, a metric maps the marks of each user to one number, and `mean_over_users`
averages. The value of a user without a true item is NaN. `mean_over_users` excludes such users and warns with their number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.top_items import PADDING
from modeling_cllm4rec.corpora.data_folder import Histories

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer]


def hits(ranked: IntArray, truth: Histories) -> BoolArray:
    """Mark the recommended items that are true.

    Args:
        ranked: (users, K) item indices, best first; -1 fills the end of a row that has fewer than K items.
        truth: the true items of the same users, (users + 1,) row pointers and (pairs,) item indices.

    Returns:
        (users, K) booleans; padding is never a hit.

    Raises:
        InputError: if the shapes do not fit together, or a row or the truth names an item twice.

    >>> hits(np.array([[4, 2, 7]]), Histories(np.array([0, 2]), np.array([7, 4], dtype=np.int32)))
    array([[ True, False,  True]])
    """
    ranked = np.asarray(ranked)
    sizes = truth_sizes(truth)
    _check_ranked(ranked)
    if len(ranked) != len(sizes):
        raise InputError(f"ranked has {len(ranked)} users and truth has {len(sizes)}; both need one row per user")
    items = np.asarray(truth.items, dtype=np.int64)
    if items.size and items.min() < 0:
        raise InputError(f"truth.items must be item indices >= 0, got {items.min()}")
    # One sorted array of keys user * stride + item answers all users at once, without a loop over users.
    stride = 1 + max(int(items.max(initial=0)), int(ranked.max(initial=0)))
    true_keys = np.sort(np.repeat(np.arange(len(sizes), dtype=np.int64), sizes) * stride + items)
    if (true_keys[1:] == true_keys[:-1]).any():
        raise InputError("truth.items names an item twice for one user; give each (user, item) pair once")
    if not true_keys.size:
        return np.zeros(ranked.shape, dtype=bool)
    keys = np.arange(len(ranked), dtype=np.int64)[:, None] * stride + ranked
    positions = np.minimum(np.searchsorted(true_keys, keys), true_keys.size - 1)
    found: BoolArray = (true_keys[positions] == keys) & (ranked != PADDING)
    return found


def truth_sizes(truth: Histories) -> npt.NDArray[np.int64]:
    """Return the (users,) number of true items of each user.

    >>> truth_sizes(Histories(np.array([0, 2, 2]), np.array([7, 4], dtype=np.int32)))
    array([2, 0])
    """
    indptr = np.asarray(truth.indptr, dtype=np.int64)
    return indptr[1:] - indptr[:-1]


def recall_at_k(hit: BoolArray, sizes: IntArray, k: int) -> FloatArray:
    """Compute the share of the true items that are among the first k, over `min(k, true items)`.

    This denominator is the one of Multi-VAE and of the CLLM4Rec experiments; with it a perfect ranking has recall 1
    even for a user with more than k true items.

    Args:
        hit: (users, K) marks from `hits`, K >= k.
        sizes: (users,) number of true items from `truth_sizes`.
        k: length of the evaluated part of the lists.

    Returns:
        (users,) values in [0, 1]; NaN where a user has no true item.

    Raises:
        InputError: if k is not in [1, K], or the shapes do not fit together.

    >>> recall_at_k(np.array([[True, False, True]]), np.array([4]), k=3).round(3).tolist()  # 2 of min(3, 4)
    [0.667]
    """
    hit, possible = _checked(hit, sizes, k)
    return hit.sum(axis=1) / possible


def ndcg_at_k(hit: BoolArray, sizes: IntArray, k: int) -> FloatArray:
    """Compute the normalized discounted cumulative gain of the first k: a hit at rank r (from 1) gains `1 / log2(r + 1)`.

    The ideal ranking has its hits at ranks 1 to `min(k, true items)`. Arguments, result and errors as `recall_at_k`.

    >>> ndcg_at_k(np.array([[False, True]]), np.array([1]), k=2).round(4).tolist()  # 1 / log2(3)
    [0.6309]
    """
    hit, possible = _checked(hit, sizes, k)
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    # Both sums run from the first rank on: the gain of a perfect ranking then equals its ideal to the last bit.
    gain: FloatArray = np.cumsum(hit * discounts, axis=1)[:, -1]
    ideal = np.full(len(hit), np.nan)
    ideal[possible > 0] = np.cumsum(discounts)[possible[possible > 0].astype(np.int64) - 1]
    return gain / ideal


def hit_rate_at_k(hit: BoolArray, sizes: IntArray, k: int) -> FloatArray:
    """Return 1 if any of the first k is true, else 0. Arguments, result and errors as `recall_at_k`.

    >>> hit_rate_at_k(np.array([[False, True], [False, False]]), np.array([1, 1]), k=2).tolist()
    [1.0, 0.0]
    """
    hit, possible = _checked(hit, sizes, k)
    return np.where(np.isnan(possible), np.nan, hit.any(axis=1))


def mrr_at_k(hit: BoolArray, sizes: IntArray, k: int) -> FloatArray:
    """Compute the reciprocal rank of the first true item if it is among the first k, else 0.

    Arguments, result and errors as `recall_at_k`.

    >>> mrr_at_k(np.array([[False, True], [False, False]]), np.array([1, 1]), k=2).tolist()
    [0.5, 0.0]
    """
    hit, possible = _checked(hit, sizes, k)
    reciprocal = np.where(hit.any(axis=1), 1.0 / (hit.argmax(axis=1) + 1.0), 0.0)
    return np.where(np.isnan(possible), np.nan, reciprocal)


def illegal_items(ranked: IntArray, num_items: int, seen: Histories | None = None) -> BoolArray:
    """Flag invalid, duplicate and seen items.

    Args:
        ranked: (users, K) item indices, -1 for padding; anything else outside [0, num_items) is no item.
        seen: items of the same users that must not be recommended.

    Returns:
        (users, K) booleans.

    >>> illegal_items(np.array([[3, 3, 1, -2, -1]]), 4, Histories(np.array([0, 1]), np.array([1], dtype=np.int32)))
    array([[False,  True,  True,  True, False]])
    """
    ranked = np.asarray(ranked, dtype=np.int64)
    illegal = (ranked < PADDING) | (ranked >= num_items)
    order = np.argsort(ranked, axis=1, kind="stable")
    ordered = np.take_along_axis(ranked, order, axis=1)
    duplicate = np.zeros_like(illegal)
    np.put_along_axis(duplicate, order[:, 1:], (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PADDING), axis=1)
    illegal |= duplicate
    if seen is not None:
        rows = np.repeat(np.arange(len(ranked)), np.diff(seen.indptr))
        keys = np.arange(len(ranked))[:, None] * num_items + ranked
        illegal |= np.isin(keys, rows * num_items + seen.items) & (ranked != PADDING)
    return illegal


def items_shown(ranked: IntArray, num_items: int, k: int) -> BoolArray:
    """Mark the catalogue items that are among the first k of at least one user.

    Args:
        ranked: (users, K) item indices, -1 for padding.
        num_items: size of the catalogue, J.
        k: length of the evaluated part of the lists.

    Returns:
        (J,) booleans.

    Raises:
        InputError: if k is not in [1, K], or an item index is not below `num_items`.
    """
    ranked = np.asarray(ranked)
    _check_ranked(ranked)
    _check_k(k, ranked.shape[1])
    shown = np.zeros(num_items, dtype=bool)
    items = ranked[:, :k]
    if items.size and items.max() >= num_items:
        raise InputError(f"ranked names item {items.max()}, but num_items is {num_items}: indices end at {num_items - 1}")
    shown[items[items != PADDING]] = True
    return shown


def coverage_at_k(ranked: IntArray, num_items: int, k: int) -> float:
    """Compute the share of the catalogue that is among the first k of at least one user. Arguments and errors as `items_shown`.

    >>> coverage_at_k(np.array([[0, 1], [1, 2]]), num_items=4, k=2)
    0.75
    """
    return float(items_shown(ranked, num_items, k).mean())


def mean_over_users(values: FloatArray) -> float:
    """Average over the users that have a value; users without a true item (NaN) are excluded and counted in a warning.

    Args:
        values: (users,) one metric.

    Returns:
        The mean, NaN if no user has a value.

    >>> mean_over_users(np.array([0.5, 1.0]))
    0.75
    """
    known = ~np.isnan(values)
    if not known.all():
        missing = int((~known).sum())
        warnings.warn(f"{missing} of {known.size} users have no true item and are excluded from the mean", stacklevel=2)
    return float(values[known].mean()) if known.any() else float("nan")


def ranked_from_lists(rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Return ranked lists of any lengths as one (users, longest) array, padded with -1.

    >>> ranked_from_lists([[3, 1], [2]]).tolist()
    [[3, 1], [2, -1]]
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ranked = np.full((len(rows), lengths.max(initial=0)), PADDING, dtype=np.int64)
    ranked[np.arange(ranked.shape[1]) < lengths[:, None]] = _flat(rows)
    return ranked


def histories_from_lists(rows: Sequence[Sequence[int]]) -> Histories:
    """Return lists of item indices, one per user, as `Histories`.

    >>> histories_from_lists([[3, 1], []]).indptr.tolist()
    [0, 2, 2]
    """
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    return Histories(indptr, _flat(rows).astype(np.int32))


def _flat(rows: Iterable[Sequence[int]]) -> npt.NDArray[np.int64]:
    return np.array([item for row in rows for item in row], dtype=np.int64)


def _check_ranked(ranked: IntArray) -> None:
    if ranked.ndim != 2 or not np.issubdtype(ranked.dtype, np.integer):
        raise InputError(f"ranked must be a (users, K) integer array, got shape {ranked.shape} of {ranked.dtype}")
    if ranked.size and ranked.min() < PADDING:
        raise InputError(f"ranked must hold item indices >= 0, or -1 for padding, got {ranked.min()}")
    if ((ranked[:, :-1] == PADDING) & (ranked[:, 1:] != PADDING)).any():
        raise InputError("ranked has an item after padding; -1 may only fill the end of a row")
    ordered = np.sort(ranked, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PADDING)).any():
        raise InputError("ranked recommends an item twice to one user; each item may occur once per row")


def _check_k(k: int, columns: int) -> None:
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if k > columns:
        raise InputError(f"k is {k}, but only {columns} items are ranked for each user; rank at least {k}")


def _checked(hit: BoolArray, sizes: IntArray, k: int) -> tuple[BoolArray, FloatArray]:
    """Return the first k columns of the marks, and the maximal number of hits of each user (NaN without true items)."""
    hit, sizes = np.asarray(hit), np.asarray(sizes)
    if hit.ndim != 2 or hit.dtype != np.bool_:
        raise InputError(f"hit must be a (users, K) boolean array from hits(), got shape {hit.shape} of {hit.dtype}")
    if sizes.shape != (len(hit),):
        raise InputError(f"sizes must have one number per user, ({len(hit)},), got shape {sizes.shape}")
    _check_k(k, hit.shape[1])
    return hit[:, :k], np.where(sizes > 0, np.minimum(sizes, k), np.nan)
