"""The table of bad input in docs/own-data.md has the messages that `cllm4rec prepare` and `raw_data.prepare` really give."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.corpora.raw_data import prepare

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
LOG = "user_id,item_id,rating,timestamp\na,x,5,1\na,y,4,2\na,z,3,3\nb,x,5,4\n"
ITEMS = "item_id,title\nx,X\ny,Y\nz,Z\n"

Files = dict[str, str | bytes]


def text(column: str, *values: object) -> Files:
    """Return a log of one user with a column."""
    return {"log.csv": f"user_id,item_id,{column}\n" + "".join(f"a,{number},{value}\n" for number, value in enumerate(values))}


def jsonl(*rows: Any) -> Files:
    return {"log.jsonl": "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)}


def items(content: str, name: str = "items.csv") -> Files:
    return {"log.csv": LOG, name: content}


ITEM_FLAGS = ["--items", "items.csv"]
SHELL: dict[str, tuple[Files, list[str]]] = {
    # Files.
    "no such file": ({}, ["--interactions", "log.csv"]),
    "an empty file": ({"log.csv": ""}, []),
    "a file with a header only": ({"log.csv": "user_id,item_id\n"}, []),
    "`.xlsx` or another kind of file": ({"log.xlsx": b"PK"}, []),
    "a pickle": ({"log.pkl": b"\x80"}, []),
    "a truncated or wrong `.gz`": ({"log.csv.gz": LOG}, []),
    "latin-1 read as UTF-8": ({"log.csv": "user_id,item_id\na,café\n".encode("latin-1")}, []),
    "UTF-16": ({"log.csv": LOG.encode("utf-16")}, []),
    "`--encoding latin-99`": ({"log.csv": LOG}, ["--encoding", "latin-99"]),
    "several delimiters in the header of a `.txt`": ({"log.txt": "user_id;item_id,x\na;b,c\n"}, []),
    "`--delimiter '\"'`": ({"log.csv": LOG}, ["--delimiter", '"']),
    "no header": ({"log.csv": "1,1193,5\n1,661,3\n"}, []),
    "`u.data` without its folder": ({"u.data": "1\t10\t5\t881250949\n"}, []),
    "a row with too few values": ({"log.csv": "user_id,item_id\na\n"}, []),
    "JSON that is damaged": (jsonl({"user_id": 1, "item_id": 2}, '{"user_id"'), []),
    "JSON of one object over many lines": ({"log.json": '{\n"user_id": 1}\n'}, []),
    "text that is no JSON": ({"log.json": "user_id\n"}, []),
    "a row that is a number": (jsonl({"user_id": 1, "item_id": 2}, 5), []),
    "a call in a Python literal": ({"log.json": "{'user_id': 1, 'item_id': 2}\n{'user_id': f()}\n"}, []),
    "a header of RecBole without types": ({"log.inter": "user_id\titem_id\na\tb\n"}, []),
    "histories of RecBole in place of interactions": (
        {"log.inter": "user_id:token\titem_id:token\titem_id_list:token_seq\na\tb\tc\n"},
        [],
    ),
    # Columns.
    "a column that is not there": ({"log.csv": LOG}, ["--rating-column", "stars"]),
    "two columns of one name": ({"log.csv": "user_id,item_id,item_id\na,b,c\n"}, []),
    "one column for two roles": ({"log.csv": LOG}, ["--user-column", "item_id"]),
    "`asin` and `parent_asin`": ({"log.csv": "user_id,asin,parent_asin\n1,2,3\n"}, []),
    "wanted columns that hold objects": (jsonl({"user_id": {"a": 1}, "item_id": 2}), []),
    "`--text heading=title`": (items(ITEMS), [*ITEM_FLAGS, "--text", "heading=title"]),
    "`--text title=tittle`": (items(ITEMS), [*ITEM_FLAGS, "--text", "title=tittle"]),
    "`--text title`": (items(ITEMS), [*ITEM_FLAGS, "--text", "title"]),
    "`--exclude-item-columns` of the ids": (items(ITEMS), [*ITEM_FLAGS, "--exclude-item-columns", "item_id"]),
    "`--exclude-item-columns` of a column that is not there": (items(ITEMS), [*ITEM_FLAGS, "--exclude-item-columns", "prize"]),
    # Ids.
    'ids that are 7 and `"7"`': (jsonl({"user_id": 7, "item_id": 2}, {"user_id": "7", "item_id": 2}), []),
    "ids `1.0`, `2.0` in a CSV file": ({"log.csv": "user_id,item_id\n1.0,x\n2.0,y\n"}, []),
    "ids that are fractions": (jsonl({"user_id": 1.5, "item_id": 2}), []),
    "`--id-type integer` and `01`": ({"log.csv": "user_id,item_id\n01,x\n"}, ["--id-type", "integer"]),
    "an empty or missing id": ({"log.csv": "user_id,item_id\na,x\na,\n"}, []),
    "item rows that are repeated and differ": (items(f"{ITEMS}z,Other\n"), ITEM_FLAGS),
    "items without a row of texts": (items("item_id,title\nx,X\n"), ITEM_FLAGS),
    "texts of items with another type of ids": (
        items('{"item_id": 7, "title": "X"}\n', "items.jsonl"),
        ["--items", "items.jsonl"],
    ),
    "`--keep-all-items` without items": ({"log.csv": LOG}, ["--keep-all-items"]),
    # Times.
    "no times, `--split leave-one-out` or `temporal`": (
        text("unixReviewAt", 1, 2, 3),
        ["--split", "leave-one-out"],
    ),
    "`--split temporal --order rows`": ({"log.csv": LOG}, ["--split", "temporal", "--order", "rows"]),
    "seconds in some rows, milliseconds in others": (text("timestamp", 1593878903, 1593878903000), []),
    "dates in some rows, numbers in others": (text("timestamp", "2020-01-01", "5"), []),
    "`1e300`, `2**63`": (text("timestamp", "5", "1e300"), []),
    "a missing time": (jsonl({"user_id": 1, "item_id": 1, "timestamp": 5}, {"user_id": 1, "item_id": 2, "timestamp": None}), []),
    "`2020-13-01`, `soon`": (text("timestamp", "2020-12-01", "2020-13-01"), []),
    "numbers of 16 digits next to fractions": (text("timestamp", "1593878903000000", "1593878903.5"), []),
    "true and false as times": (jsonl({"user_id": 1, "item_id": 1, "timestamp": True}), []),
    # Ratings, reviews, filters, splits.
    "a rating that is no number": (text("rating", 5, "good"), []),
    "`--min-rating` without ratings": ({"log.csv": "user_id,item_id\na,x\n"}, ["--min-rating", "4"]),
    "`--min-rating` and a rating is missing": (text("rating", 5, ""), ["--min-rating", "4"]),
    "a pair in two splits": (
        {"log.csv": "user_id,item_id,split\na,1,train\na,1,test\n"},
        ["--split", "given"],
    ),
    "`val` as a split": (text("split", "train", "val"), ["--split", "given"]),
    "`--split given` without splits": ({"log.csv": LOG}, ["--split", "given"]),
    "all rows held out": (text("split", "test", "test"), ["--split", "given"]),
    "times too alike for the cuts": (
        text("timestamp", 1, 3, 3, 3),
        ["--split", "temporal", "--temporal-cuts", "0.5", "0.75"],
    ),
    "`--temporal-cuts 0.9 0.8`": ({"log.csv": LOG}, ["--split", "temporal", "--temporal-cuts", "0.9", "0.8"]),
    "`--short-users error` and short users": ({"log.csv": LOG}, ["--short-users", "error"]),
    "filters that leave nothing": ({"log.csv": LOG}, ["--k-core", "9"]),
    "`--k-core -1`": ({"log.csv": LOG}, ["--k-core", "-1"]),
    "`--k-core 5 --min-user-interactions 3`": ({"log.csv": LOG}, ["--k-core", "5", "--min-user-interactions", "3"]),
    "a maximum below the minimum": (
        {"log.csv": LOG},
        ["--min-user-interactions", "3", "--max-user-interactions", "2"],
    ),
    "`--seed -1`": ({"log.csv": LOG}, ["--seed", "-1"]),
    "`--memory-limit 4`": ({"log.csv": LOG}, ["--memory-limit", "4"]),
    "an output that holds something else": ({"log.csv": LOG, "out/thesis.txt": "x"}, []),
    # Folders of public data sets.
    "a folder of no known format": ({"raw/log.csv": LOG}, ["--folder", "raw"]),
    "a folder of two formats": (
        {"raw/a.inter": "user_id:token\titem_id:token\n1\t2\n", "raw/a.inter.json": '{"1": [2]}'},
        ["--folder", "raw"],
    ),
    "a folder without the files of `--format`": ({"raw/log.csv": LOG}, ["--folder", "raw", "--format", "hm"]),
    "several files that fit `--format`": (
        {"raw/A.jsonl": "", "raw/B.jsonl": ""},
        ["--folder", "raw", "--format", "amazon2023"],
    ),
    "`--format` of a file": ({"log.csv": LOG}, ["--format", "movielens"]),
    "a flag that the format fixes": (
        {"raw/ratings.csv": "userId,movieId,rating,timestamp\n1,2,3,4\n"},
        ["--folder", "raw", "--delimiter", ";"],
    ),
    "`--split given` of files without a split": (
        {"raw/ratings.csv": "userId,movieId,rating,timestamp\n1,2,3,4\n"},
        ["--folder", "raw", "--split", "given"],
    ),
    "MIND without labels": ({"raw/behaviors.tsv": "1\tU1\t11/13/2019 8:36:57 AM\tN3\tN1 N2\n"}, ["--folder", "raw"]),
    "times of Goodreads in another form": (
        {"raw/goodreads_interactions.json": '{"user_id": "a", "book_id": "b", "rating": 5, "date_added": "2011-08-01"}\n'},
        ["--folder", "raw"],
    ),
    "a split of RecBole that is missing": (
        {"raw/a.train.inter": "user_id:token\titem_id:token\n1\t2\n"},
        ["--folder", "raw"],
    ),
}
PYTHON: dict[str, Callable[[], Any]] = {
    "ids that pandas made fractions": lambda: pd.DataFrame({"user_id": [1.0, 2.0], "item_id": [1, 2]}),
    "a frame with two columns of one name": lambda: pd.DataFrame(np.zeros((2, 2)), columns=["user_id", "user_id"]),
    "a `DatasetDict`": lambda: datasets.DatasetDict({"train": datasets.Dataset.from_list([{"user_id": 1, "item_id": 2}])}),
    "a lazy frame of polars": lambda: type("LazyFrame", (), {"collect": None})(),
    "a column of structs": lambda: [{"user_id": 1, "item_id": {"a": 1}}],
    "any other object": lambda: sparse.eye(2),
}


def table() -> dict[str, str]:
    """Return input -> message of the table on the page."""
    lines = PAGE.read_text(encoding="utf-8").split("### Bad input", 1)[1].split("\n## ", 1)[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and not line.startswith(("| input", "|--"))]
    return dict(rows)


def said(message: str, real: str) -> bool:
    """Check whether a message of the page is in the real one; `...` may be any words."""
    words = message.removeprefix("`").removesuffix("`")
    return re.search(r".*".join(map(re.escape, words.split("..."))), real) is not None


def test_every_row_has_a_case() -> None:
    assert list(table()) == [*SHELL, *PYTHON]
    assert len(table()) >= 40


@pytest.mark.parametrize("given", SHELL)
def test_shell(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files, flags = SHELL[given]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.chdir(tmp_path)
    source = [] if "--folder" in flags or "--interactions" in flags else ["--interactions", next(iter(files))]
    assert main(["prepare", *source, "--output", "out", *flags]) == 2
    (real,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cllm4rec prepare: error: ")]
    assert said(table().get(given, "?"), real), real
    assert not any((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize("given", PYTHON)
def test_python(given: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as raised:
        prepare(tmp_path / "out", PYTHON[given]())
    assert said(table().get(given, "?"), str(raised.value)), str(raised.value)
