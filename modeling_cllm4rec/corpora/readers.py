"""Tables from files: CSV, RecBole's atomic files, JSON Lines, Parquet, or a dataset of the `datasets` library.

A CSV file is read as text throughout, because the file itself does not say what a number is: `007` may be an id. So are
the tokens of an atomic file.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from modeling_cllm4rec.core.errors import InputError, MissingFileError

HUB_PREFIX = "hf:"
BLOCK_BYTES = 16 << 20
"""Bytes parsed at a time; a single row of a CSV or JSON Lines file must be shorter."""
ATOMIC = (".inter", ".item", ".user")
"""Suffixes of RecBole's atomic files: columns between tabs, a header of `name:type`."""
ATOMIC_TYPES = {"token": pa.large_string(), "token_seq": pa.large_string(), "float": pa.float64()}

PICKLE = "is a pickle, and to read a pickle is to run whatever program is in it, so it is never read here"
"""Why a file is refused."""

Choice = Callable[[Sequence[str]], list[str]]
"""From the columns that a file has to the columns to read; raises ValueError if one is missing."""


def read_table(source: str | Path, required: Sequence[str] = (), optional: Sequence[str] | None = None) -> pa.Table:
    """Read the named columns of a table.

    Args:
        source: a `.csv`, `.csv.gz`, `.jsonl`, `.json` (one object per line), `.jsonl.gz`, `.json.gz` or `.parquet`
            file; an atomic file of RecBole (`.inter`, `.item`, `.user`); a folder written by
            `datasets.Dataset.save_to_disk`; or `hf:NAME[:split]`, a dataset of the Hub (split `train` if none is named).
        required: columns that must be there.
        optional: columns to read when they are there; `None` means all.

    Returns:
        The table: first the required columns, then the optional ones. All columns of a CSV file are text; those of an
        atomic file are text (tokens, sequences of tokens) or float64.

    Raises:
        MissingFileError: if there is no such file.
        InputError: if the kind of file is unknown, it cannot be parsed, has no rows, or lacks a required column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.csv")
        ...     _ = path.write_text("user,stars\\nann,5\\n")
        ...     read_table(path, ["user"]).to_pylist()
        [{'user': 'ann', 'stars': '5'}]
    """
    name = str(source)

    def choose(names: Sequence[str]) -> list[str]:
        return _choose(name, names, required, optional)

    if name.startswith(HUB_PREFIX):
        table = _read_dataset(_hub_dataset(name), choose)
    else:
        table = _read_path(Path(source), choose)
    if not table.num_rows:
        raise InputError(f"{name} has no rows")
    return table


def is_untyped(source: str | Path) -> bool:
    """Whether a source does not tell texts from whole numbers: a CSV file, plain or gzipped, or an atomic file."""
    return _kind(Path(source)) in ("csv", "atomic")


def checksum(source: str | Path) -> str:
    """SHA-256 of a source in hexadecimal: of a file, of the files of a saved dataset in the order of their names one
    after the other, or of the Arrow files of a dataset of the Hub."""
    name = str(source)
    if name.startswith(HUB_PREFIX):
        paths = [Path(file["filename"]) for file in _hub_dataset(name).cache_files]
    elif Path(source).is_dir():
        paths = sorted(path for path in Path(source).rglob("*") if path.is_file())
    else:
        paths = [Path(source)]
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def nearest_names(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the existing name that is most like `name`, or nothing.

    >>> nearest_names("userid", ["stars", "user_id"])
    "; did you mean 'user_id'?"
    """
    folded = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _choose(source: str, names: Sequence[str], required: Sequence[str], optional: Sequence[str] | None) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{source}: column {twice[0]!r} is there more than once; rename one of them")
    for name in required:
        if name not in names:
            raise InputError(f"{source}: no column {name!r}; it has {', '.join(names)}{nearest_names(name, names)}")
    more = names if optional is None else optional
    return list(dict.fromkeys([*required, *(name for name in more if name in names)]))


def _read_path(path: Path, choose: Choice) -> pa.Table:
    if not path.exists():
        raise MissingFileError(f"{path}: there is no such file or folder")
    if path.is_dir():
        return _read_dataset(_saved_dataset(path), choose)
    read = {"csv": _read_csv, "atomic": _read_atomic, "json": _read_json, "parquet": _read_parquet}.get(_kind(path))
    if path.name.lower().endswith((".pkl", ".pickle")):
        raise InputError(f"{path}: {PICKLE}; write the table as Parquet, with pandas: frame.to_parquet(...)")
    if read is None:
        raise InputError(
            f"{path}: the kind of file is not known by its name; it must end in .csv, .csv.gz, .jsonl, .jsonl.gz, "
            f".json, .json.gz, .parquet, {', '.join(ATOMIC)}, or be a folder written by datasets.Dataset.save_to_disk, "
            f"or {HUB_PREFIX}NAME"
        )
    if not path.stat().st_size:
        raise InputError(f"{path} is empty (0 bytes)")
    try:
        return read(path, choose)
    except (pa.ArrowInvalid, UnicodeDecodeError, EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {_explain(str(error))}") from error


def _kind(path: Path) -> str:
    """`csv`, `atomic`, `json`, `parquet`, or an empty word."""
    if path.name.lower().endswith(ATOMIC):
        return "atomic"
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".json", ".jsonl")):
        return "json"
    if name.endswith(".csv"):
        return "csv"
    return "parquet" if path.name.lower().endswith(".parquet") else ""


def _explain(message: str) -> str:
    """A parser's message with what to do about it."""
    mixed = re.search(r"Column\(/(.+?)\) changed from (\w+) to (\w+) in row (\d+)", message)
    if mixed:
        column, first, second, row = mixed.groups()
        return f"column {column!r} mixes types: {first}, and {second} in row {int(row) + 1}; write all its values in one type"
    if "changed from object to array" in message:
        return "it must hold one JSON object per line, not one JSON array"
    return message


def _open_text(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _read_csv(path: Path, choose: Choice) -> pa.Table:
    with _open_text(path) as file:
        header = next(csv.reader(file), [])
    columns = choose(header)
    with pa.input_stream(str(path), compression="detect") as stream:
        return pa_csv.read_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.large_string())
            ),
        )


def _read_atomic(path: Path, choose: Choice) -> pa.Table:
    """An atomic file: `user_id:token`, `rating:float`, ... between tabs, without quotes; the types leave the names."""
    with _open_text(path) as file:
        fields = [field.rpartition(":") for field in file.readline().rstrip("\r\n").split("\t")]
    for name, _, kind in fields:
        if not name:
            raise InputError(f"{path}: the header's field {kind!r} has no type; it must be name:type, as user_id:token")
    types = {name: kind for name, _, kind in fields}
    columns = choose([name for name, _, _ in fields])
    for name in columns:
        if types[name] not in ATOMIC_TYPES:
            allowed = ", ".join(ATOMIC_TYPES)
            raise InputError(f"{path}: column {name!r} has type {types[name]!r}; {allowed} can be read: leave it out")
    lists = [name for name in types if name.endswith("_list")]
    if path.name.lower().endswith(".inter") and lists:
        raise InputError(
            f"{path}: {lists[0]!r} holds histories, so its rows are examples for training, not interactions; give the file "
            "with one interaction in each row"
        )
    with pa.input_stream(str(path)) as stream:
        return pa_csv.read_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, column_names=list(types), skip_rows=1),
            parse_options=pa_csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pa_csv.ConvertOptions(
                include_columns=columns, column_types={name: ATOMIC_TYPES[types[name]] for name in columns}
            ),
        )


def _read_json(path: Path, choose: Choice) -> pa.Table:
    """Like `pyarrow.json.read_json`, except that a text that looks like a date stays a text."""
    table = _parse_json(path, [])
    dates = [pa.field(field.name, _without_dates(field.type)) for field in table.schema]
    changed = [field for field in dates if field.type != table.schema.field(field.name).type]
    if changed:
        table = _parse_json(path, changed)
    return table.select(choose(table.column_names))


def _parse_json(path: Path, fields: list[pa.Field]) -> pa.Table:
    with pa.input_stream(str(path), compression="detect") as stream:
        return pa_json.read_json(
            stream,
            read_options=pa_json.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pa_json.ParseOptions(explicit_schema=pa.schema(fields) if fields else None),
        )


def _without_dates(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    return pa.list_(_without_dates(kind.value_type)) if pa.types.is_list(kind) else kind


def _read_parquet(path: Path, choose: Choice) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=choose(file.schema_arrow.names))


def _read_dataset(dataset: Any, choose: Choice) -> pa.Table:
    return dataset.select_columns(choose(dataset.column_names)).with_format("arrow")[:]


def _saved_dataset(folder: Path) -> Any:
    import datasets  # heavy, and most sources are files

    if not any(folder.glob("dataset_*.json")):
        raise InputError(f"{folder}: is a folder, but not one written by datasets.Dataset.save_to_disk")
    dataset = datasets.load_from_disk(str(folder))
    if isinstance(dataset, datasets.DatasetDict):
        first = folder / next(iter(dataset))
        raise InputError(f"{folder}: holds the splits {', '.join(dataset)}; name the folder of one, such as {first}")
    return dataset


def _hub_dataset(name: str) -> Any:
    import datasets  # heavy, and most sources are files

    path, _, split = name.removeprefix(HUB_PREFIX).partition(":")
    if not path:
        raise InputError(f"{name!r} names no dataset; write {HUB_PREFIX}NAME or {HUB_PREFIX}NAME:SPLIT")
    return datasets.load_dataset(path, split=split or "train")
