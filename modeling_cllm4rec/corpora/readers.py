"""Tables from any source: files, data sets of the `datasets` library and of the Hub, and tables in memory.

`open_source` names the columns of a source without reading it, and `Source.read` reads the wanted ones in batches, so a source
may be larger than memory. All columns of a CSV file are read as text, because the file has no types: `007` may be an id. The same
holds for the tokens of an atomic file.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.dataset_sources import HUB_FILES, HUB_PREFIX, hub_dataset, hub_file, saved_dataset
from modeling_cllm4rec.corpora.json_files import JsonFile
from modeling_cllm4rec.corpora.memory_tables import TableLike, as_table
from modeling_cllm4rec.corpora.text_files import (
    COMPRESSIONS,
    TextForm,
    atomic_fields,
    check_encoding,
    header_of,
    open_atomic,
    open_delimited,
    plain_name,
)

ATOMIC = (".inter", ".item", ".user")
"""Suffixes of the atomic files of RecBole: columns separated by tabs, and a header of `name:type`."""
JSON = (".json", ".jsonl", ".ndjson")
DELIMITED = (".csv", ".tsv", ".txt", ".dat", ".data")
LONGEST_NAME, MOST_NAMES = 40, 20
"""Characters of a name of a column, and number of names, in a message."""
PICKLE = "is a pickle, and to read a pickle is to run whatever program is in it, so it is never read here"
"""The reason in the message that refuses a pickle."""

Read: TypeAlias = Callable[[Sequence[str], Sequence[str]], pa.RecordBatchReader]

logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """Source whose columns are known and whose rows are not read yet.

    Attributes:
        name: for messages.
        columns: all columns, in the order of the source.
        untyped: whether it has no types, as CSV files.
        reader: function from the wanted columns, and those of them that must not be left out, to the rows.
    """

    name: str
    columns: tuple[str, ...]
    untyped: bool
    reader: Read

    def read(self, columns: Sequence[str], required: Sequence[str] = ()) -> pa.RecordBatchReader:
        """Open the rows of some columns; columns that hold objects are left out, and logged, unless they are required.

        Raises:
            InputError: a column is missing, a required one holds objects, or the file is damaged (also while the rows are read).
        """
        for name in columns:
            if name not in self.columns:
                listed = first_columns(self.columns)
                raise InputError(f"{self.name}: no column {name!r}; it has {listed}{nearest_names(name, self.columns)}")
        return self.reader(columns, required)


def open_source(source: TableLike, form: TextForm | None = None, everything: bool = True) -> Source:
    """Open a source of any kind and find its columns.

    Args:
        source: a file by its name: `.csv`, `.tsv`, `.txt`, `.dat` (delimited), `.jsonl`, `.ndjson`, `.json` (one object per line,
            one array of objects, or lines of Python literals), each plain or with `.gz`, `.zst` or `.bz2`; `.parquet`; `.inter`,
            `.item`, `.user` of RecBole. A folder of Parquet files, or one written by `datasets.Dataset.save_to_disk`.
            `hf:NAME[:split]`, a data set of the Hub (by default its split `train`), or `hf://datasets/OWNER/NAME/FILE`, a file of
            one. A table in memory: pandas, polars, pyarrow, `datasets.Dataset`, a list of dicts.
        form: delimiter, encoding, names of the columns.
        everything: whether all keys of JSON objects are columns, also those that only later objects have, for which the whole
            file is read.

    Raises:
        MissingFileError: there is no such file or data set.
        InputError: the kind of source is unknown, or it cannot be read.

    Example:
        >>> source = open_source([{"user": "ann", "stars": 5}])
        >>> source.columns, source.read(["stars"]).read_all().to_pylist()
        (('user', 'stars'), [{'stars': 5}])
    """
    form = form or TextForm()
    if not isinstance(source, (str, Path)):
        return _open_table(source)
    name = str(source)
    if name.startswith(HUB_FILES):
        return _open_path(hub_file(name), name, form, everything)
    if name.startswith(HUB_PREFIX):
        return _open_dataset(name, hub_dataset(name))
    return _open_path(Path(source), name, form, everything)


def read_table(
    source: TableLike, required: Sequence[str] = (), optional: Sequence[str] | None = None, form: TextForm | None = None
) -> pa.Table:
    """Read columns of a source into memory.

    Args:
        source: see `open_source`.
        required: columns that must exist.
        optional: columns to read if they exist; `None` means all.
        form: see `open_source`.

    Returns:
        The table: first the required columns, then the optional ones. All columns of a CSV file are text; those of an
        atomic file are text (tokens, sequences of tokens) or float64.

    Raises:
        MissingFileError: there is no such file or data set.
        InputError: the source cannot be read, has no rows, or lacks a required column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.csv")
        ...     _ = path.write_text("user,stars\\nann,5\\n")
        ...     read_table(path, ["user"]).to_pylist()
        [{'user': 'ann', 'stars': '5'}]
    """
    opened = open_source(source, form, optional is None)
    more = opened.columns if optional is None else [name for name in optional if name in opened.columns]
    table = opened.read(list(dict.fromkeys([*required, *more])), required).read_all()
    if not table.num_rows:
        raise InputError(f"{opened.name} has no rows")
    return table


def checksum(source: str | Path) -> str:
    """Return the SHA-256 of a source in hexadecimal.

    It is computed over a file, over the files of a saved dataset in the order of their names, or over the Arrow files of a
    dataset of the Hub.
    """
    name = str(source)
    if name.startswith(HUB_FILES):
        paths = [hub_file(name)]
    elif name.startswith(HUB_PREFIX):
        paths = [Path(file["filename"]) for file in hub_dataset(name).cache_files]
    elif Path(source).is_dir():
        files = (path for path in Path(source).rglob("*") if path.is_file())
        paths = sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(source).parts))
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


def first_columns(names: Sequence[str]) -> str:
    """Return the names of columns for a message; those of a file without a header may be very long and very many.

    >>> first_columns(["user", "", "N" * 100, *"abcdefghijklmnopqrstuvwxyz"])  # doctest: +ELLIPSIS
    "user, '', NNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNN..., a, b, ... (and 9 more)"
    """
    shown = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 4]}..." for name in names[:MOST_NAMES]]
    more = f" (and {len(names) - MOST_NAMES} more)" if len(names) > MOST_NAMES else ""
    return ", ".join(name or "''" for name in shown) + more


def _open_table(source: TableLike) -> Source:
    if isinstance(source, pa.RecordBatchReader):
        names = source.schema.names
        return Source("the table", tuple(names), False, lambda columns, required: _selected(source, columns, required))
    table = as_table(source)
    name = "the table"
    _refuse_twice(name, table.column_names)

    def read(columns: Sequence[str], required: Sequence[str]) -> pa.RecordBatchReader:
        return _without_objects(name, table.select(list(columns)).to_reader(), required)

    return Source(name, tuple(table.column_names), False, read)


def _selected(reader: pa.RecordBatchReader, columns: Sequence[str], required: Sequence[str]) -> pa.RecordBatchReader:
    schema = pa.schema([reader.schema.field(name) for name in columns])
    batches = (batch.select(list(columns)) for batch in reader)
    return _without_objects("the table", pa.RecordBatchReader.from_batches(schema, batches), required)


def _open_path(path: Path, name: str, form: TextForm, everything: bool) -> Source:
    """Open a file, or a folder of Parquet files or with a saved data set."""
    if not path.exists():
        raise MissingFileError(f"{name}: there is no such file or folder")
    if path.is_dir():
        parts = sorted(str(part) for part in path.glob("*.parquet"))
        return _open_parquet(name, parts) if parts else _open_dataset(name, saved_dataset(path))
    if path.name.lower().endswith((".pkl", ".pickle")):
        raise InputError(f"{name}: {PICKLE}; write the table as Parquet, with pandas: frame.to_parquet(...)")
    kind = _kind(path)
    if form.delimiter and kind in ("atomic", ""):
        kind = "delimited"
    if not kind:
        raise InputError(
            f"{name}: the kind of file cannot be recognized by its name; it must end in {', '.join([*DELIMITED, *JSON])} (also "
            f"with {', '.join(COMPRESSIONS)}), .parquet, {', '.join(ATOMIC)}, or be a folder of Parquet files, a folder written "
            f"by datasets.Dataset.save_to_disk, {HUB_PREFIX}NAME or {HUB_FILES}datasets/OWNER/NAME/FILE; delimiter=... reads any "
            "other name as delimited text"
        )
    if not path.stat().st_size:
        raise InputError(f"{name} is empty (0 bytes)")
    with _Readable(path, name, form):
        if kind == "parquet":
            return _open_parquet(name, [str(path)])
        if kind == "json":
            return _open_json(path, name, form, everything)
        if kind == "atomic":
            fields = atomic_fields(path, form)
            return _guarded(
                Source(name, tuple(fields), True, lambda columns, _: open_atomic(path, fields, form, columns)), path, form
            )
        header, known = header_of(path, form, plain_name(path).rpartition(".")[2])
        _refuse_twice(name, header)
        return _guarded(
            Source(name, tuple(header), True, lambda columns, _: open_delimited(path, header, known, columns)), path, form
        )


def _open_json(path: Path, name: str, form: TextForm, everything: bool) -> Source:
    file = JsonFile(path, form)
    names = file.names(everything)

    def read(columns: Sequence[str], required: Sequence[str]) -> pa.RecordBatchReader:
        reader, nested = file.read(columns, required)
        _log_left_out(name, nested)
        return reader

    return _guarded(Source(name, tuple(names), False, read), path, form)


def _open_parquet(name: str, paths: list[str]) -> Source:
    """Open Parquet files of one schema, in the order of their names."""
    try:
        data = pads.dataset(paths, format="parquet") if len(paths) > 1 else None
        schema = data.schema if data is not None else pq.read_schema(paths[0])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name}: cannot be read: {error}") from error
    _refuse_twice(name, schema.names)

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for path in paths:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(columns=list(columns)):
                    selected = pa.Table.from_batches([batch]).select(list(columns))
                    yield from selected.cast(pa.schema([schema.field(column) for column in columns])).to_batches()

    def read(columns: Sequence[str], required: Sequence[str]) -> pa.RecordBatchReader:
        chosen = pa.schema([schema.field(column) for column in columns])
        return _without_objects(name, pa.RecordBatchReader.from_batches(chosen, batches(columns)), required)

    return _guarded(Source(name, tuple(schema.names), False, read), Path(paths[0]), TextForm())


def _open_dataset(name: str, dataset: Any) -> Source:
    """Open a data set of the `datasets` library."""

    def read(columns: Sequence[str], required: Sequence[str]) -> pa.RecordBatchReader:
        table = dataset.select_columns(list(columns)).with_format("arrow")[:]
        return _without_objects(name, table.select(list(columns)).to_reader(), required)

    return Source(name, tuple(dataset.column_names), False, read)


class _Readable:
    """Turn the errors of parsers into InputError, inside a `with` block."""

    def __init__(self, path: Path, name: str, form: TextForm) -> None:
        self.path, self.name, self.form = path, name, form

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        known = (pa.ArrowException, csv.Error, zlib.error, UnicodeError, EOFError, OSError)
        if not isinstance(error, known) or isinstance(error, (InputError, MissingFileError)):
            return
        text = str(error)
        if isinstance(error, UnicodeError) or "UTF8" in text or "UTF-16" in text or "NUL" in text:
            check_encoding(self.path, self.form)
        raise InputError(f"{self.name}: cannot be read: {text}") from error


def _guarded(source: Source, path: Path, form: TextForm) -> Source:
    """Turn the errors that come while the rows are read."""
    guard = _Readable(path, source.name, form)

    def batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        with guard:
            yield from reader

    def read(columns: Sequence[str], required: Sequence[str]) -> pa.RecordBatchReader:
        with guard:
            reader = source.reader(columns, required)
        return pa.RecordBatchReader.from_batches(reader.schema, batches(reader))

    return source._replace(reader=read)


def _without_objects(name: str, reader: pa.RecordBatchReader, required: Sequence[str]) -> pa.RecordBatchReader:
    """Leave out the columns whose values are neither scalars nor lists of scalars.

    Raises:
        InputError: a required column is one of them.
    """
    nested = [field.name for field in reader.schema if not _is_text_like(field.type)]
    if not nested:
        return reader
    needed = [column for column in nested if column in required]
    if needed:
        listed = ", ".join(f"{column!r} ({reader.schema.field(column).type})" for column in needed)
        raise InputError(f"{name}: {listed} hold neither texts, numbers nor lists of them; leave them out")
    _log_left_out(name, nested)
    kept = [column for column in reader.schema.names if column not in nested]
    schema = pa.schema([reader.schema.field(column) for column in kept])
    return pa.RecordBatchReader.from_batches(schema, (batch.select(kept) for batch in reader))


def _is_text_like(kind: pa.DataType) -> bool:
    """Check whether a type holds scalars, lists of scalars, or lists of such lists."""
    for _ in range(2):
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _log_left_out(name: str, columns: Sequence[str]) -> None:
    if columns:
        logger.warning("%s: left out, because they hold objects: %s", name, ", ".join(columns))


def _refuse_twice(name: str, names: Sequence[str]) -> None:
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise InputError(f"{name}: column {twice[0]!r} occurs more than once; rename one of them")


def _kind(path: Path) -> str:
    """Return the kind of a file by its name: `delimited`, `atomic`, `json`, `parquet`, or an empty text."""
    name = plain_name(path)
    if name.endswith(ATOMIC):
        return "atomic"
    if name.endswith(JSON):
        return "json"
    if name.endswith(DELIMITED):
        return "delimited"
    return "parquet" if path.name.lower().endswith(".parquet") else ""
