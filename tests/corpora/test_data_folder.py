"""The prepared folder: written whole or not at all, read back the same, checked when read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from modeling_cllm4rec.corpora import data_folder
from modeling_cllm4rec.corpora.data_folder import FORMAT, RecommendationData, WrittenFiles, check_output, dataset_card, is_written

FILES = ["README.md", "dataset.json", "items.parquet", "test.parquet", "train.parquet", "users.parquet", "validation.parquet"]


def make_data(**changes: Any) -> RecommendationData:
    """Two users with three and two items out of four; a blank and a missing review."""
    columns = {
        "user_index": pa.array([0, 0, 0, 1, 1], pa.int32()),
        "item_index": pa.array([2, 0, 3, 3, 1], pa.int32()),
        "split": pa.array(["train", "test", "train", "train", "validation"]),
        "review": pa.array(["fine", None, " \n", "good", None], pa.large_string()),
    }
    info = {
        "format": FORMAT,
        "statistics": {"users": 2, "items": 4, "interactions": 5},
        "protocol": {"split": "given", "seed": None, "filters": [], "line": "given split"},
        "sources": [],
    }
    items = pa.table({"item_id": ["a", "b", "c", "d"], "tags": [["x"], [], None, ["y", "z"]]})
    users = pa.table({"user_id": [7, 5]})
    return RecommendationData(users, items, pa.table(columns | changes), info, Path("nowhere"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_data().save(tmp_path / "data").folder


def test_round_trip(folder: Path) -> None:
    written, read = make_data(), RecommendationData.load(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert sorted(path.name for path in folder.parent.iterdir()) == ["data"]
    for table in ("users", "items", "interactions"):
        assert getattr(read, table).equals(getattr(written, table))
    assert read.info == written.info
    assert (read.folder, read.num_users, read.num_items) == (folder, 2, 4)


@pytest.mark.parametrize("table", ["items", "users"])
def test_datasets_reads_items_and_users(folder: Path, tmp_path: Path, table: str) -> None:
    dataset = datasets.load_dataset(str(folder), table, split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.to_list() == getattr(make_data(), table).to_pylist()


def test_datasets_reads_splits_with_the_ids_of_the_source(folder: Path, tmp_path: Path) -> None:
    """Nobody who uses the habits of `datasets` trains on the test rows."""
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train", "validation", "test"]
    assert [(row["user_id"], row["item_id"]) for row in found["train"]] == [(7, "c"), (7, "d"), (5, "d")]
    assert [(row["user_id"], row["item_id"]) for row in found["test"]] == [(7, "a")]
    assert found["train"]["position"][:] == [0, 2, 0] and found["validation"]["position"][:] == [1]
    assert found["train"]["review"][:] == ["fine", " \n", "good"] and found["test"]["review"][:] == [None]


def test_datasets_reads_a_folder_without_test_rows(tmp_path: Path) -> None:
    make_data(split=pa.array(["train"] * 5)).save(tmp_path / "data")
    found = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in found.items()} == {"train": 5}


def test_card(folder: Path) -> None:
    data = make_data()
    data.info["license"], data.info["sources"] = "CC BY 4.0", [{"table": "items", "file": "a.csv", "sha256": "0f"}]
    columns = {"interactions": data.split("train").column_names, "items": data.items.column_names}
    files = WrittenFiles({"train": 3, "validation": 1, "test": 1}, columns)
    text = dataset_card("mine", data.info, files)
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "other" and head["license_name"] == "CC BY 4.0" and head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"][0] == {"split": "train", "path": "train.parquet"}
    assert "| interactions | 5 |" in text and "| items | a.csv | `0f` |" in text and "given split" in text
    assert yaml.safe_load((folder / "README.md").read_text().split("---")[1])["pretty_name"] == "data"
    data.info["license"] = "cc-by-4.0"
    assert yaml.safe_load(dataset_card("mine", data.info, files).split("---")[1])["license"] == "cc-by-4.0"


def test_histories(folder: Path) -> None:
    data = RecommendationData.load(folder)
    indptr, items = data.histories("train")
    assert (indptr.tolist(), items.tolist()) == ([0, 2, 3], [2, 3, 3])
    assert (indptr.dtype, items.dtype) == (np.int64, np.int32)
    indptr, items = data.histories("train", "test")
    assert (indptr.tolist(), items.tolist()) == ([0, 3, 4], [2, 0, 3, 3])
    indptr, items = data.histories("validation")
    assert (indptr.tolist(), items.tolist()) == ([0, 0, 1], [1])


def test_histories_of_an_empty_split() -> None:
    data = make_data(split=pa.array(["train"] * 5))
    assert data.histories("test").indptr.tolist() == [0, 0, 0]
    assert data.histories("test").items.tolist() == []


def test_bad_histories(folder: Path) -> None:
    data = RecommendationData.load(folder)
    with pytest.raises(ValueError, match=r"splits must be one or more of train, validation, test, got \['val'\]"):
        data.histories("val")
    with pytest.raises(ValueError, match=r"got \[\]"):
        data.histories()


def test_reviews(folder: Path) -> None:
    assert RecommendationData.load(folder).reviews().to_pylist() == [
        {"user_index": 0, "item_index": 2, "review": "fine"},
        {"user_index": 1, "item_index": 3, "review": "good"},
    ]
    data = make_data()
    without = dataclasses.replace(data, interactions=data.interactions.drop_columns(["review"])).reviews()
    assert without.num_rows == 0
    assert without.schema.equals(data.reviews().schema)


def test_is_written() -> None:
    reviews = pa.array(["a", None, "", " \t\n\r\v", "\u00a0\u3000", " . ", "🙂"], pa.large_string())
    assert is_written(reviews).to_pylist() == [True, False, False, False, False, True, True]


def test_output_that_is_taken(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"holds a data folder already \('README.md'.*pass overwrite=True"):
        make_data().save(folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="holds 'diary.txt' and is no data folder, so it is never replaced"):
            make_data().save(tmp_path / "notes", overwrite=overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file"):
        check_output(tmp_path / "file")
    assert (tmp_path / "notes" / "diary.txt").read_text() == "dear"


def test_overwrite_and_an_empty_folder(folder: Path, tmp_path: Path) -> None:
    make_data(split=pa.array(["train"] * 5)).save(folder, overwrite=True)
    assert RecommendationData.load(folder).histories("train").indptr.tolist() == [0, 3, 5]
    (tmp_path / "empty").mkdir()
    make_data().save(tmp_path / "empty")
    make_data().save(tmp_path / "deep" / "er")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "deep", "empty"]


def test_a_full_disk_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(pq.ParquetWriter):
        def __init__(self, path: Path, *arguments: Any, **settings: Any) -> None:
            if path.name == "items.parquet":
                raise OSError(28, "No space left on device")
            super().__init__(path, *arguments, **settings)

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(data_folder.pq, "ParquetWriter", Full)
    for place in (folder, folder.parent / "new"):
        with pytest.raises(OSError, match="No space left on device"):
            make_data().save(place, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_a_failed_rename_brings_the_old_folder_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError("no such luck")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no such luck"):
        make_data(split=pa.array(["train"] * 5)).save(folder, overwrite=True)
    assert RecommendationData.load(folder).histories("test").items.tolist() == [0]
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_missing_folder_and_files(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such data folder; make one with `cllm4rec prepare`"):
        RecommendationData.load(folder / "none")
    for name in ("dataset.json", "items.parquet"):
        copy = folder.with_name(f"without {name}")
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{name} is missing; prepare the folder again"):
            RecommendationData.load(copy)


@pytest.mark.parametrize("size", [0, 20, -1])
def test_truncated_parquet(folder: Path, size: int) -> None:
    path = folder / "validation.parquet"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="validation.parquet is truncated or not Parquet"):
        RecommendationData.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "dataset.json is not JSON"),
        ("[]", "format must be 2, got None"),
        ('{"format": 1}', "format must be 2, got 1; prepare the folder again with this version"),
        ('{"format": 2, "statistics": {}}', "'protocol' is missing"),
    ],
)
def test_bad_info(folder: Path, text: str, message: str) -> None:
    (folder / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RecommendationData.load(folder)


def test_files_of_two_folders(folder: Path) -> None:
    info = json.loads((folder / "dataset.json").read_text())
    info["statistics"]["interactions"] = 6
    (folder / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="dataset.json lists 6 interactions, but the tables have 5"):
        RecommendationData.load(folder)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("item_index", pa.array([2, 0, 4, 3, 1], pa.int32()), r"item_index must be in \[0, 4\), got 0 to 4"),
        ("item_index", pa.array([2, 0, -1, 3, 1], pa.int32()), r"item_index must be in \[0, 4\), got -1 to 3"),
        ("user_index", pa.array([0, 0, 0, 2, 2], pa.int32()), r"user_index must be in \[0, 2\), got 0 to 2"),
        ("user_index", pa.array([0, 0, 1, 0, 1], pa.int32()), "rows must be sorted by user_index"),
        ("user_index", pa.array([0, 0, 0, 1, None], pa.int32()), "user_index is null in 1 rows"),
        ("user_index", pa.array([0, 0, 0, 1, 1]), "user_index must be int32, got int64"),
        ("item_index", pa.array([2, 0, 2, 3, 1], pa.int32()), "pair occurs more than once"),
        ("split", pa.array(["train", "test", "dev", "train", "val"]), "split must be one of .*, got 'dev', 'val'"),
        ("split", pa.array(["test", "test", "train", "train", "test"]), "1 pairs outside train have a review"),
        ("timestamp", pa.array([1.5] * 5), "timestamp must be int64, got double"),
    ],
)
def test_bad_interactions(folder: Path, column: str, values: pa.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(**{column: values}).save(folder.parent / "bad")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("item_index", pa.array([2, 4, 3], pa.int32()), r"item_index must be in \[0, 4\), got 0 to 4"),
        ("user_index", pa.array([0, 0, 2], pa.int32()), r"user_index must be in \[0, 2\), got 0 to 2|does not number the rows"),
        ("user_index", pa.array([0, 0, None], pa.int32()), "user_index is null in 1 rows"),
        ("user_index", pa.array([0, 0, 1]), "the files of the splits have different columns"),
        ("item_index", pa.array([2, 2, 3], pa.int32()), "pair occurs more than once"),
        ("position", pa.array([0, 1, 0], pa.int32()), "position does not number the rows of each user from 0"),
        ("timestamp", pa.array([1, 2, 3]), "the files of the splits have different columns"),
    ],
)
def test_bad_files(folder: Path, column: str, values: pa.Array, message: str) -> None:
    table = pq.read_table(folder / "train.parquet")
    columns = {name: table[name] for name in table.column_names} | {column: values}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    with pytest.raises(ValueError, match=message):
        RecommendationData.load(folder)


def test_a_file_of_an_older_folder(folder: Path) -> None:
    """A test file that was copied from elsewhere does not fit the positions of the others."""
    table = pq.read_table(folder / "test.parquet")
    pq.write_table(table.slice(0, 0), folder / "test.parquet")
    with pytest.raises(ValueError, match="the files of the splits are not of one folder; prepare it again"):
        RecommendationData.load(folder)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("users", pa.table({"user": [7, 5]}), "users: no column 'user_id'"),
        ("items", pa.table({"item_id": ["a", "b", "a", "d"]}), "item_id is repeated: 'a'"),
        ("items", pa.table({"item_id": ["a", "b", None, "d"]}), "item_id is empty or NaN in row 3"),
        ("train", pa.table({"user_index": [1], "position": [0]}), "no column 'item_index' in train.parquet"),
    ],
)
def test_bad_tables(folder: Path, name: str, table: pa.Table, message: str) -> None:
    pq.write_table(table, folder / f"{name}.parquet")
    with pytest.raises(ValueError, match=message):
        RecommendationData.load(folder)
