"""Columns and ids of interactions."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from modeling_cllm4rec.corpora.interactions import (
    check_ids,
    check_interactions,
    check_texts,
    clean_text_table,
)

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
    table = pa.table(
        {"item_id": ["x", "y", "x", "z", "z"], "title": ["A", "B", "A", "C", "D"], "tags": [["t"], [], ["t"], [], []]}
    )
    with pytest.raises(ValueError, match=r"items: item_id is repeated: 'x', 'z'; keep one row for each"):
        check_texts(table, "item_id")
    with pytest.raises(ValueError, match=r"items: item_id is repeated with different texts: 'z'; keep one row for each"):
        clean_text_table(table, "item_id")
    assert clean_text_table(table.slice(0, 3), "item_id").to_pylist() == [
        {"item_id": "x", "title": "A", "tags": ["t"]},
        {"item_id": "y", "title": "B", "tags": None},
    ]
