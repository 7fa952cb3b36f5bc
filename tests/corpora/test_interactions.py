"""Columns and ids of interactions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from modeling_cllm4rec.corpora.interactions import (
    check_ids,
    check_interactions,
    check_texts,
    read_interactions,
    read_texts,
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
    with pytest.raises(ValueError, match=r"items: item_id is repeated: 'x', 'z'; keep one row for each"):
        check_texts(pa.table({"item_id": ["x", "y", "x", "z", "z"]}), "item_id")


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
