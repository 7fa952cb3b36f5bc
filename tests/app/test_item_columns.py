"""Prices and pictures from a table of items, and the policy that lets the browser load them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from modeling_cllm4rec.app.item_columns import ItemColumns
from modeling_cllm4rec.core.catalogue import Catalogue

CATALOGUE = Catalogue(["B1", "B2", "B3"])
TABLE = pa.table(
    {
        "item_id": ["B3", "B9", "B1"],
        "price": [2, 7, None],
        "cost": [1.5, 0.0, 3.25],
        "image": ["https://a.example/3.jpg", None, ""],
        "images": [["http://b.example:8080/3.jpg", "https://c.example/x.jpg"], [], None],
        "words": ["x", "y", "z"],
        "bad": ["javascript:alert(1)", None, None],
        "worse": ["https://a.example/x.jpg; script-src *", None, None],
    }
)


def test_columns_are_joined_by_item_id():
    read = ItemColumns.read(CATALOGUE, TABLE, images="image")
    assert read.prices is not None and np.array_equal(read.prices, [np.nan, np.nan, 2], equal_nan=True)
    assert read.images == [None, None, "https://a.example/3.jpg"]
    assert (read.price(0), read.price(2), read.image(2)) == (None, 2.0, "https://a.example/3.jpg")
    other = ItemColumns.read(CATALOGUE, TABLE, images="images", prices="cost")
    assert (other.price(0), other.image(2)) == (3.25, "http://b.example:8080/3.jpg")
    assert other.image_hosts == ["http://b.example:8080"]
    nothing = ItemColumns.read(CATALOGUE)
    assert (nothing.prices, nothing.images, nothing.price(0), nothing.image(0), nothing.image_hosts) == (
        None,
        None,
        None,
        None,
        [],
    )


def test_a_file_and_ids_of_another_type(tmp_path):
    pa.csv.write_csv(pa.table({"item_id": [3, 1], "price": [0.5, 1.0]}), tmp_path / "items.csv")
    assert ItemColumns.read(Catalogue(["1", "3"]), tmp_path / "items.csv").prices.tolist() == [1.0, 0.5]
    (tmp_path / "empty.csv").write_text("item_id,price\n1,\n3, 2.5 \n")
    assert ItemColumns.read(Catalogue([1, 3]), tmp_path / "empty.csv").price(1) == 2.5
    assert ItemColumns.read(Catalogue([1, 3]), tmp_path / "items.csv").prices.tolist() == [1.0, 0.5]


def test_many_hosts_are_named_by_their_schemes():
    table = pa.table({"item_id": [f"B{n}" for n in range(30)], "image": [f"https://h{n}.example/x" for n in range(30)]})
    assert ItemColumns.read(Catalogue(table), table, images="image").image_hosts == ["https:"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"images": "picture"}, "images is 'picture', which is no column of the items"),
        ({"prices": "words"}, "prices is 'words', a column of string; it must hold numbers"),
        ({"images": "cost"}, "images is 'cost', a column of double; it must hold addresses"),
        ({"images": "bad"}, "images is 'bad', which holds 'javascript:alert"),
        ({"images": "worse"}, "have no spaces, quotes, commas or semicolons"),
    ],
)
def test_wrong_columns(settings, words):
    with pytest.raises(ValueError, match=words):
        ItemColumns.read(CATALOGUE, TABLE, **settings)


def test_pictures_need_a_table_that_has_them():
    with pytest.raises(ValueError, match=r"images is 'image', which is no column .*; give the table of items that"):
        ItemColumns.read(CATALOGUE, images="image")
    with pytest.raises(ValueError, match="items is 'item_id', which is no column"):
        ItemColumns.read(CATALOGUE, pa.table({"id": ["B1"]}))


def test_the_policy_names_the_hosts_of_pictures():
    pytest.importorskip("starlette", reason="needs the extra app")
    from modeling_cllm4rec.app.local_only import POLICY, policy

    assert policy() == POLICY
    assert policy(["https://a.example"]) == f"{POLICY}; img-src 'self' data: blob: https://a.example"
