"""The four ways to split, against plain Python and by hand."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_cllm4rec.corpora.interaction_store import InteractionStore
from modeling_cllm4rec.corpora.splits import (
    SPLITS,
    Splitter,
    check_no_split_is_empty,
    check_split,
    leave_one_out_split,
    split_names,
)

SIZES = st.lists(st.integers(3, 45), min_size=1, max_size=6)


def table_of(sizes: list[int]) -> pa.Table:
    pairs = [(f"u{user}", item) for user, size in enumerate(sizes) for item in range(size)]
    users, items = zip(*pairs, strict=True)
    return pa.table({"user_id": users, "item_id": items})


def assign_splits(table: pa.Table, split: str, seed: int = 42, cuts: tuple[float, float] = (0.8, 0.9)) -> tuple[np.ndarray, dict]:
    """Return the split codes in the order of the rows, and the protocol."""
    codes = np.full(table.num_rows, -1)
    check_split(split, table.column_names, "time" if "timestamp" in table.column_names else "rows", seed, cuts)
    with tempfile.TemporaryDirectory() as folder, InteractionStore(Path(folder)) as store:
        store.load(table, with_split=split == "given")
        users = store.entities("user")
        splitter = Splitter(store, users, split, Path(folder), seed=seed, temporal_cuts=cuts)
        for part in store.by_user(users.codes):
            codes[part["row"].to_numpy()] = splitter.split_users(part)
        splitter.close()
    check_no_split_is_empty(splitter.protocol, {name: int((codes == code).sum()) for code, name in enumerate(SPLITS)})
    return codes, splitter.protocol


def as_dict(table: pa.Table, codes: np.ndarray) -> dict[tuple[str, int], int]:
    pairs = zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)
    return dict(zip(pairs, codes.tolist(), strict=True))


@settings(deadline=None, max_examples=10)
@given(SIZES, st.integers(0, 2**40))
def test_random_shares(sizes: list[int], seed: int) -> None:
    codes, done = assign_splits(table_of(sizes), "random", seed=seed)
    assert done == {"split": "random", "seed": seed}
    start = 0
    for size in sizes:
        held = max(1, int(0.1 * size))
        assert np.bincount(codes[start : start + size], minlength=3).tolist() == [size - 2 * held, held, held]
        start += size


@settings(deadline=None, max_examples=10)
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
    table = pa.table({"user_id": users, "item_id": items})
    codes, _ = assign_splits(table, "random", seed=5)
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
    expected = [0] * len(rows)
    for user in range(4):
        mine = sorted((row for row in range(len(rows)) if rows[row][0] == user), key=lambda row: rows[row][1])
        if len(mine) < 3:
            continue
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


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 30), min_size=12, max_size=60))
def test_temporal_never_looks_ahead(times: list[int]) -> None:
    table = pa.table({"user_id": ["a"] * len(times), "item_id": range(len(times)), "timestamp": times})
    try:
        codes, _ = assign_splits(table, "temporal", cuts=(0.5, 0.75))
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
    with pytest.raises(ValueError, match="seed is -1; it must be at least 0"):
        assign_splits(table, "random", seed=-1)
    with pytest.raises(ValueError, match="order must be one of time, rows, got 'file'"):
        check_split("random", table.column_names, "file", 1, (0.8, 0.9))
    with pytest.raises(ValueError, match="'temporal' needs times, which order 'rows' does not read; choose order 'time'"):
        check_split("temporal", table.column_names, "rows", 1, (0.8, 0.9))
    for split in ("leave-one-out", "temporal"):
        with pytest.raises(ValueError, match=f"split '{split}' needs a column of times; name it with timestamp_column=..."):
            check_split(split, table.column_names, "time", 1, (0.8, 0.9))
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
            check_split("temporal", ["timestamp"], "time", 1, cuts)
    table = table_of([4])
    with pytest.raises(ValueError, match="0.5 and 0.75 fall on the times 3 and 3, which leave nothing for train"):
        assign_splits(table.append_column("timestamp", pa.array([3] * 4)), "temporal", cuts=(0.5, 0.75))
    with pytest.raises(ValueError, match="leave nothing for validation; choose other shares"):
        assign_splits(table.append_column("timestamp", pa.array([1, 2, 2, 2])), "temporal", cuts=(0.5, 0.75))


def test_likely_time_columns_are_named() -> None:
    names = ["reviewerID", "unixReviewTime", "overall"]
    with pytest.raises(ValueError, match=r"timestamp_column=\.\.\. \('unixReviewTime' may be it\), or pass order='rows' if"):
        check_split("leave-one-out", ["user_id", "item_id"], "time", 1, (0.8, 0.9), names)


def test_short_users_are_in_train_only() -> None:
    """Of one and two interactions none is held out, of three one each."""
    for split in ("random", "leave-one-out"):
        codes, _ = assign_splits(table_of([1, 2, 3]), split, seed=4)
        assert codes[:3].tolist() == [0, 0, 0]
        assert sorted(codes[3:].tolist()) == [0, 1, 2]
