"""Interactions and texts from files: columns, ids and their types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modeling_cllm4rec.corpora.sources import read_interactions, read_texts


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
    assert read_texts(path, **read).to_pylist() == [{"item_id": 1, "title": "A", "brand": None, "price": "9"}]
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
