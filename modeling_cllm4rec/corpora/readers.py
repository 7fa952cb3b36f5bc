"""Tables from files: CSV, RecBole's atomic files, JSON Lines, Parquet, or a dataset of the `datasets` library.

All columns of a CSV file are read as text, because the file has no types: `007` may be an id. The same holds for the tokens
of an atomic file.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import re
import zlib
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
"""Bytes parsed together; a single row of a CSV or JSON Lines file must be shorter."""
ATOMIC = (".inter", ".item", ".user")
"""Suffixes of the atomic files of RecBole: columns separated by tabs, and a header of `name:type`."""
ATOMIC_TYPES = {"token": pa.large_string(), "token_seq": pa.large_string(), "float": pa.float64()}

PICKLE = "is a pickle, and to read a pickle is to run whatever program is in it, so it is never read here"
"""The reason in the message that refuses a pickle."""

Choice = Callable[[Sequence[str]], list[str]]
"""Function from the columns of a file to the columns to read; raises InputError if one is missing."""


def read_table(source: str | Path, required: Sequence[str] = (), optional: Sequence[str] | None = None) -> pa.Table:
    """Read columns of a table.

    Args:
        source: a `.csv`, `.csv.gz`, `.jsonl`, `.json` (one object per line), `.jsonl.gz`, `.json.gz` or `.parquet`
            file; an atomic file of RecBole (`.inter`, `.item`, `.user`); a folder written by
            `datasets.Dataset.save_to_disk`; or `hf:NAME[:split]`, a dataset of the Hub (by default its split `train`).
        required: columns that must exist.
        optional: columns to read if they exist; `None` means all.

    Returns:
        The table: first the required columns, then the optional ones. All columns of a CSV file are text; those of an
        atomic file are text (tokens, sequences of tokens) or float64.

    Raises:
        MissingFileError: there is no such file or data set.
        InputError: the kind of file is unknown, or the file cannot be parsed, has no rows, or lacks a required column.

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
    """Check whether a source has no types: a CSV file, plain or gzipped, or an atomic file."""
    return _kind(Path(source)) in ("csv", "atomic")


def checksum(source: str | Path) -> str:
    """Return the SHA-256 of a source in hexadecimal.

    It is computed over a file, over the files of a saved dataset in the order of their names, or over the Arrow files of a
    dataset of the Hub.
    """
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
    """Return `; did you mean 'x'?` for the existing name that is most similar to `name`, or an empty text.

    >>> nearest_names("userid", ["stars", "user_id"])
    "; did you mean 'user_id'?"
    """
    folded = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _choose(source: str, names: Sequence[str], required: Sequence[str], optional: Sequence[str] | None) -> list[str]:
    """Return the columns to read, required ones first."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{source}: column {twice[0]!r} occurs more than once; rename one of them")
    for name in required:
        if name not in names:
            raise InputError(f"{source}: no column {name!r}; it has {', '.join(names)}{nearest_names(name, names)}")
    more = names if optional is None else optional
    return list(dict.fromkeys([*required, *(name for name in more if name in names)]))


def _read_path(path: Path, choose: Choice) -> pa.Table:
    """Read a file, or a folder with a saved dataset."""
    if not path.exists():
        raise MissingFileError(f"{path}: there is no such file or folder")
    if path.is_dir():
        return _read_dataset(_saved_dataset(path), choose)
    read = {"csv": _read_csv, "atomic": _read_atomic, "json": _read_json, "parquet": _read_parquet}.get(_kind(path))
    if path.name.lower().endswith((".pkl", ".pickle")):
        raise InputError(f"{path}: {PICKLE}; write the table as Parquet, with pandas: frame.to_parquet(...)")
    if read is None:
        raise InputError(
            f"{path}: the kind of file cannot be recognized by its name; it must end in .csv, .csv.gz, .jsonl, .jsonl.gz, "
            f".json, .json.gz, .parquet, {', '.join(ATOMIC)}, or be a folder written by datasets.Dataset.save_to_disk, "
            f"or {HUB_PREFIX}NAME"
        )
    if not path.stat().st_size:
        raise InputError(f"{path} is empty (0 bytes)")
    try:
        return read(path, choose)
    except (pa.ArrowException, csv.Error, zlib.error, UnicodeDecodeError, EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {_explain(str(error))}") from error


def _kind(path: Path) -> str:
    """Return the kind of a file by its name: `csv`, `atomic`, `json`, `parquet`, or an empty text."""
    if path.name.lower().endswith(ATOMIC):
        return "atomic"
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".json", ".jsonl")):
        return "json"
    if name.endswith(".csv"):
        return "csv"
    return "parquet" if path.name.lower().endswith(".parquet") else ""


def _explain(message: str) -> str:
    """Return the message of a parser, rewritten with a remedy where one is known."""
    mixed = re.search(r"Column\(/(.+?)\) changed from (\w+) to (\w+) in row (\d+)", message)
    if mixed:
        column, first, second, row = mixed.groups()
        return f"column {column!r} mixes types: {first}, and {second} in row {int(row) + 1}; write all its values in one type"
    if "changed from object to array" in message:
        return "it must hold one JSON object per line, not one JSON array"
    return message


def _open_text(path: Path) -> IO[str]:
    """Open a text file, plain or gzipped, with or without a byte order mark."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _read_csv(path: Path, choose: Choice) -> pa.Table:
    """Read a CSV file, all columns as text."""
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
    """Read an atomic file: `user_id:token`, `rating:float`, ... separated by tabs, without quotes; drop types from names."""
    with _open_text(path) as file:
        fields = [field.rpartition(":") for field in file.readline().rstrip("\r\n").split("\t")]
    for name, _, kind in fields:
        if not name:
            raise InputError(f"{path}: the field {kind!r} of the header has no type; it must be name:type, such as user_id:token")
    types = {name: kind for name, _, kind in fields}
    columns = choose([name for name, _, _ in fields])
    for name in columns:
        if types[name] not in ATOMIC_TYPES:
            readable = ", ".join(ATOMIC_TYPES)
            raise InputError(f"{path}: column {name!r} has type {types[name]!r}; only {readable} can be read: leave it out")
    lists = [name for name in types if name.endswith("_list")]
    if path.name.lower().endswith(".inter") and lists:
        raise InputError(
            f"{path}: {lists[0]!r} holds histories, so its rows are training examples, not interactions; use the file "
            "with one interaction per row"
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
    """Read JSON lines; texts that look like dates stay texts, unlike in `pyarrow.json.read_json`."""
    table = _parse_json(path, [])
    dates = [pa.field(field.name, _without_dates(field.type)) for field in table.schema]
    changed = [field for field in dates if field.type != table.schema.field(field.name).type]
    if changed:
        table = _parse_json(path, changed)
    return table.select(choose(table.column_names))


def _parse_json(path: Path, fields: list[pa.Field]) -> pa.Table:
    """Parse JSON lines, some fields with given types."""
    with pa.input_stream(str(path), compression="detect") as stream:
        return pa_json.read_json(
            stream,
            read_options=pa_json.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pa_json.ParseOptions(explicit_schema=pa.schema(fields) if fields else None),
        )


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """Replace timestamps in a type by strings."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    return pa.list_(_without_dates(kind.value_type)) if pa.types.is_list(kind) else kind


def _read_parquet(path: Path, choose: Choice) -> pa.Table:
    """Read a Parquet file, only the columns that are needed."""
    with pq.ParquetFile(path) as file:
        return file.read(columns=choose(file.schema_arrow.names))


def _read_dataset(dataset: Any, choose: Choice) -> pa.Table:
    """Read a dataset of the `datasets` library as one table."""
    return dataset.select_columns(choose(dataset.column_names)).with_format("arrow")[:]


def _saved_dataset(folder: Path) -> Any:
    """Open a folder written by `Dataset.save_to_disk`."""
    import datasets  # slow to import, and most sources are files

    if not any(folder.glob("dataset_*.json")):
        raise InputError(f"{folder}: is a folder, but not one written by datasets.Dataset.save_to_disk")
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{folder}: cannot be read as a saved dataset: {error}") from error
    if isinstance(dataset, datasets.DatasetDict):
        first = folder / next(iter(dataset))
        raise InputError(f"{folder}: holds the splits {', '.join(dataset)}; name the folder of one, such as {first}")
    return dataset


def _hub_dataset(name: str) -> Any:
    """Load a dataset of the Hub.

    Raises:
        MissingFileError: there is no such dataset or split, or it cannot be downloaded.
    """
    import datasets  # slow to import, and most sources are files

    path, _, split = name.removeprefix(HUB_PREFIX).partition(":")
    if not path:
        raise InputError(f"{name!r} names no dataset; write {HUB_PREFIX}NAME or {HUB_PREFIX}NAME:SPLIT")
    try:
        return datasets.load_dataset(path, split=split or "train")
    except (OSError, ValueError) as error:
        raise MissingFileError(
            f"{name} cannot be read from the Hub ({error}); check the name, the split and the network"
        ) from error
