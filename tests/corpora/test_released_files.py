"""Files in the forms of RecBole, of the released CLLM4Rec, and of the released LC-Rec."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.corpora.raw_data import prepare
from modeling_cllm4rec.corpora.readers import read_table
from modeling_cllm4rec.corpora.released_files import (
    find_recbole_files,
    read_cllm4rec_files,
    read_lcrec_files,
)
from modeling_cllm4rec.corpora.sources import read_interactions
from modeling_cllm4rec.lcrec.released_files import free_codes, read_released_semantic_ids

# ---- RecBole ----

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n196\t007\t4.5\t8.9e8\n"


def test_an_atomic_file(tmp_path: Path) -> None:
    (tmp_path / "a.inter").write_text(INTER)
    table = read_table(tmp_path / "a.inter", ["item_id"], ["rating"])
    assert table.to_pydict() == {"item_id": ["242", "007"], "rating": [3.0, 4.5]}
    read = read_interactions(tmp_path / "a.inter")
    assert read.to_pydict() == {
        "user_id": [196, 196],  # whole numbers, as in a CSV file
        "item_id": ["242", "007"],  # a leading zero: texts
        "rating": [3.0, 4.5],
        "timestamp": [881250949, 890000000],
    }


def test_texts_of_an_atomic_file_keep_quotes_and_empty_places(tmp_path: Path) -> None:
    content = 'item_id:token\ttitle:token_seq\tprice:float\n1\t"The" best, 12" disc\t\n2\t\t5\n'
    (tmp_path / "a.item").write_text(content, newline="\r\n")
    assert read_table(tmp_path / "a.item").to_pydict() == {
        "item_id": ["1", "2"],
        "title": ['"The" best, 12" disc', ""],
        "price": [None, 5.0],
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), st.integers(0, 99)), min_size=1))
def test_an_atomic_file_comes_back(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    (tmp_path / "a.inter").write_text("user_id:token\tn:float\n" + "".join(f"{one}\t{n}\n" for one, n in rows), encoding="utf-8")
    table = read_table(tmp_path / "a.inter")
    assert list(zip(*table.to_pydict().values(), strict=True)) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id\titem_id:token\n1\t2\n", "the field 'user_id' of the header has no type; it must be name:type"),
        ("user_id:token\titem_id:word\n1\t2\n", "column 'item_id' has type 'word'; only token, token_seq, float can be read"),
        ("user_id:token\tuser_id:token\n1\t2\n", "column 'user_id' occurs more than once"),
        ("user_id:token\titem_id:float\n1\tx\n", "cannot be read: .*x"),
        ("user_id:token\titem_id:token\n1\n", "cannot be read: .*Expected 2 columns, got 1"),
        ("user_id:token\titem_id_list:token_seq\titem_id:token\n1\t2 3\t4\n", "'item_id_list' holds histories"),
        ("", "is empty"),
    ],
)
def test_bad_atomic_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.inter").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.inter")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(INTER)


def test_files_of_a_recbole_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "ml-100k.inter", "ml-100k.item", "README.md")
    assert find_recbole_files(tmp_path) == ({"all": tmp_path / "ml-100k.inter"}, tmp_path / "ml-100k.item", None)


def test_a_given_split_of_recbole(tmp_path: Path) -> None:
    touch(tmp_path, "a.b.train.inter", "a.b.valid.inter", "a.b.test.inter", "a.b.user")
    found = find_recbole_files(tmp_path)
    assert {split: path.name for split, path in found.interactions.items()} == {
        "train": "a.b.train.inter",
        "validation": "a.b.valid.inter",
        "test": "a.b.test.inter",
    }
    assert found.items is None and found.users == tmp_path / "a.b.user"


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["a.item"], FileNotFoundError, "there is no .inter file; name the folder of a RecBole data set"),
        (["a.inter", "b.inter"], ValueError, "holds more than one data set: a, b; give each a folder of its own"),
        (["a.train.inter", "a.test.inter"], FileNotFoundError, "a.valid.inter is missing; a given split needs all three"),
        (["a.inter", "a.test.inter"], ValueError, "holds a.inter and a split of it; keep one of them"),
    ],
)
def test_bad_recbole_folders(tmp_path: Path, names: list[str], error: type[Exception], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(error, match=message):
        find_recbole_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        find_recbole_files(tmp_path / "nowhere")


# ---- CLLM4Rec ----

TRAIN = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1]])
VALIDATION, TEST = np.eye(3, 4, 2, dtype=int), np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]])
VALIDATION[1:] = [[0, 0, 1, 0], [1, 0, 0, 0]]


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Three users, four items; user 0 has 0 and 1 in train, 2 in validation, 3 in test."""
    for name, matrix in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        sparse.save_npz(tmp_path / f"{name}_matrix.npz", sparse.csr_matrix(matrix.astype(np.float32)))
    return tmp_path


def write_reviews(folder: Path, *lines: Any) -> None:
    (folder / "user_item_texts").mkdir(exist_ok=True)
    (folder / "user_item_texts" / "review.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_released_matrices(released: Path) -> None:
    (released / "meta.pkl").write_bytes(b"never read")
    read = read_cllm4rec_files(released)
    rows = list(zip(*read.interactions.to_pydict().values(), strict=True))
    assert rows[:4] == [(0, 0, "train"), (0, 1, "train"), (0, 2, "validation"), (0, 3, "test")]
    assert len(rows) == 12
    for split, matrix in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        assert [(user, item) for user, item, name in rows if name == split] == list(zip(*matrix.nonzero(), strict=True))
    assert read.items.to_pydict() == {"item_id": [0, 1, 2, 3]}
    assert [path.name for path in read.files["interactions"]] == ["train_matrix.npz", "val_matrix.npz", "test_matrix.npz"]


def test_released_reviews(released: Path) -> None:
    write_reviews(
        released,
        ["user_0 wrote the following review for item_1:", " very good, user_2"],
        ["user_2 wrote the following review for item_3:", "bad"],
    )
    read = read_cllm4rec_files(released).interactions.to_pylist()
    assert {(row["user_id"], row["item_id"]): row["review"] for row in read if row["review"]} == {
        (0, 1): "very good, user_2",
        (2, 3): "bad",
    }
    assert "review" not in read_cllm4rec_files(released, reviews=False).interactions.column_names


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([[1, 2], [3]], "line 1 must be .*with words, not token ids; got"),
        (["user_0 writes:", "x"], "line 1 must be"),
        (["user_0 item_9:", "x"], "line 1 has user 0 and item 9, which the matrices lack"),
        (["user_1 item_2 item_0:", "x"], None),
        (["user_0 item_1:", "x", "y"], "line 1 must be"),
    ],
)
def test_bad_reviews(released: Path, line: Any, message: str | None) -> None:
    write_reviews(released, line)
    if message is None:
        assert read_cllm4rec_files(released).interactions["review"].null_count == 11
        return
    with pytest.raises(ValueError, match=message):
        read_cllm4rec_files(released)


def test_more_bad_reviews(released: Path) -> None:
    write_reviews(released, ["user_0 item_1:", "x"], ["user_0 item_1:", "y"])
    with pytest.raises(ValueError, match="line 2 is a second review of item 1 by user 0; keep one"):
        read_cllm4rec_files(released)
    sparse.save_npz(released / "test_matrix.npz", sparse.csr_matrix((3, 4)))
    write_reviews(released, ["user_0 item_3:", "x"])
    with pytest.raises(ValueError, match="1 reviews have no pair in the matrices; the first is of user 0 and item 3"):
        read_cllm4rec_files(released)
    (released / "user_item_texts" / "review.jsonl").write_text("{")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_cllm4rec_files(released)


def test_a_pickle_is_refused_with_a_reason(released: Path) -> None:
    (released / "user_item_texts").mkdir()
    (released / "user_item_texts" / "review.pkl").write_bytes(b"\x80\x04]\x94.")
    with pytest.raises(ValueError, match="to read a pickle is to run whatever program is in it.*JSON lines .* reviews=False"):
        read_cllm4rec_files(released)
    assert read_cllm4rec_files(released, reviews=False).interactions.num_rows == 12
    with pytest.raises(ValueError, match="to read a pickle .* write the table as Parquet"):
        read_table(_file(released / "frame.pkl", b"\x80\x04]\x94."))


def test_a_pickle_within_a_matrix_is_refused(released: Path) -> None:
    arrays = dict(np.load(released / "val_matrix.npz"))
    np.savez(released / "val_matrix.npz", **arrays | {"data": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ValueError, match="val_matrix.npz is a pickle, .* write the matrix with scipy.sparse.save_npz"):
        read_cllm4rec_files(released)
    _file(released / "val_matrix.npz", b"\x80\x04]\x94.")
    with pytest.raises(ValueError, match="val_matrix.npz is a pickle"):
        read_cllm4rec_files(released)


def test_bad_matrices(released: Path) -> None:
    sparse.save_npz(released / "test_matrix.npz", sparse.csr_matrix(TRAIN))
    with pytest.raises(ValueError, match="6 pairs are in more than one matrix"):
        read_cllm4rec_files(released)
    sparse.save_npz(released / "test_matrix.npz", sparse.csr_matrix((3, 5)))
    with pytest.raises(ValueError, match=r"different shapes: .*'test': \(3, 5\)"):
        read_cllm4rec_files(released)
    np.savez(released / "test_matrix.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="test_matrix.npz is no sparse matrix of scipy.sparse.save_npz"):
        read_cllm4rec_files(released)
    _file(released / "test_matrix.npz", b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="test_matrix.npz is no sparse matrix"):
        read_cllm4rec_files(released)
    (released / "test_matrix.npz").unlink()
    with pytest.raises(FileNotFoundError, match="test_matrix.npz is missing; the released files of CLLM4Rec are"):
        read_cllm4rec_files(released)


def test_stored_zeros_are_no_interactions(released: Path) -> None:
    matrix = sparse.csr_matrix(TRAIN.astype(np.float32))
    matrix.data[0] = 0
    sparse.save_npz(released / "train_matrix.npz", matrix)
    assert read_cllm4rec_files(released).interactions.num_rows == 11


# ---- LC-Rec ----


def write_lcrec(folder: Path, histories: Any, items: Any, gzipped: bool = False) -> None:
    for kind, value in (("inter", histories), ("item", items)):
        text = json.dumps(value)
        path = folder / f"Tiny.{kind}.json{'.gz' if gzipped else ''}"
        path.write_bytes(gzip.compress(text.encode()) if gzipped else text.encode())


@pytest.mark.parametrize("gzipped", [False, True])
def test_released_histories(tmp_path: Path, gzipped: bool) -> None:
    items = {"10": {"title": "a", "tags": ["x"]}, "7": {"title": "b", "brand": "c"}}
    write_lcrec(tmp_path, {"0": [7, 10], "3": [10]}, items, gzipped)
    read = read_lcrec_files(tmp_path)
    assert read.interactions.to_pydict() == {"user_id": [0, 0, 3], "item_id": [7, 10, 10]}
    assert read.items.to_pydict() == {"item_id": [10, 7], "title": ["a", "b"], "tags": [["x"], None], "brand": [None, "c"]}
    assert read_lcrec_files(tmp_path, "string").interactions["item_id"].to_pylist() == ["7", "10", "10"]


def test_released_histories_without_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Items are those of the histories; the index of the same data set gives them semantic IDs."""
    _file(tmp_path / "Tiny.inter.json", b'{"0": [7, 10, 9], "3": [10, 7, 8]}')
    data = prepare(tmp_path / "data", folder=tmp_path, format="lcrec")
    assert data.items.column_names == ["item_id"] and data.items["item_id"].to_pylist() == [7, 10, 9, 8]
    assert data.histories("train").items.tolist() == [0, 1]
    assert "has no NAME.item.json: without item texts, LC-Rec can train on the task seqrec alone" in caplog.text


def test_released_histories_of_other_ids(tmp_path: Path) -> None:
    write_lcrec(tmp_path, {"A1": ["B01", "B02"]}, {"B01": {"title": "a"}, "B02": {}})
    read = read_lcrec_files(tmp_path)
    assert read.interactions.to_pydict() == {"user_id": ["A1", "A1"], "item_id": ["B01", "B02"]}
    with pytest.raises(ValueError, match="with id_type integer, user_id must be plain whole numbers, got 'A1'"):
        read_lcrec_files(tmp_path, "integer")


@pytest.mark.parametrize(
    ("histories", "items", "message"),
    [
        ({"0": 5}, {"5": {}}, "user '0' has 5; it must be a list of item ids"),
        ({"0": [1.5]}, {"5": {}}, "user '0' has .1.5.; it must be a list of item ids"),
        ({"0": [5]}, {"5": "title"}, "item '5' has 'title'; it must be an object of texts"),
        ({"0": [5]}, {"5": {"title": "a"}, "6": {"title": ["b"]}}, "values of a field are of different types"),
        ([], {"5": {}}, "must be a JSON object with ids as keys, got list of 0"),
    ],
)
def test_bad_released_histories(tmp_path: Path, histories: Any, items: Any, message: str) -> None:
    write_lcrec(tmp_path, histories, items)
    with pytest.raises(ValueError, match=message):
        read_lcrec_files(tmp_path)


def test_bad_lcrec_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no NAME.inter.json; name the folder of a released data set of LC-Rec"):
        read_lcrec_files(tmp_path)
    write_lcrec(tmp_path, {"0": [1]}, {"1": {}})
    _file(tmp_path / "Other.inter.json", b"{}")
    with pytest.raises(ValueError, match="holds more than one data set: 'Other.inter.json', 'Tiny.inter.json'"):
        read_lcrec_files(tmp_path)
    (tmp_path / "Other.inter.json").unlink()
    _file(tmp_path / "Tiny.inter.json", b"{")
    with pytest.raises(ValueError, match="Tiny.inter.json is not JSON"):
        read_lcrec_files(tmp_path)
    _file(tmp_path / "Tiny.inter.json.gz", b"no gzip")
    (tmp_path / "Tiny.inter.json").unlink()
    with pytest.raises(ValueError, match="Tiny.inter.json.gz is not JSON"):
        read_lcrec_files(tmp_path)


ITEMS = IdMap(pa.array([7, 10]), "item_id")


def index_file(folder: Path, content: Any) -> Path:
    return _file(folder / "Tiny.index.json", json.dumps(content).encode())


def test_released_semantic_ids(tmp_path: Path) -> None:
    path = index_file(tmp_path, {"10": ["<a_3>", "<b_0>"], "7": ["<a_3>", "<b_12>"], "99": ["<a_0>", "<b_0>"]})
    index = read_released_semantic_ids(path, ITEMS, num_levels=2, codebook_size=16)
    assert index.codes.tolist() == [[3, 12], [3, 0]] and index.codebook_size == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"7": ["<a_1>", "<b_1>"]}, "1 of 2 items have no semantic ID: '10'; the file belongs to another catalogue"),
        ({"7": ["<a_1>", "<b_1>"], "10": ["<a_1>"]}, "item '10' has the semantic ID .*; with num_levels 2 it must be a list of"),
        ({"7": ["<a_1>", "<b_1>"], "10": ["<b_1>", "<a_1>"]}, "item '10' has the semantic ID"),
        ({"7": ["<a_1>", "<b_1>"], "10": "<a_1><b_1>"}, "item '10' has the semantic ID"),
        (
            {"7": ["<a_1>", "<b_1>"], "10": ["<a_1>", "<b_1>"]},
            r"2 of 2 items share their semantic ID with another: '7', '10'; set repair",
        ),
        ({"7": ["<a_1>", "<b_1>"], "10": ["<a_1>", "<b_16>"]}, "item 1 has code 16 at level 1, outside the codebook of 16"),
    ],
)
def test_bad_released_semantic_ids(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_released_semantic_ids(index_file(tmp_path, content), ITEMS, num_levels=2, codebook_size=16)


def test_released_semantic_ids_that_collide_are_repaired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = index_file(tmp_path, {"7": ["<a_1>", "<b_0>"], "10": ["<a_1>", "<b_0>"]})
    assert read_released_semantic_ids(path, ITEMS, 2, 2, repair=True).codes.tolist() == [[1, 0], [1, 1]]
    assert "2 items share their semantic ID with another; all but the first have a new one" in caplog.text
    outside = index_file(tmp_path, {"7": ["<a_1>", "<b_9>"], "10": ["<a_1>", "<b_9>"]})
    with pytest.raises(ValueError, match="item 0 has code 9 at level 1, outside the codebook of 2"):
        read_released_semantic_ids(outside, ITEMS, 2, 2, repair=True)


def test_free_codes_by_hand() -> None:
    """Under the prefix 0 the code 1 is free once. Then the prefix is full, and the lowest free ID of the others is (1, 1)."""
    codes = np.array([[0, 0], [0, 0], [1, 0], [0, 2], [0, 0]])
    assert free_codes(codes, 3).tolist() == [[0, 0], [0, 1], [1, 0], [0, 2], [1, 1]]
    with pytest.raises(ValueError, match="5 items are more than the 4 semantic IDs of 2 levels of 2 codes; raise num_levels"):
        free_codes(np.zeros((5, 2), dtype=int), 2)


@given(st.integers(1, 30).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=n, max_size=n)))
def test_free_codes_are_different_and_keep_the_first(rows: list[tuple[int, ...]]) -> None:
    codes = np.array(rows)
    repaired = free_codes(codes, 4)
    assert len(np.unique(repaired, axis=0)) == len(rows)
    first = np.unique(codes, axis=0, return_index=True)[1]
    assert np.array_equal(repaired[first], codes[first])


def test_no_released_semantic_ids(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="codes: there is no file .*nothing.json"):
        read_released_semantic_ids(tmp_path / "nothing.json", ITEMS, 2, 16)


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
