"""Splits of interactions into train, validation and test."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.interactions import IntArray, encode, first_of

SPLITS = ("train", "validation", "test")
"""The values of a split column; a split code is a position in this tuple."""
SPLIT_KINDS = ("random", "leave-one-out", "temporal", "given")
LEAST_INTERACTIONS = 3
"""Least interactions of a user, for one in each split."""

SplitCodes = npt.NDArray[np.int8]


def assign_splits(
    table: pa.Table, split: str, *, seed: int = 42, temporal_cuts: tuple[float, float] = (0.8, 0.9)
) -> tuple[SplitCodes, dict[str, Any]]:
    """Divide interactions into train, validation and test.

    Args:
        table: a table from `interactions.clean_interactions`.
        split: `random`: 80/10/10 of each user, at least one each in validation and test (as in the paper, see
            `random_split`); `leave-one-out`: the last interaction of each user is test, the last but one validation;
            `temporal`: two points in time for all users, see `temporal_split`; `given`: the column `split`.
        seed: seed of the random numbers of `random`.
        temporal_cuts: shares of interactions before the two points in time of `temporal`.

    Returns:
        (rows,) split codes, and a description: `split`, `seed` (`None` if nothing is random) and for `temporal`
        `temporal_cuts` and `cut_times`.

    Raises:
        InputError: `split` has another value, a column is missing, users have too few interactions, or no interaction is left
            for train.
    """
    if split not in SPLIT_KINDS:
        raise InputError(f"split must be one of {', '.join(SPLIT_KINDS)}, got {split!r}")
    if seed < 0:
        raise InputError(f"seed must be at least 0, got {seed}")
    done: dict[str, Any] = {"split": split, "seed": seed if split == "random" else None}
    if split == "random":
        _check_least(table, split)
        codes = random_split(_sorted_codes(table["user_id"]), _sorted_codes(table["item_id"]), seed)
    elif split == "leave-one-out":
        _check_least(table, split)
        times = table["timestamp"].to_numpy() if "timestamp" in table.column_names else np.zeros(table.num_rows)
        codes = leave_one_out_split(encode(table["user_id"]), times)
    elif split == "temporal":
        if "timestamp" not in table.column_names:
            raise InputError("split 'temporal' needs a column of times; name it with timestamp_column=...")
        codes, cut_times = temporal_split(table["timestamp"].to_numpy(), temporal_cuts)
        done |= {"temporal_cuts": list(temporal_cuts), "cut_times": list(cut_times)}
    else:
        codes = _given_split(table)
    if not (codes == SPLITS.index("train")).any():
        raise InputError(f"split {split!r} leaves no interaction for train; there must be at least one")
    return codes, done


def random_split(users: IntArray, items: IntArray, seed: int) -> SplitCodes:
    """Split the interactions of each user 80/10/10 at random, like the data of the paper.

    Of n interactions, max(1, int(n / 10)) go to test, the same number to validation, and the others to train. The draw depends
    on the (user, item) pair and not on the order of rows.

    Args:
        users: (rows,) user codes from 0 that do not depend on the order of rows.
        items: (rows,) item codes, likewise; no pair occurs twice.
        seed: seed of the random numbers.

    Returns:
        (rows,) split codes.

    Example:
        >>> codes = random_split(np.zeros(20, dtype=int), np.arange(20), seed=1)
        >>> np.bincount(codes).tolist()
        [16, 2, 2]
    """
    # Numbers are drawn in the order of the pairs, then put back into the order of rows.
    draws = np.empty(len(users))
    draws[np.lexsort((items, users))] = np.random.default_rng(seed).random(len(users))
    order = np.lexsort((items, draws, users))
    positions, counts = _positions(users[order])
    num_held_out = np.maximum(1, counts // 10)
    codes = np.empty(len(users), dtype=np.int8)
    codes[order] = (positions < 2 * num_held_out).astype(np.int8) + (positions < num_held_out)
    return codes


def leave_one_out_split(users: IntArray, times: npt.NDArray[np.number]) -> SplitCodes:
    """Put the last interaction of each user into test and the last but one into validation.

    Args:
        users: (rows,) user codes from 0.
        times: (rows,) times; of equal times, the later row counts as later.

    Returns:
        (rows,) split codes.

    Example:
        >>> leave_one_out_split(np.array([0, 0, 0, 0]), np.array([5, 9, 1, 9])).tolist()
        [0, 1, 0, 2]
    """
    order = np.lexsort((times, users))
    positions, counts = _positions(users[order])
    codes = np.empty(len(users), dtype=np.int8)
    codes[order] = np.maximum(0, positions - counts + 3)
    return codes


def temporal_split(times: npt.NDArray[np.number], cuts: tuple[float, float]) -> tuple[SplitCodes, tuple[int, int]]:
    """Split all interactions at two points in time, the same for all users; equal times share a split.

    Args:
        times: (rows,) unix seconds.
        cuts: shares of rows, in order of time, before the first validation and the first test interaction.

    Returns:
        (rows,) split codes, and the two points in time.

    Raises:
        InputError: the cuts are not 0 < first < second < 1, or a split is empty.

    Example:
        >>> temporal_split(np.array([30, 10, 20, 40, 50]), (0.6, 0.8))
        (array([0, 0, 0, 1, 2], dtype=int8), (40, 50))
    """
    first, second = cuts
    if not 0 < first < second < 1:
        raise InputError(f"temporal_cuts must be two shares with 0 < first < second < 1, got {first} and {second}")
    in_order = np.sort(times)
    begin_validation, begin_test = (int(in_order[int(cut * len(times))]) for cut in cuts)
    codes = (times >= begin_validation).astype(np.int8) + (times >= begin_test)
    for code, name in enumerate(SPLITS):
        if not (codes == code).any():
            raise InputError(
                f"temporal_cuts {first} and {second} fall on the times {begin_validation} and {begin_test}, which "
                f"leave nothing for {name}; choose other shares"
            )
    return codes, (begin_validation, begin_test)


def split_names(codes: SplitCodes) -> pa.Array:
    """Return the (rows,) names of split codes.

    >>> split_names(np.array([0, 2], dtype=np.int8)).to_pylist()
    ['train', 'test']
    """
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(SPLITS)).cast(pa.string())


def _given_split(table: pa.Table) -> SplitCodes:
    """Return the split codes of the column `split`."""
    if "split" not in table.column_names:
        raise InputError("split 'given' needs a column of split names; name it with split_column=...")
    codes = pc.index_in(table["split"], value_set=pa.array(SPLITS, table["split"].type))
    if codes.null_count:
        unknown = pc.unique(table["split"].filter(codes.is_null()))
        raise InputError(f"split has the values {first_of(unknown)}; they must be {', '.join(SPLITS)}, spelled like this")
    return codes.to_numpy().astype(np.int8)


def _check_least(table: pa.Table, split: str) -> None:
    """Check that each user has an interaction for each split."""
    counts = pc.value_counts(table["user_id"])
    few = counts.filter(pc.less(counts.field("counts"), LEAST_INTERACTIONS)).field("values")
    if len(few):
        raise InputError(
            f"split {split!r} needs at least {LEAST_INTERACTIONS} interactions of each user, but {len(few)} of "
            f"{len(counts)} users have fewer: {first_of(few)}; remove them with k_core={LEAST_INTERACTIONS}"
        )


def _sorted_codes(ids: pa.ChunkedArray) -> IntArray:
    """Return the (rows,) codes of ids, numbered from 0 in the sorting order of the ids."""
    known = pc.unique(ids)
    known = known.take(pc.sort_indices(known))
    return pc.index_in(ids, value_set=known).to_numpy().astype(np.int64)


def _positions(users: IntArray) -> tuple[IntArray, IntArray]:
    """Return the position of each row among those of its user, from 0, and their number; rows are sorted by user."""
    counts = np.bincount(users)
    starts = np.cumsum(counts) - counts
    return np.arange(len(users)) - starts[users], counts[users]
