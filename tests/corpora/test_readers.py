"""Reading tables from each kind of source, and the messages for sources that cannot be read."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.corpora.readers import checksum, nearest_names, read_table

ROWS = [
    {"user": "ann", "item": "<item_3>", "stars": "5"},
    {"user": "user_1", "item": 'a "quoted", name', "stars": "3"},
    {"user": "🙂 b", "item": "two\nlines", "stars": "1"},
]
CSV = 'user,item,stars\nann,<item_3>,5\nuser_1,"a ""quoted"", name",3\n🙂 b,"two\nlines",1\n'
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "A.CSV"])
def test_text_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = (CSV if "csv" in name.lower() else JSON_LINES).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert read_table(path).to_pylist() == ROWS


def test_parquet_and_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = tmp_path / "hub"
    hub.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), hub / "train.parquet")
    dataset = datasets.Dataset.from_list([*ROWS, *ROWS]).select([3, 1, 2])  # an indices mapping must be obeyed
    dataset.save_to_disk(tmp_path / "saved")
    for source in (hub / "train.parquet", tmp_path / "saved", f"hf:{hub}", f"hf:{hub}:train"):
        assert read_table(source).to_pylist() == ROWS
        assert read_table(source, ["stars"], ["nothing", "user"]).column_names == ["stars", "user"]
        assert len(checksum(source)) == 64


def test_required_columns_come_first_and_optional_ones_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    assert read_table(path, ["stars"]).column_names == ["stars", "user", "item"]
    assert read_table(path, ["stars"], ["review", "user"]).column_names == ["stars", "user"]
    assert read_table(path, ["item"], []).column_names == ["item"]


def test_csv_is_text_throughout(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfid,name\n007,NA\n,null\n")  # with a byte order mark
    assert read_table(path).to_pylist() == [{"id": "007", "name": "NA"}, {"id": "", "name": "null"}]


def test_json_texts_that_look_like_dates_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "2020-01-01", "tags": ["2021-02-03"], "n": 1}\n')
    assert read_table(path).to_pylist() == [{"id": "2020-01-01", "tags": ["2021-02-03"], "n": 1}]


def test_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    assert checksum(path) == hashlib.sha256(CSV.encode()).hexdigest()


def test_nearest_names() -> None:
    assert nearest_names("qqq", ["user"]) == ""
    assert nearest_names("User_ID", ["item_id", "user_id"]) == "; did you mean 'user_id'?"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", b"x", r"must end in \.csv, \.tsv"),
        ("a.csv", b"", r"a\.csv is empty \(0 bytes\)"),
        ("a.parquet", b"", "is empty"),
        ("a.csv", b"user,item\n", r"a\.csv has no rows"),
        ("a.csv", b"user,item\nx\n", "cannot be read: .*Expected 2 columns, got 1"),
        ("a.csv", b"user,user\nx,y\n", "column 'user' occurs more than once"),
        (
            "a.csv",
            b"user,item\nx,\xff\xfe\n",
            r"byte 12 \(0xff\) is not utf-8; name the encoding of the file, such as encoding='latin-1'",
        ),
        ("a.csv.gz", b"user,item\nx,y\n", "cannot be read"),
        ("a.csv", b"user," + b"x" * 200_000 + b"\n1,2\n", "cannot be read: field larger than field limit"),
        ("a.json", b"5\n", "one JSON object per line or one array of objects, not '5'"),
        ("a.jsonl", b'{"user": 1', "cannot be read"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.csv", b"item,user_no\nx,y\n", "no column 'user'; it has item, user_no; did you mean 'user_no'"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(path, ["user"])


def test_mixed_json_types_far_apart(tmp_path: Path) -> None:
    """Beyond the block that is parsed at a time."""
    path = tmp_path / "a.jsonl"
    filler = "x" * 200_000
    path.write_text("".join(f'{{"user": {i}, "filler": "{filler}"}}\n' for i in range(100)) + '{"user": "x"}\n')
    assert read_table(path, ["user"], [])["user"].to_pylist() == [*map(str, range(100)), "x"]


def test_truncated_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(CSV.encode() * 100)[:-20])
    with pytest.raises(ValueError, match=r"a\.csv\.gz: cannot be read"):
        read_table(path)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="neither one of Parquet files nor one written by datasets"):
        read_table(tmp_path)
    with pytest.raises(ValueError, match="'hf:' names no dataset"):
        read_table("hf:")
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match="holds the splits train, test; name the folder of one, such as .*train"):
        read_table(tmp_path / "both")
    assert read_table(tmp_path / "both" / "test").num_rows == 3
