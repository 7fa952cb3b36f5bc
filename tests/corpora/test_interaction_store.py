"""Preparation by the engine: equal to plain numpy, however the rows arrive and however little memory there is."""

from __future__ import annotations

import datetime
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_preparation import as_table, prepared

from modeling_cllm4rec.corpora import data_folder, interaction_store
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.interaction_store import Bounds, InteractionStore
from modeling_cllm4rec.corpora.preparation import prepare_tables

ROW = st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(-2, 4), st.integers(1, 5))


def columns_of(rows: list[tuple[int, int, int, int]], ids: str) -> tuple[list, list, list, list]:
    users, items, times, ratings = (list(column) for column in zip(*rows, strict=True))
    if ids == "texts":  # whose sorting order is that of bytes: capital before small letters, umlauts last
        users, items = (
            ["aBÄ🙂_1"[user] for user in users],
            [("z", "Z", "10", "9", "é", "", "\0x", "a b")[i] + "i" for i in items],
        )
    return users, items, times, ratings


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(
    st.lists(ROW, min_size=8, max_size=40),
    st.sampled_from(["random", "leave-one-out", "temporal"]),
    st.sampled_from(["texts", "numbers"]),
    st.sampled_from([None, 2, 4]),
    st.sampled_from([0, 2, 3]),
    st.sampled_from(["train", "drop"]),
    st.booleans(),
    st.sampled_from([1, 10, 100]),
)
def test_equal_to_numpy(
    tmp_path: Path,
    rows: list[tuple[int, int, int, int]],
    split: str,
    ids: str,
    min_rating: float | None,
    k_core: int,
    short_users: str,
    by_time: bool,
    chunk: int,
) -> None:
    by_time = by_time or split == "temporal"
    users, items, times, ratings = columns_of(rows, ids)
    raw = as_table(users, items, times if by_time else None, ratings)
    arguments: dict[str, Any] = {"seed": 3, "min_rating": min_rating, "k_core": k_core}
    if split != "temporal":
        arguments["short_users"] = short_users
    try:
        # The same rows arrive in one table and in many batches.
        whole = prepare_tables(
            raw, None, None, tmp_path / "a", split=split, overwrite=True, order="time" if by_time else "rows", **arguments
        )
    except ValueError as error:
        assert "no interaction is left" in str(error) or "leave" in str(error)
        return
    user_ids, item_ids, columns = prepared(users, items, times if by_time else None, ratings, split, **arguments)
    assert whole.users["user_id"].to_pylist() == user_ids
    assert whole.items["item_id"].to_pylist() == item_ids
    assert whole.interactions.to_pydict() == columns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interaction_store, "CHUNK", chunk)
        patch.setattr(data_folder, "ROW_GROUP", 7)
        reader = pa.RecordBatchReader.from_batches(raw.schema, raw.to_batches(max_chunksize=9))
        parts = prepare_tables(
            reader, None, None, tmp_path / "b", split=split, overwrite=True, order="time" if by_time else "rows", **arguments
        )
    assert parts.interactions.equals(whole.interactions)
    assert parts.info == whole.info


def log(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    users, items = (rng.integers(rows // 8, size=rows) for _ in range(2))
    return pa.table(
        {
            "user_id": [f"{user:027d}" for user in users],
            "item_id": [f"{item:010d}" for item in items],
            "timestamp": rng.integers(10**9, size=rows),
            "review": [f"review {row} {'word ' * 8}" for row in range(rows)],
        }
    )


def test_a_small_memory_limit_changes_nothing(tmp_path: Path) -> None:
    raw = log(60_000)
    enough = prepare_tables(raw, None, None, tmp_path / "a", k_core=5)
    little = prepare_tables(raw, None, None, tmp_path / "b", k_core=5, memory_limit="24MB")
    assert little.info == enough.info
    files = [sorted((tmp_path / name).iterdir()) for name in "ab"]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    for one, other in zip(*files, strict=True):
        assert one.name == "README.md" or one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_too_little_memory(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match="memory_limit is too small for this data .* memory_limit='8GB'"):
        prepare_tables(log(50_000), None, None, tmp_path / "a", memory_limit="1MB")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="memory_limit must be a size such as '4GB' or '500MB', got '4'"):
        prepare_tables(log(100), None, None, tmp_path / "a", memory_limit="4")


@contextmanager
def loaded(table: pa.Table, **settings: Any) -> Iterator[InteractionStore]:
    with tempfile.TemporaryDirectory() as folder, InteractionStore(Path(folder), **settings) as store:
        store.load(table, with_split="split" in table.column_names)
        yield store


def rows_of(store: InteractionStore) -> list[int]:
    """Return the numbers of the rows that are left, ascending."""
    return sorted(row for part in store.by_user(store.entities("user").codes) for row in part["row"].to_pylist())


def test_last_or_first_of_repeated_pairs_by_time_then_by_row() -> None:
    raw = pa.table({"user_id": ["a", "b", "a", "a", "a"], "item_id": [1, 1, 1, 2, 2], "timestamp": [9, 5, 3, 7, 7]})
    with loaded(raw) as store:
        assert (store.keep_one_of_pairs(), rows_of(store)) == (2, [0, 1, 4])
    with loaded(raw) as store:
        assert (store.keep_one_of_pairs(last=False), rows_of(store)) == (2, [1, 2, 3])
    for settings_, table in ({"by_time": False}, raw), ({}, raw.drop_columns(["timestamp"])):
        with loaded(table, **settings_) as store:
            assert (store.keep_one_of_pairs(), rows_of(store)) == (2, [1, 2, 4])
        with loaded(table, **settings_) as store:
            assert (store.keep_one_of_pairs(last=False), rows_of(store)) == (2, [0, 1, 3])


def test_min_rating() -> None:
    raw = pa.table({"user_id": ["a", "a", "b", "c"], "item_id": [1, 1, 1, 1], "rating": [5, 3, 4, 3.5]})
    with loaded(raw) as store:
        assert store.keep_one_of_pairs() == 1  # The last rating of a pair counts, and not its best.
        assert (store.keep_well_rated(4), rows_of(store)) == (2, [2])
    with loaded(pa.table({"user_id": ["a"], "item_id": [1], "rating": pa.array([None], pa.float64())})) as store:
        with pytest.raises(ValueError, match="min_rating 4 needs all ratings, but rating is missing in 1 rows"):
            store.keep_well_rated(4)
    with loaded(raw.drop_columns(["rating"])) as store:
        with pytest.raises(ValueError, match="min_rating 4 needs a column of ratings; name it with rating_column"):
            store.keep_well_rated(4)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=40, unique=True),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_bounds_like_removing_one_row_after_the_other(pairs: list[tuple[int, int]], users: int, items: int) -> None:
    left = list(range(len(pairs)))
    changed = True
    while changed:
        changed = False
        for row in left:
            few_users = sum(pairs[other][0] == pairs[row][0] for other in left) < users
            if few_users or sum(pairs[other][1] == pairs[row][1] for other in left) < items:
                left.remove(row)
                changed = True
                break
    table = pa.table(dict(zip(("user_id", "item_id"), zip(*pairs, strict=True), strict=True)))
    with loaded(table) as store:
        assert store.keep_within(Bounds(users), Bounds(items)) == len(pairs) - len(left)
        assert store.num_left == len(left)
        assert not left or rows_of(store) == left


def test_most_interactions() -> None:
    with loaded(pa.table({"user_id": list("aaabbc"), "item_id": [1, 2, 3, 1, 2, 1]})) as store:
        assert store.keep_within(Bounds(2, 2), Bounds()) == 4
        assert rows_of(store) == [3, 4]


def test_a_pair_in_two_splits() -> None:
    raw = pa.table({"user_id": ["a", "b", "a"], "item_id": [1, 1, 1], "split": ["train", "train", "test"]})
    with loaded(raw) as store, pytest.raises(ValueError, match=r"1 repeated .* than one split: users 'a' with items 1; a pair"):
        store.keep_one_of_pairs()


def test_entities_come_in_order_of_first_appearance() -> None:
    with loaded(pa.table({"user_id": pa.array([9, 2, 9], pa.uint8()), "item_id": ["b", "a", "c"]})) as store:
        ids, codes, rows = store.entities("user")
    assert (ids.to_pylist(), ids.type, codes.tolist(), rows.tolist()) == ([9, 2], pa.uint8(), [1, 0], [2, 1])


@pytest.mark.parametrize(
    ("times", "stored", "unit"),
    [
        ([30, 10, 20], [30, 10, 20], "s"),
        ([1.5e9, 1.5e9 + 1, 1.5e9 + 2], [1_500_000_000, 1_500_000_001, 1_500_000_002], "s"),
        ([1593878903.9, 1593878903.1, 1593878904.0], [1593878903900, 1593878903100, 1593878904000], "ms"),
        (["1593878903.9", "1593878903", " 1593878904.25 "], [1593878903900, 1593878903000, 1593878904250], "ms"),
        ([1593878903000, 1593878903001, 5], [1593878903000, 1593878903001, 5], "ms"),
        ([1593878903000000] * 3, [1593878903000000] * 3, "us"),
        (
            ["1593878903123456789", "1593878903123456788", "1593878903123456790"],
            [1593878903123456789 + k for k in (0, -1, 1)],
            "ns",
        ),
        ([0.9, 0.1, 0.5], [900, 100, 500], "ms"),
        ([1 / 3, 1 / 7, 1e-15], [1 / 3, 1 / 7, 1e-15], "order"),
        (["2020-07-04T16:08:23.9", "2020-07-04", "2020-07-05"], [1593878903900, 1593820800000, 1593907200000], "ms"),
        (["1970-01-01T01:00:00+01:00", "1970-01-01 00:00:05Z", "1970-01-02"], [0, 5, 86400], "s"),
        (
            [datetime.datetime(1970, 1, 1, 0, 1), datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000)] * 2,
            [60000, -500] * 2,
            "ms",
        ),
        ([datetime.date(1970, 1, 3), datetime.date(1970, 1, 1), datetime.date(1970, 1, 2)], [172800, 0, 86400], "s"),
        (pa.array([3_600_000, 1, 2], pa.timestamp("ms", "Europe/Berlin")), [3_600_000, 1, 2], "ms"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_times_keep_their_full_value(tmp_path: Path, times: Any, stored: list, unit: str, pieces: int) -> None:
    """The same in one piece and in three, of which the first may be coarser than the next."""
    raw = pa.table({"user_id": list("abcd")[: len(times)], "item_id": ["x"] * len(times), "timestamp": times})
    with pytest.MonkeyPatch.context() as patch:
        if pieces == 3:
            patch.setattr(interaction_store, "CHUNK", 1)
        data = prepare_tables(raw, None, None, tmp_path / "data")
    assert data.interactions["timestamp"].to_pylist() == stored
    assert (data.time_unit, data.info["time_unit"]) == (unit, unit)


@pytest.mark.parametrize(
    "times",
    [
        [1593878903.9, 1593878903.1, 1593878903.5, 1593878904.0],
        ["2020-07-04T16:08:23.9", "2020-07-04T16:08:23.1", "2020-07-04T16:08:23.5", "2020-07-04T16:08:24"],
        pa.array([900, 100, 500, 1000], pa.timestamp("ms")),
        [0.9, 0.1, 0.5, 1.0],
    ],
)
def test_times_within_a_second_order(tmp_path: Path, times: Any) -> None:
    """Of a, b, c, d the last but one in time is a; by whole seconds it was c."""
    raw = pa.table({"user_id": ["u"] * 4, "item_id": list("abcd"), "timestamp": times})
    data = prepare_tables(raw, None, None, tmp_path / "data", split="leave-one-out")
    items = data.items["item_id"].take(data.interactions["item_index"]).to_pylist()
    assert dict(zip(items, data.interactions["split"].to_pylist(), strict=True)) == {
        "b": "train",
        "c": "train",
        "a": "validation",
        "d": "test",
    }


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, float("nan")], r"timestamp is neither seconds since 1970 nor an ISO-8601 time in row 2: nan"),
        ([1.0, float("inf")], "in row 2: inf"),
        ([1, None], "in row 2: None"),
        (["5", "soon"], "in row 2: 'soon'"),
        (["2020-01-01", "2020-13-01"], "in row 2: '2020-13-01'"),
        (
            ["31.12.2024 18:21", "1.1.2025"],
            r"'31.12.2024 18:21', '1.1.2025'; write such dates as .*to_datetime.*dayfirst=True\)$",
        ),
        (["2024-12-31", "12/31/2024"], "in row 2: '12/31/2024'; write such dates as 2024-12-31, with pandas"),
        (["soon", "later"], "in rows 1, 2: 'soon', 'later'$"),
        (["2020-01-01", ""], "in row 2: ''"),
        (["2020-01-01T00:00:00.123456789", "3000-01-01"], "does not fit into 64 bits in ns, .* in row 2: '3000-01-01'"),
        (["2020-01-01T00:00:00.123456789", "2020-13-01"], "nor an ISO-8601 time in row 2: '2020-13-01'"),
        ([True, False], "got bool"),
        ([1.0, 1e300], r"timestamp does not fit into 64 bits in row 2: 1e\+300"),
        (["1", "1e300"], "timestamp does not fit into 64 bits in row 2: '1e300'"),
        (pa.array([1, 2**63], pa.uint64()), "timestamp does not fit into 64 bits in row 2: 9223372036854775808"),
        ([1593878903, 1593878903000], r"mixes units: 1593878903 counts s and 1593878903000 counts ms .* \(rows 1 and 2\)"),
        (["1593878903123456", "0.5"], "whole numbers of 16 and more digits, .* in row 2: '0.5'"),
    ],
)
def test_bad_times(times: Any, message: str) -> None:
    with (
        pytest.raises(ValueError, match=message),
        loaded(pa.table({"user_id": ["a"] * 2, "item_id": [1, 2], "timestamp": times})),
    ):
        pass


def test_times_that_change_their_form_from_one_piece_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interaction_store, "CHUNK", 1)
    for times, message in (
        (["1593878903", "2020-01-01"], "timestamp mixes numbers and dates: dates from row 2 on"),
        (["9007199254740993", "0.5"], r"16 and more digits, which the fractions of other rows would cut, \(rows 1 and 2 on\)"),
        (["0.5", "9007199254740993"], "would cut, in row 2: 9007199254740993"),
        (["3000-01-01", "2020-01-01T00:00:00.123456789"], "fit into 64 bits in ns, which (other rows need|pandas 2 counts)"),
    ):
        raw = pa.table({"user_id": ["a"] * 2, "item_id": [1, 2], "timestamp": times})
        with pytest.raises(ValueError, match=message), loaded(raw):
            pass


def test_row_numbers_go_on_over_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interaction_store, "CHUNK", 2)
    with (
        pytest.raises(ValueError, match="item_id is empty or NaN in row 4"),
        loaded(pa.table({"user_id": ["a"] * 4, "item_id": ["x", "y", "z", None]})),
    ):
        pass


def test_a_killed_preparation_leaves_the_old_folder(tmp_path: Path) -> None:
    raw = log(3_000)
    before = prepare_tables(raw, None, None, tmp_path / "data")
    pq.write_table(raw, tmp_path / "log.parquet")
    code = (
        "import os, signal, sys, pyarrow.parquet as pq\n"
        "from modeling_cllm4rec.corpora.preparation import prepare_tables\n"
        "kill = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 'writing' else None\n"
        "prepare_tables(pq.read_table(sys.argv[1]), None, None, sys.argv[2], overwrite=True, on_step=kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log.parquet"), str(tmp_path / "data")])
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    assert RecommendationData.load(tmp_path / "data").interactions.equals(before.interactions)
    prepare_tables(raw, None, None, tmp_path / "data", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "log.parquet"]
