"""The four ways to split, against plain Python and by hand."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.corpora.splits import (
    SPLITS,
    assign_splits,
    leave_one_out_split,
    random_split,
    split_names,
    temporal_split,
)

SIZES = st.lists(st.integers(3, 45), min_size=1, max_size=6)


def table_of(sizes: list[int]) -> pa.Table:
    pairs = [(f"u{user}", item) for user, size in enumerate(sizes) for item in range(size)]
    users, items = zip(*pairs, strict=True)
    return pa.table({"user_id": users, "item_id": items})


def as_dict(table: pa.Table, codes: np.ndarray) -> dict[tuple[str, int], int]:
    pairs = zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)
    return dict(zip(pairs, codes.tolist(), strict=True))


@given(SIZES, st.integers(0, 2**40))
def test_random_shares(sizes: list[int], seed: int) -> None:
    codes, done = assign_splits(table_of(sizes), "random", seed=seed)
    assert done == {"split": "random", "seed": seed}
    start = 0
    for size in sizes:
        held = max(1, int(0.1 * size))
        assert np.bincount(codes[start : start + size], minlength=3).tolist() == [size - 2 * held, held, held]
        start += size


@given(SIZES, st.randoms(use_true_random=False))
def test_random_does_not_depend_on_row_order(sizes: list[int], random: object) -> None:
    table = table_of(sizes)
    rows = list(range(table.num_rows))
    random.shuffle(rows)  # type: ignore[attr-defined]
    shuffled = table.take(pa.array(rows))
    codes, _ = assign_splits(table, "random", seed=7)
    again, _ = assign_splits(shuffled, "random", seed=7)
    assert as_dict(table, codes) == as_dict(shuffled, again)


def test_random_like_plain_python() -> None:
    """Draws in the order of sorted pairs; of each user the smallest draws are test, the next validation."""
    users, items = np.array([1, 0, 1, 1, 0, 0, 1]), np.array([2, 0, 1, 0, 2, 1, 3])
    draws = iter(np.random.default_rng(5).random(7))
    of_user: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for user, item in sorted(zip(users.tolist(), items.tolist(), strict=True)):
        of_user[user].append((float(next(draws)), item))
    expected = {}
    for user, drawn in of_user.items():
        for place, (_, item) in enumerate(sorted(drawn)):
            expected[user, item] = (2, 1, 0, 0)[place]
    codes = random_split(users, items, seed=5)
    assert dict(zip(zip(users.tolist(), items.tolist(), strict=True), codes.tolist(), strict=True)) == expected


def test_random_is_fixed_by_its_seed() -> None:
    table = table_of([10, 10, 10])
    codes = [assign_splits(table, "random", seed=seed)[0].tolist() for seed in (1, 1, 2)]
    assert codes[0] == codes[1] != codes[2]
    assert [SPLITS[code] for code in codes[0]].count("test") == 3


def test_random_holds_out_everything_alike() -> None:
    """Of 3,000 users with three items each item is test for about a third: within four standard deviations."""
    codes, _ = assign_splits(table_of([3] * 3000), "random", seed=0)
    tests = (codes.reshape(3000, 3) == 2).sum(axis=0)
    assert np.abs(tests - 1000).max() < 4 * np.sqrt(3000 * 2 / 9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40))
def test_leave_one_out_like_plain_python(rows: list[tuple[int, int]]) -> None:
    rows = [*rows, *((user, 5) for user in range(4) for _ in range(3))]
    expected = [0] * len(rows)
    for user in range(4):
        mine = sorted((row for row in range(len(rows)) if rows[row][0] == user), key=lambda row: rows[row][1])
        expected[mine[-1]], expected[mine[-2]] = 2, 1
    users, times = np.array(rows).T
    assert leave_one_out_split(users, times).tolist() == expected


def test_leave_one_out_without_times_goes_by_rows() -> None:
    codes, done = assign_splits(table_of([4, 3]), "leave-one-out")
    assert codes.tolist() == [0, 0, 1, 2, 0, 1, 2]
    assert done == {"split": "leave-one-out", "seed": None}


def test_temporal_cuts_one_time_for_all() -> None:
    table = table_of([5, 5]).append_column("timestamp", pa.array([10, 20, 30, 40, 50, 60, 70, 80, 90, 100]))
    codes, done = assign_splits(table, "temporal")
    assert codes.tolist() == [0] * 8 + [1, 2]
    assert done == {"split": "temporal", "seed": None, "temporal_cuts": [0.8, 0.9], "cut_times": [90, 100]}


@given(st.lists(st.integers(0, 30), min_size=12, max_size=60))
def test_temporal_never_looks_ahead(times: list[int]) -> None:
    try:
        codes, _ = temporal_split(np.array(times), (0.5, 0.75))
    except ValueError as error:
        assert "leave nothing for" in str(error)
        return
    by_split = [np.array(times)[codes == code] for code in range(3)]
    assert by_split[0].max() < by_split[1].min() <= by_split[1].max() < by_split[2].min()


def test_given_is_kept() -> None:
    table = table_of([3]).append_column("split", pa.array(["test", "train", "validation"]))
    codes, done = assign_splits(table, "given")
    assert split_names(codes).to_pylist() == ["test", "train", "validation"]
    assert Counter(codes.tolist()) == {0: 1, 1: 1, 2: 1}
    assert done == {"split": "given", "seed": None}


def test_bad_splits() -> None:
    table = table_of([3, 2, 1])
    with pytest.raises(ValueError, match="split must be one of random, leave-one-out, temporal, given, got 'loo'"):
        assign_splits(table, "loo")
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        assign_splits(table, "random", seed=-1)
    for split in ("random", "leave-one-out"):
        with pytest.raises(ValueError, match="but 2 of 3 users have fewer: 'u1', 'u2'; remove them with k_core=3"):
            assign_splits(table, split)
    with pytest.raises(ValueError, match="'temporal' needs a column of times"):
        assign_splits(table, "temporal")
    with pytest.raises(ValueError, match="'given' needs a column of split names"):
        assign_splits(table, "given")


def test_bad_values_of_a_given_split() -> None:
    table = table_of([3])
    odd = table.append_column("split", pa.array(["train", "val", None]))
    with pytest.raises(ValueError, match="split has the values 'val', None; they must be train, validation, test"):
        assign_splits(odd, "given")
    with pytest.raises(ValueError, match="'given' leaves no interaction for train"):
        assign_splits(table.append_column("split", pa.array(["test"] * 3)), "given")


def test_bad_temporal_cuts() -> None:
    for cuts in ((0.9, 0.8), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5)):
        with pytest.raises(ValueError, match="temporal_cuts must be two shares with 0 < first < second < 1"):
            temporal_split(np.arange(10), cuts)
    with pytest.raises(ValueError, match="leave nothing for train"):
        temporal_split(np.zeros(10, dtype=int), (0.8, 0.9))
    with pytest.raises(ValueError, match="leave nothing for validation"):
        temporal_split(np.array([1, 2, 2, 2]), (0.5, 0.75))
