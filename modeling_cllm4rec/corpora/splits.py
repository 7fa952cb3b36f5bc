"""Splits of interactions into train, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.interaction_store import CHUNK, SPLITS, Entities, IntArray, InteractionStore
from modeling_cllm4rec.corpora.times import likely_time_columns

SPLIT_KINDS = ("random", "leave-one-out", "temporal", "given")
"""Values of `split` of `prepare`."""
ORDERS = ("time", "rows")
"""How a history is ordered: by time, or by the rows of the source."""
SHORT_USERS = ("train", "drop", "error")
"""Treatment of users with fewer than `LEAST_INTERACTIONS` interactions, where a split holds out some of each user."""
LEAST_INTERACTIONS = 3
"""Least interactions of a user, for one in each split."""

SplitCodes = npt.NDArray[np.int8]
"""Split of each interaction: 0 train, 1 validation, 2 test."""


class Splitter:
    """Divide interactions into train, validation and test, some users at a time.

    Args:
        store: the interactions that are left after all filters.
        users: the users that are left.
        split: `random`: 80/10/10 of each user, at least one each in validation and test (as in the paper, see
            `random_split`); `leave-one-out`: the last interaction of each user is test, the last but one validation;
            `temporal`: two points in time for all users, see `temporal_split`; `given`: the column `split`.
        folder: an existing folder for the random numbers of `random`; the caller removes it.
        seed: seed of the random numbers of `random`.
        temporal_cuts: shares of interactions before the two points in time of `temporal`.

    Attributes:
        protocol: `split`, `seed` (`None` if nothing is random) and for `temporal` `temporal_cuts` and `cut_times`.

    Raises:
        InputError: a column is missing, or a split would be empty.
    """

    def __init__(
        self,
        store: InteractionStore,
        users: Entities,
        split: str,
        folder: Path,
        *,
        seed: int = 42,
        temporal_cuts: tuple[float, float] = (0.8, 0.9),
    ) -> None:
        self._split = split
        self.protocol: dict[str, Any] = {"split": split, "seed": seed if split == "random" else None}
        if split == "random":
            _, codes, rows = users
            # Numbers are drawn in the order of the codes of pairs, which is that of the ids and not of the rows.
            self._starts = np.zeros(int(codes.max()) + 2, dtype=np.int64)
            self._starts[codes + 1] = rows
            self._starts = np.cumsum(self._starts)
            self._draws = _draw_numbers(int(rows.sum()), seed, folder / "draws")
        elif split == "temporal":
            cuts = (store.time_at(temporal_cuts[0]), store.time_at(temporal_cuts[1]))
            self._cut_times = cuts
            self.protocol |= {"temporal_cuts": list(temporal_cuts), "cut_times": list(cuts)}

    def split_users(self, table: pa.Table) -> SplitCodes:
        """Return the (rows,) split codes of all rows of some users, a table of `InteractionStore.by_user`."""
        if self._split == "given":
            return table["split"].to_numpy().astype(np.int8)
        if self._split == "temporal":
            return temporal_split(table["time"].to_numpy(), self._cut_times)
        users = table["u"].to_numpy()
        if self._split == "leave-one-out":
            return leave_one_out_split(users, np.arange(len(users)))  # The rows come in the order of time.
        items = table["i"].to_numpy()
        order = np.lexsort((items, users))
        draws = np.empty(len(users))
        draws[order] = self._draws[self._starts[users[order]] + _positions(users[order])[0]]
        return random_split(users, items, draws)

    def close(self) -> None:
        """Let go of the file of random numbers."""
        self._draws = np.empty(0)


def check_split(
    split: str,
    columns: Sequence[str],
    order: str,
    seed: int,
    temporal_cuts: tuple[float, float],
    source_columns: Sequence[str] = (),
) -> None:
    """Check that a split can be made from the columns of a table.

    Args:
        split, seed, temporal_cuts: see `Splitter`.
        columns: columns of the table.
        order: `time` or `rows`.
        source_columns: all columns of the source, for the message.

    Raises:
        InputError: it cannot; the way out is named.
    """
    for name, value, allowed in (("split", split, SPLIT_KINDS), ("order", order, ORDERS)):
        if value not in allowed:
            raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be at least 0")
    first, second = temporal_cuts
    if not 0 < first < second < 1:
        raise InputError(f"temporal_cuts must be two shares with 0 < first < second < 1, got {first} and {second}")
    if split == "given" and "split" not in columns:
        raise InputError("split 'given' needs a column of split names; name it with split_column=...")
    if split == "temporal" and order == "rows":
        raise InputError("split 'temporal' needs times, which order 'rows' does not read; choose order 'time' or another split")
    if split in ("leave-one-out", "temporal") and order == "time" and "timestamp" not in columns:
        likely = likely_time_columns(source_columns or columns)
        found = f" ({', '.join(map(repr, likely))} may be it)" if likely else ""
        rows = ", or pass order='rows' if the rows of each user are in the order of time" if split == "leave-one-out" else ""
        raise InputError(f"split {split!r} needs a column of times; name it with timestamp_column=...{found}{rows}")


def random_split(users: IntArray, items: IntArray, draws: npt.NDArray[np.float64]) -> SplitCodes:
    """Split the interactions of each user 80/10/10 at random, like the data of the paper.

    Of n interactions, max(1, int(n / 10)) go to test, the same number to validation, and the others to train. Users with fewer
    than `LEAST_INTERACTIONS` are in train only.

    Args:
        users: (rows,) user codes from 0.
        items: (rows,) item codes.
        draws: (rows,) random numbers, one a row.

    Returns:
        (rows,) split codes.

    Example:
        >>> codes = random_split(np.zeros(20, dtype=int), np.arange(20), np.random.default_rng(1).random(20))
        >>> np.bincount(codes).tolist()
        [16, 2, 2]
    """
    order = np.lexsort((items, draws, users))
    positions, counts = _positions(users[order])
    num_held_out = np.where(counts < LEAST_INTERACTIONS, 0, np.maximum(1, counts // 10))
    codes = np.empty(len(users), dtype=np.int8)
    codes[order] = (positions < 2 * num_held_out).astype(np.int8) + (positions < num_held_out)
    return codes


def leave_one_out_split(users: IntArray, times: npt.NDArray[np.number]) -> SplitCodes:
    """Put the last interaction of each user into test and the last but one into validation.

    Users with fewer than `LEAST_INTERACTIONS` are in train only.

    Args:
        users: (rows,) user codes from 0.
        times: (rows,) times; of equal times, the later row counts as later.

    Returns:
        (rows,) split codes.

    Example:
        >>> leave_one_out_split(np.array([0, 0, 0, 0, 1]), np.array([5, 9, 1, 9, 3])).tolist()
        [0, 1, 0, 2, 0]
    """
    order = np.lexsort((times, users))
    positions, counts = _positions(users[order])
    codes = np.empty(len(users), dtype=np.int8)
    codes[order] = np.where(counts < LEAST_INTERACTIONS, 0, np.maximum(0, positions - counts + 3))
    return codes


def temporal_split(times: npt.NDArray[np.number], cut_times: tuple[float, float]) -> SplitCodes:
    """Split interactions at two points in time, the same for all users.

    Args:
        times: (rows,) times.
        cut_times: the first time of validation and the first time of test.

    Returns:
        (rows,) split codes.

    Example:
        >>> temporal_split(np.array([30, 10, 20, 40, 50]), (40, 50)).tolist()
        [0, 0, 0, 1, 2]
    """
    return (times >= cut_times[0]).astype(np.int8) + (times >= cut_times[1])


def check_no_split_is_empty(protocol: dict[str, Any], counts: dict[str, int]) -> None:
    """Check that train has interactions, and with a temporal split all three.

    Args:
        protocol: see `Splitter`.
        counts: split -> number of interactions.

    Raises:
        InputError: there are none.
    """
    for name in SPLITS if protocol["split"] == "temporal" else ():
        if not counts[name]:
            (first, second), times = protocol["temporal_cuts"], protocol["cut_times"]
            raise InputError(
                f"temporal_cuts {first} and {second} fall on the times {times[0]} and {times[1]}, which leave nothing for "
                f"{name}; choose other shares"
            )
    if not counts["train"]:
        raise InputError(f"split {protocol['split']!r} leaves no interaction for train; there must be at least one")


def split_names(codes: SplitCodes) -> pa.Array:
    """Return the (rows,) names of split codes.

    >>> split_names(np.array([0, 2], dtype=np.int8)).to_pylist()
    ['train', 'test']
    """
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(SPLITS)).cast(pa.string())


def _draw_numbers(number: int, seed: int, file: Path) -> npt.NDArray[np.float64]:
    """Return random numbers in [0, 1), which are in a file and not in memory."""
    generator = np.random.default_rng(seed)
    draws = np.memmap(file, dtype=np.float64, mode="w+", shape=(number,))
    for start in range(0, number, CHUNK):  # The same numbers as of one call.
        draws[start : start + CHUNK] = generator.random(min(CHUNK, number - start))
    return draws


def _positions(users: IntArray) -> tuple[IntArray, IntArray]:
    """Return the position of each row among those of its user, from 0, and their number; rows are sorted by user."""
    if not len(users):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.diff(users, prepend=users[0] - 1))
    counts = np.diff(starts, append=len(users))
    return np.arange(len(users)) - np.repeat(starts, counts), np.repeat(counts, counts)


__all__ = [
    "LEAST_INTERACTIONS",
    "ORDERS",
    "SHORT_USERS",
    "SPLITS",
    "SPLIT_KINDS",
    "SplitCodes",
    "Splitter",
    "check_no_split_is_empty",
    "check_split",
    "leave_one_out_split",
    "random_split",
    "split_names",
    "temporal_split",
]
