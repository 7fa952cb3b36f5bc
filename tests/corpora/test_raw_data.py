"""One reading for files, frames and lists: columns, roles of texts, cleaning, ids, and bad input."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.corpora.memory_tables import as_table
from modeling_cllm4rec.corpora.raw_data import open_raw_data, prepare
from modeling_cllm4rec.corpora.readers import open_source, read_table
from modeling_cllm4rec.corpora.sources import open_interactions, read_interactions, read_texts
from modeling_cllm4rec.corpora.text_cleaning import clean_texts
from modeling_cllm4rec.corpora.text_files import TextForm

ROWS = [{"user": "ann", "item": "é;1"}, {"user": "bob", "item": "x|y"}]
LONG = 1234567890123456789


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CONTENTS = {
    "a.csv": "user,item\nann,é;1\nbob,x|y\n",
    "a.tsv": "user\titem\nann\té;1\nbob\tx|y\n",
    "a.txt": "user::item\nann::é;1\nbob::x|y\n",
    "a.jsonl": LINES,
    "a.ndjson": LINES,
    "b.json": json.dumps(ROWS, indent=1),
    "c.json": "".join(repr(row) + "\n" for row in ROWS),
}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("name", CONTENTS)
def test_files_of_every_form(tmp_path: Path, name: str, encoding: str, ending: str) -> None:
    path = tmp_path / (name + ending)
    path.write_bytes(COMPRESS[ending](CONTENTS[name].encode(encoding)))
    assert read_table(path, form=TextForm(encoding=encoding.removesuffix("-sig"))).to_pylist() == ROWS


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) - 1, (1 << 20) - 11])
def test_delimiters_between_blocks(tmp_path: Path, size: int) -> None:
    """A delimiter of two characters may be divided between two blocks."""
    path = tmp_path / "a.dat"
    path.write_text("a::b\n" + "x" * (size - 6) + "::y\nz::w\n")
    table = read_table(path)
    assert table["b"].to_pylist() == ["y", "w"] and len(table["a"][0].as_py()) == size - 6


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    for part, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"part-{part}.parquet")
    assert read_table(tmp_path).to_pylist() == ROWS
    assert read_table(tmp_path, ["item"], []).column_names == ["item"]


class Polars:
    """Table with the interface of Arrow, as those of polars."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "make",
    [
        list,
        pd.DataFrame,
        pa.Table.from_pylist,
        datasets.Dataset.from_list,
        lambda rows: Polars(pa.Table.from_pylist(rows)),
        lambda rows: datasets.Dataset.from_list([*rows, *rows]).select([2, 1]),
        lambda rows: pd.DataFrame(rows).astype("category"),
    ],
    ids=["list", "pandas", "arrow", "datasets", "polars", "selection", "categories"],
)
def test_tables_in_memory(make: Callable[[Any], Any]) -> None:
    assert as_table(make(ROWS)).to_pylist() == ROWS
    interactions = open_interactions(make(ROWS)).reader.read_all()
    assert interactions.to_pylist() == [{"user_id": row["user"], "item_id": row["item"]} for row in ROWS]


def test_only_wanted_columns_are_parsed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"id": "a", "title": "T", "price": 1.5, "images": [{"x": 1}], "details": {"k": 1}},
        {"id": "b", "title": 7, "price": "from 5", "images": "none", "details": [], "late": True},
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_table(path, ["id"], ["title"]).to_pylist() == [{"id": "a", "title": "T"}, {"id": "b", "title": "7"}]
    with caplog.at_level(logging.WARNING):
        table = read_table(path)
    assert table.to_pylist() == [
        {"id": "a", "title": "T", "price": "1.5", "late": None},
        {"id": "b", "title": "7", "price": "from 5", "late": True},
    ]
    assert "left out, because they hold objects: images, details" in caplog.text
    with pytest.raises(ValueError, match="columns 'images', 'details' hold objects, which are no texts; leave them out"):
        read_table(path, ["images", "id", "details"])


def test_ids_come_out_as_they_went_in(tmp_path: Path) -> None:
    large = [LONG, 2**63 - 1, -(2**63) + 1, 2**53 + 1]
    (tmp_path / "a.csv").write_text("user_id,item_id\n" + "".join(f"{value},0{value}\n" for value in large))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"user_id": {value}, "item_id": "{value}"}}\n' for value in large))
    for name, first in (("a.csv", "0"), ("a.jsonl", "")):
        table = read_interactions(tmp_path / name)
        assert table["user_id"].to_pylist() == large
        assert table["item_id"].to_pylist() == [f"{first}{value}" for value in large]
    (tmp_path / "b.csv").write_text(f"user_id,item_id\n{2**63},1\n5,1\n")
    assert read_interactions(tmp_path / "b.csv")["user_id"].to_pylist() == [str(2**63), "5"]
    with pytest.raises(ValueError, match=r"user_id must be plain whole numbers, got '9223372036854775808' \(64 bits at most\)"):
        read_interactions(tmp_path / "b.csv", id_type="integer")


def test_roles_that_are_given_and_guessed(caplog: pytest.LogCaptureFixture) -> None:
    items = [
        {"article_id": "1", "prod_name": "Top", "detail_desc": "Soft", "genres": "A|B", "year": 1999, "colour": "red"},
        {"article_id": "2", "prod_name": None, "detail_desc": "Warm", "genres": "B", "year": 2000, "colour": None},
    ]
    with caplog.at_level(logging.INFO):
        guessed = read_texts(items, name="item_id")
    assert guessed.column_names == ["item_id", "title", "categories", "description", "year", "colour"]
    assert guessed["categories"].to_pylist() == [["A", "B"], ["B"]]
    assert (
        "texts that models read: title from prod_name, categories from genres, description from detail_desc; kept, not read by "
        "models: year, colour"
    ) in caplog.text
    given = read_texts(
        items, name="item_id", text={"title": ["colour", "prod_name"], "categories": ["genres", "year"]}, exclude=["detail_desc"]
    )
    assert given.to_pylist()[0] == {"item_id": "1", "title": "red Top", "categories": ["A|B", "1999"]}
    users = read_texts([{"user": 1, "about": "reads"}], name="user_id")
    assert users.to_pylist() == [{"user_id": 1, "biography": "reads"}]


def test_texts_without_a_known_name_are_reported_with_the_flag_that_reads_them(caplog: pytest.LogCaptureFixture) -> None:
    items = [{"item_id": "1", "Bezeichnung": "Tee"}]
    with caplog.at_level(logging.INFO):
        read_texts(items, name="item_id")
    assert (
        "texts that models read: none; kept, not read by models: Bezeichnung; give one a role: --text title='Bezeichnung', in "
        "Python text={'title': 'Bezeichnung'}"
    ) in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        read_texts(items, name="item_id", text={"title": "Bezeichnung"})
    assert "models read: title from Bezeichnung" in caplog.text and "give one a role" not in caplog.text


def test_a_column_that_may_hold_times_and_is_not_read_is_named(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"user_id": "u", "item_id": "i", "event_ts_ms": 1_700_000_000_000, "kind": "view"}]
    with caplog.at_level(logging.INFO):
        open_interactions(rows)
    assert (
        "no times are read; 'event_ts_ms' may be a column of times: --timestamp-column event_ts_ms, in Python "
        "timestamp_column='event_ts_ms'"
    ) in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        open_interactions(rows, timestamp_column="event_ts_ms")
    assert "no times are read" not in caplog.text


def test_columns_of_interactions_are_guessed(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"reviewerID": "u", "asin": "i", "overall": 4.0, "unixReviewTime": 5, "reviewText": "good", "helpful": 1}]
    with caplog.at_level(logging.INFO):
        table = read_interactions(rows)
    assert table.to_pylist() == [{"user_id": "u", "item_id": "i", "rating": 4.0, "timestamp": 5, "review": "good"}]
    assert "user_id from reviewerID, item_id from asin, rating from overall, timestamp from unixReviewTime" in caplog.text


def test_cleaning_is_the_same_for_all_tables() -> None:
    items = pa.table(
        {
            "item_id": ["a", "b", "c"],
            "title": ["Salt &amp; <b>pepper</b>", "nan", "  Two\n lines "],
            "description": ["['First.', 'It\\'s']", "[]", '["Third"]'],
            "categories": [["x &gt; y", "", None], [], None],
            "tags": ["['a']", "plain", "None"],
        }
    )
    cleaned = read_texts(items, name="item_id").to_pydict()
    assert cleaned == {
        "item_id": ["a", "b", "c"],
        "title": ["Salt & pepper", None, "Two lines"],
        "description": [["First.", "It's"], None, ["Third"]],
        "categories": [["x > y"], None, None],
        "tags": ["['a']", "plain", None],
    }


@pytest.mark.parametrize("text", ["Plain", "a < b", "tab-free, é 🙂 text", "<a_12>", "x_1", "12", "日本"])
def test_clean_texts_stay_as_they_are(text: str) -> None:
    assert clean_texts(pa.array([text])).to_pylist() == [text]


def test_reviews_are_cleaned(tmp_path: Path) -> None:
    log = [{"user_id": "u", "item_id": item, "review": "Good &#34;one&#34;<br />really", "split": "train"} for item in range(3)]
    data = prepare(tmp_path / "data", log, split="given")
    assert data.reviews()["review"].to_pylist() == ['Good "one" really'] * 3


def test_a_given_split_and_dates_in_memory(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 5, 1)
    log = pd.DataFrame({"uid": [1] * 4, "iid": [1, 2, 3, 4], "date": [day + datetime.timedelta(days=n) for n in (3, 2, 1, 0)]})
    data = prepare(tmp_path / "data", log, split="leave-one-out")
    assert data.items["item_id"].take(pa.array(data.histories("test").items)).to_pylist() == [1]


INTERACTIONS = "user_id,item_id\na,x\n"
BAD_FILES: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("a.csv", b"user_id;item_id,x\na;b,c\n", {}, "no column 'user_id'; it has user_id;item_id, x"),
    ("a.txt", b"user_id;item_id,x\na;b,c\n", {}, "the delimiter cannot be recognized, because the first line has ',', ';'"),
    ("a.csv", b"1,1193,5\n1,661,3\n", {}, "no column 'user_id'; it has 1, 1193, 5; the first line looks like data"),
    (
        "a.csv",
        "user_id,item_id\na,caf\xe9\n".encode("latin-1"),
        {},
        r"byte 21 \(0xe9\) is not utf-8; name the encoding of the file",
    ),
    ("a.csv", INTERACTIONS.encode("utf-16"), {}, "begins with the byte order mark of UTF-16; pass encoding='utf-16'"),
    ("a.csv", INTERACTIONS.encode(), {"encoding": "latin-99"}, "encoding is 'latin-99'; it must be a codec of Python"),
    ("a.csv", INTERACTIONS.encode(), {"delimiter": '"'}, "delimiter is '\"'; it must be one or more characters, no quotes"),
    ("a.csv", INTERACTIONS.encode(), {"user_column": "item_id"}, "two columns would be read from the same one"),
    ("a.csv", INTERACTIONS.encode(), {"rating_column": "stars"}, "no column 'stars'; it has user_id, item_id"),
    ("a.csv", b"user,uid,item\n1,2,3\n", {}, "'user', 'uid' may each be the user_id; name one of them with user_column='user'"),
    ("a.csv", b"user,asin,parent_asin\n1,2,3\n", {}, "'asin', 'parent_asin' may each be the item_id; name one of them with item"),
    ("a.csv", b"user,item,time,date\n1,2,3,4\n", {}, "'time', 'date' may each be the timestamp; name one of them with timestamp"),
    ("a.csv", b"user_id,item_id\n1.0,x\n2.0,y\n", {}, "user_id holds '1.0', an integer that was written as a fraction"),
    ("a.csv", b"user_id,item_id\n01,x\n", {"id_type": "integer"}, "user_id must be plain whole numbers, got '01'"),
    ("a.csv", b"user_id,item_id\n1,x\n", {"id_type": "float"}, "id_type must be one of auto, string, integer, got 'float'"),
    ("a.csv", b"user_id,item_id\n", {}, "has no rows"),
    ("a.csv", b"user_id,item_id,item_id\na,b,c\n", {}, "column 'item_id' occurs more than once"),
    ("a.csv", b"user_id,item_id\na\n", {}, "cannot be read: .*Expected 2 columns, got 1"),
    ("a.csv", b"", {}, r"is empty \(0 bytes\)"),
    ("a.csv.gz", INTERACTIONS.encode(), {}, "cannot be read"),
    ("a.xlsx", b"PK", {}, "the kind of file cannot be recognized by its name"),
    ("a.pkl", b"\x80", {}, "is a pickle"),
    ("a.json", b"user_id\n", {}, "it must hold one JSON object per line or one array of objects, not 'user_id'"),
    ("a.json", b"{\n", {}, "line 1 is neither a JSON object nor a Python literal"),
    ("a.json", b'{"user_id": 1, "item_id": 2}\n{"user_id"\n', {}, "line 2 is not JSON"),
    ("a.json", b"{'user_id': 1, 'item_id': 2}\n{'user_id': f()}\n", {}, "line 2 is no Python literal of an object"),
    ("a.json", b'{"user_id": 1, "item_id": 2}\n5\n', {}, "row 2 is 5, not an object"),
    ("a.json", b'{"user_id": {"a": 1}, "item_id": 2}\n', {}, "column 'user_id' holds objects, which are no texts"),
    ("a.json", b'{"user_id": 7, "item_id": 2}\n{"user_id": "7", "item_id": 2}\n', {}, "user_id mixes numbers and texts"),
    ("a.json", b'{"user_id": 1.5, "item_id": 2}\n', {}, "user_id must hold texts or integers, got double"),
    ("a.jsonl", b'{"user_id": "\xe9", "item_id": 2}\n', {}, r"byte 13 \(0xe9\) is not utf-8"),
    ("a.inter", b"user_id\titem_id\na\tb\n", {}, "of the header has no type; it must be name:type, such as user_id:token"),
]


@pytest.mark.parametrize(("name", "content", "arguments", "message"), BAD_FILES)
def test_bad_files(tmp_path: Path, name: str, content: bytes, arguments: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read = open_raw_data(tmp_path / name, **arguments)
        prepare(tmp_path / "data", read.interactions)


SPLITS = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
MIXED = pd.DataFrame({"user_id": ["7", 7], "item_id": [1, 2]})
BAD_TABLES: list[tuple[Any, str]] = [
    (
        pd.DataFrame({"user_id": [1.0, 2.0], "item_id": [1, 2]}),
        r"user_id must hold texts or integers, got double.*astype\('Int64'\)",
    ),
    (MIXED, "user_id mixes numbers and texts, and 7 is not '7'"),
    (pd.DataFrame(np.zeros((2, 2)), columns=["user_id", "user_id"]), "two columns have the same name"),
    (
        datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
        r"has the splits train; pass one of them, such as dataset\['train'\]",
    ),
    (5, "a table must be a path, a data frame of pandas or polars, .*, got builtins.int"),
    ([1, 2], "a table must be a path, .*, got builtins.list"),
    (type("LazyFrame", (), {"collect": None})(), r"LazyFrame; call collect\(\) first"),
    ([{"user_id": 1, "item_id": {"a": 1}}], r"'item_id' \(struct<a: int64>\) hold neither texts, numbers nor lists"),
    ([{"user_id": 1, "item_id": {"a": 1}}, {"user_id": 1, "item_id": 2}], "column 'item_id' holds objects and other values"),
]


@pytest.mark.parametrize(("table", "message"), BAD_TABLES)
def test_bad_tables(tmp_path: Path, table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", table)


BAD_TEXTS: list[tuple[dict[str, Any], str]] = [
    (
        {"text": {"heading": "title"}},
        "text has the role 'heading'; the roles are title, brand, categories, desc",
    ),
    ({"text": {"title": []}}, "text has no column for 'title'"),
    ({"text": {"title": "tittle"}}, "no column 'tittle'; it has id, title, parts; did you mean 'title'"),
    ({"text": {"title": "parts"}}, r"'parts' \(struct<a: int64>\) hold neither texts"),
    ({"id_column": "sku"}, "no column 'sku'; it has id, title, parts"),
    ({"id_column": None}, "no column 'item_id'; it has id, title, parts.*; name it with items_id_column"),
    ({"exclude": ["id"]}, "'id' is the column of ids and cannot be excluded"),
    ({"exclude": ["prize"]}, "no column 'prize' to exclude"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_TEXTS)
def test_bad_texts(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_texts([{"id": 1, "title": "T", "parts": {"a": 1}}], **{"name": "item_id", "id_column": "id", **arguments})


def test_sources_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        open_source(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="names no file of a data set; write hf://datasets/OWNER/NAME/FILE"):
        open_source("hf://datasets/owner/name")
    with pytest.raises(FileNotFoundError, match="cannot be read from the Hub"):
        open_source("hf://datasets/owner/name/a.csv")
