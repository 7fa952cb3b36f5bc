"""Columns, ids and cleaning of interactions."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.corpora.interactions import (
    check_ids,
    check_interactions,
    check_texts,
    clean_interactions,
    encode,
    first_of,
    k_core_rows,
    read_interactions,
    read_texts,
)

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=40)
AWKWARD = ["user_1", "<item_3>", "🙂", "two words", " ", "0", "-1", "nan", "NULL", "a\tb"]


def interactions(**columns: Any) -> pa.Table:
    rows = max(len(column) for column in columns.values())
    return pa.table({"user_id": ["u"] * rows, "item_id": list(range(rows))} | columns)


def test_awkward_ids_are_plain_ids() -> None:
    ids = [value for value in AWKWARD if value.strip()]
    assert check_interactions(interactions(user_id=ids))["user_id"].to_pylist() == ids


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint64()])
def test_integer_ids_keep_their_type(kind: pa.DataType) -> None:
    assert check_ids(pa.chunked_array([[3, 1], [2]], kind), "user_id").type == kind


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_all_encodings_of_text_are_one(kind: pa.DataType) -> None:
    ids = check_ids(pa.array(["b", "a"]).cast(pa.string()).cast(kind), "user_id")
    assert ids.type == pa.large_string()
    assert ids.to_pylist() == ["b", "a"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", None, "b"], "user_id is empty or NaN in row 2; each row needs one"),
        (["a", "", "  "], "user_id is empty or NaN in rows 2, 3"),
        ([1.0, float("nan"), 2.0], "user_id is empty or NaN in row 2"),
        ([None] * 8, "user_id is empty or NaN in rows 1, 2, 3, 4, 5 and 3 more"),
        ([1.0, 2.0], "user_id must hold texts or integers, got double"),
        ([True, False], "user_id must hold texts or integers, got bool"),
        ([["a"], ["b"]], "user_id must hold texts or integers, got list"),
    ],
)
def test_bad_ids(ids: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_interactions(interactions(user_id=ids))


def test_missing_column_and_empty_table() -> None:
    with pytest.raises(ValueError, match="no column 'item_id'; the columns are user_id, itemid; did you mean 'itemid'"):
        check_interactions(pa.table({"user_id": ["a"], "itemid": [1]}))
    with pytest.raises(ValueError, match="interactions: the table has no rows"):
        check_interactions(pa.table({"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())}))


@pytest.mark.parametrize(
    ("given_times", "seconds"),
    [
        ([0, 86400], [0, 86400]),
        ([1.9, -0.5], [1, -1]),
        (["10", " 20.5 "], [10, 20]),
        (["1970-01-02", "1970-01-01T00:00:01.9"], [86400, 1]),
        (["1970-01-01T01:00:00+01:00", "1970-01-01 00:00:05Z"], [0, 5]),
        ([datetime.datetime(1970, 1, 1, 0, 1), datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000)], [60, -1]),
        ([datetime.date(1970, 1, 3), datetime.date(1970, 1, 1)], [172800, 0]),
        (pa.array([3_600_000], pa.timestamp("ms", "Europe/Berlin")), [3600]),
    ],
)
def test_timestamps_become_unix_seconds(given_times: Any, seconds: list[int]) -> None:
    column = check_interactions(interactions(timestamp=given_times))["timestamp"]
    assert column.type == pa.int64()
    assert column.to_pylist() == seconds


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, float("nan")], r"timestamp is neither seconds since 1970 nor an ISO-8601 time in row 2: nan"),
        ([1.0, float("inf")], "in row 2: inf"),
        ([1, None], "in row 2: None"),
        (["5", "soon", "7"], "in row 2: 'soon'"),
        (["2020-01-01", "2020-13-01"], "in row 2: '2020-13-01'"),
        (["2020-01-01", ""], "in row 2: ''"),
        ([True, False], "got bool"),
    ],
)
def test_bad_timestamps(times: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_interactions(interactions(timestamp=times))


def test_ratings() -> None:
    for ratings in ([4, None], [4.0, float("nan")], ["4", ""]):
        column = check_interactions(interactions(rating=ratings))["rating"]
        assert column.type == pa.float64()
        assert column.to_pylist() == [4.0, None]
    with pytest.raises(ValueError, match="rating is not a number in row 2: 'good'"):
        check_interactions(interactions(rating=["4", "good"]))
    with pytest.raises(ValueError, match="rating must hold numbers, got bool"):
        check_interactions(interactions(rating=[True]))
    with pytest.raises(ValueError, match="review must hold texts, got int64"):
        check_interactions(interactions(review=[1]))


def test_other_columns_are_left_out() -> None:
    assert check_interactions(interactions(summary=["a"])).column_names == ["user_id", "item_id"]


def test_texts_of_items() -> None:
    raw = pa.table(
        {
            "title": ["A", None],
            "item_id": ["x", "y"],
            "price": [1.5, float("nan")],
            "year": [1999, 2001],
            "tags": [["a", "b"], []],
            "sizes": [[1, 2], None],
        }
    )
    assert check_texts(raw, "item_id").to_pylist() == [
        {"item_id": "x", "title": "A", "price": "1.5", "year": "1999", "tags": ["a", "b"], "sizes": ["1", "2"]},
        {"item_id": "y", "title": None, "price": None, "year": "2001", "tags": [], "sizes": None},
    ]


@pytest.mark.parametrize("values", [[{"a": 1}], [b"bytes"], [[{"a": 1}]], [[b"bytes"]]])
def test_texts_that_are_none(values: list[Any]) -> None:
    with pytest.raises(ValueError, match="column 'odd' holds .* neither text nor a list of texts; exclude it"):
        check_texts(pa.table({"item_id": ["x"], "odd": values}), "item_id")


def test_repeated_items() -> None:
    with pytest.raises(ValueError, match=r"items: item_id is repeated: 'x', 'z'; keep one row for each"):
        check_texts(pa.table({"item_id": ["x", "y", "x", "z", "z"]}), "item_id")


def test_last_of_repeated_pairs_by_time_then_by_row() -> None:
    raw = pa.table(
        {
            "user_id": ["a", "b", "a", "a", "a"],
            "item_id": [1, 1, 1, 2, 2],
            "timestamp": [9, 5, 3, 7, 7],
            "rating": [1, 2, 3, 4, 5],
        }
    )
    kept, filters = clean_interactions(check_interactions(raw))
    assert kept["rating"].to_pylist() == [1, 2, 5]
    assert filters == [{"filter": "duplicates", "value": "last", "removed": 2}]
    kept, _ = clean_interactions(check_interactions(raw.drop_columns(["timestamp"])))
    assert kept["rating"].to_pylist() == [2, 3, 5]


@given(PAIRS, st.data())
def test_duplicates_like_a_dict(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)))
    users, items = zip(*pairs, strict=True)
    raw = pa.table({"user_id": users, "item_id": items, "timestamp": times, "rating": range(len(pairs))})
    kept, filters = clean_interactions(check_interactions(raw))
    last: dict[tuple[int, int], int] = {}
    for row in sorted(range(len(pairs)), key=lambda row: times[row]):  # sorted() keeps the order of equal times
        last[pairs[row]] = row
    assert kept["rating"].to_pylist() == sorted(last.values())
    assert filters[0]["removed"] == len(pairs) - len(last)


def test_min_rating_keeps_ratings_of_at_least_it_and_sees_the_last_rating() -> None:
    raw = pa.table({"user_id": ["a", "a", "b", "c"], "item_id": [1, 1, 1, 1], "rating": [5, 3, 4, 3.5]})
    kept, filters = clean_interactions(check_interactions(raw), min_rating=4)
    assert kept["user_id"].to_pylist() == ["b"]
    assert [step["removed"] for step in filters] == [1, 2]


@given(PAIRS, st.integers(1, 4))
def test_k_core_like_removing_one_row_after_the_other(pairs: list[tuple[int, int]], k: int) -> None:
    users, items = np.array(pairs).T
    left = list(range(len(pairs)))
    changed = True
    while changed:
        changed = False
        for row in left:
            few_users = sum(pairs[other][0] == pairs[row][0] for other in left) < k
            if few_users or sum(pairs[other][1] == pairs[row][1] for other in left) < k:
                left.remove(row)
                changed = True
                break
    assert k_core_rows(users, items, k).tolist() == left


def test_k_core_is_iterated() -> None:
    """Without user c item 3 falls under two, then user b, then items 1 and 2 hold by user a and d alone."""
    raw = pa.table({"user_id": list("aabbcdd"), "item_id": [1, 2, 1, 3, 3, 1, 2]})
    kept, filters = clean_interactions(check_interactions(raw), k_core=2)
    assert kept.to_pylist() == [{"user_id": user, "item_id": item} for user in "ad" for item in (1, 2)]
    assert filters[1] == {"filter": "k_core", "value": 2, "removed": 3}


def test_bad_cleaning() -> None:
    table = check_interactions(interactions(rating=[5, 1]))
    with pytest.raises(ValueError, match="k_core must be at least 0"):
        clean_interactions(table, k_core=-1)
    with pytest.raises(ValueError, match="no interaction is left of 2: .*min_rating 6 removed 2; lower min_rating"):
        clean_interactions(table, min_rating=6)
    with pytest.raises(ValueError, match="no interaction is left of 2: .*k_core 9 removed 2"):
        clean_interactions(table, k_core=9)
    with pytest.raises(ValueError, match="min_rating 4 needs all ratings, but rating is missing in 1 rows"):
        clean_interactions(check_interactions(interactions(rating=[5, None])), min_rating=4)
    with pytest.raises(ValueError, match="min_rating 4 needs a column of ratings"):
        clean_interactions(check_interactions(interactions(item_id=[1])), min_rating=4)


def test_a_pair_in_two_splits() -> None:
    raw = pa.table({"user_id": ["a", "b", "a"], "item_id": [1, 1, 1], "split": ["train", "train", "test"]})
    with pytest.raises(ValueError, match=r"1 repeated .* more than one split: users 'a' with items 1"):
        clean_interactions(check_interactions(raw))


def test_encode_numbers_by_first_appearance() -> None:
    assert encode(pa.chunked_array([["b", "a"], ["b", "c"]])).tolist() == [0, 1, 0, 2]


def test_first_of() -> None:
    assert first_of(["a"]) == "'a'"
    assert first_of(list(range(7))) == "0, 1, 2, 3, 4 (and 2 more)"


def write(folder: Path, text: str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = write(tmp_path, "who,what,timestamp,position,fold\na,x,soon,1,train\n")
    names = {"user_column": "who", "item_column": "what", "timestamp_column": "position"}
    expected = {"user_id": "a", "item_id": "x", "timestamp": 1}
    assert read_interactions(path, **names).to_pylist() == [expected]
    table = read_interactions(path, **names, split_column="fold", with_split=True)
    assert table.to_pylist() == [expected | {"split": "train"}]


def test_bad_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id,item_id\na,x\n")
    with pytest.raises(ValueError, match="no column 'stars'; it has user_id, item_id"):
        read_interactions(path, rating_column="stars")
    with pytest.raises(ValueError, match="no column 'split'"):
        read_interactions(path, with_split=True)
    with pytest.raises(ValueError, match="two columns would be read from the same one"):
        read_interactions(path, user_column="item_id")


@pytest.mark.parametrize(
    ("ids", "id_type", "expected"),
    [
        (["1", "20", "-3"], "auto", [1, 20, -3]),
        (["1", "20"], "string", ["1", "20"]),
        (["1", "020"], "auto", ["1", "020"]),
        (["1", "1.0"], "auto", ["1", "1.0"]),
        (["0", "99999999999999999999"], "auto", ["0", "99999999999999999999"]),
        (["1", "20"], "integer", [1, 20]),
    ],
)
def test_types_of_ids_in_csv(tmp_path: Path, ids: list[str], id_type: str, expected: list[Any]) -> None:
    path = write(tmp_path, "user_id,item_id\n" + "".join(f"{value},{row}\n" for row, value in enumerate(ids)))
    assert read_interactions(path, id_type=id_type)["user_id"].to_pylist() == expected


def test_types_of_ids_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path, '{"user_id": "1", "item_id": 7}\n', "a.jsonl")
    assert read_interactions(path).to_pylist() == [{"user_id": "1", "item_id": 7}]
    assert read_interactions(path, id_type="string").to_pylist() == [{"user_id": "1", "item_id": "7"}]
    assert read_interactions(path, id_type="integer").to_pylist() == [{"user_id": 1, "item_id": 7}]
    with pytest.raises(ValueError, match="id_type must be one of auto, string, integer, got 'float'"):
        read_interactions(path, id_type="float")
    path = write(tmp_path, "user_id,item_id\n01,7\n", "b.csv")
    with pytest.raises(ValueError, match="user_id must be plain whole numbers, got '01'"):
        read_interactions(path, id_type="integer")


def test_texts_are_selected(tmp_path: Path) -> None:
    path = write(tmp_path, "id,title,brand,price\n1,A,,9\n")
    read = {"id_column": "id", "name": "item_id"}
    assert read_texts(path, **read).to_pylist() == [{"item_id": 1, "title": "A", "brand": "", "price": "9"}]
    assert read_texts(path, **read, columns=["price"]).to_pylist() == [{"item_id": 1, "price": "9"}]
    assert read_texts(path, **read, exclude=["price", "brand"]).column_names == ["item_id", "title"]
    with pytest.raises(ValueError, match="no column 'prize' to exclude; it has id, title, brand, price; did you mean 'price'"):
        read_texts(path, **read, exclude=["prize"])
    with pytest.raises(ValueError, match="no column 'titel'"):
        read_texts(path, **read, columns=["titel"])
    with pytest.raises(ValueError, match="'id' is the column of ids"):
        read_texts(path, **read, exclude=["id"])
    path = write(tmp_path, "id,item_id\n1,2\n", "b.csv")
    with pytest.raises(ValueError, match="ids are read from 'id', but there is a column 'item_id'; exclude it"):
        read_texts(path, **read)
