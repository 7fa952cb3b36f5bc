"""Text files of any compression and encoding, and tables in them: CSV, other delimiters, atomic files of RecBole."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from modeling_cllm4rec.core.errors import InputError

BLOCK_BYTES = 16 << 20
"""Bytes parsed together; a single row of a CSV file must be shorter."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Suffix -> compression, by the names of pyarrow."""
DELIMITERS = ("::", "\t", ",", ";", "|")
"""Delimiters that are recognized in a header."""
SEPARATOR = "\x1f"
"""Replaces delimiters of more than one character, which parsers of CSV do not know: the unit separator of ASCII."""
ATOMIC_TYPES = {"token": pa.large_string(), "token_seq": pa.large_string(), "float": pa.float64()}
"""Types of the fields of RecBole's atomic files."""


@dataclass(frozen=True)
class TextForm:
    """Form of a text file.

    Attributes:
        delimiter: of one or more characters; `None` means that it is recognized.
        encoding: a codec of Python, such as `utf-8`, `latin-1`, `utf-16`.
        names: names of the columns of a file without a header, otherwise empty.
        quoted: whether `"` quotes values.
    """

    delimiter: str | None = None
    encoding: str = "utf-8"
    names: tuple[str, ...] = ()
    quoted: bool = True

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise InputError(f"encoding is {self.encoding!r}; it must be a codec of Python, such as utf-8 or latin-1") from None
        if self.delimiter is not None and (not self.delimiter or set(self.delimiter) & set('"\r\n')):
            raise InputError(f"delimiter is {self.delimiter!r}; it must be one or more characters, no quotes and no line breaks")

    @property
    def is_utf8(self) -> bool:
        """Whether the encoding is UTF-8, which parsers read themselves."""
        return codecs.lookup(self.encoding).name in ("utf-8", "utf-8-sig", "ascii")


def plain_name(path: Path) -> str:
    """Return the lower-case name of a file without the suffix of its compression.

    >>> plain_name(Path("Reviews.JSON.gz"))
    'reviews.json'
    """
    name = path.name.lower()
    return name[: -len(path.suffix)] if path.suffix.lower() in COMPRESSIONS else name


def open_bytes(path: Path) -> pa.NativeFile:
    """Open a file for reading, decompressed by its suffix."""
    return pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix.lower()))


def open_text(path: Path, form: TextForm) -> IO[str]:
    """Open a text file, decompressed and decoded, without a byte order mark."""
    encoding = "utf-8-sig" if form.is_utf8 else form.encoding
    return io.TextIOWrapper(io.BufferedReader(_Raw(open_bytes(path))), encoding=encoding, newline="")


def check_encoding(path: Path, form: TextForm) -> None:
    """Check a whole file for bytes that are not of its encoding.

    Raises:
        InputError: there are some; the first one is named by its position.
    """
    decoder = codecs.getincrementaldecoder(form.encoding)()
    before = 0
    with open_bytes(path) as file:
        while block := file.read(1 << 20):
            if not before and block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and form.is_utf8:
                raise InputError(f"{path} begins with the byte order mark of UTF-16; pass encoding='utf-16'")
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                place, byte = before - pending + error.start, error.object[error.start]
                raise InputError(
                    f"{path}: byte {place} (0x{byte:02x}) is not {form.encoding}; name the encoding of the file, such as "
                    "encoding='latin-1' or encoding='cp1252'"
                ) from error
            before += len(block)


class _Raw(io.RawIOBase):
    """Raw stream over an Arrow file, for the decoders of Python."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Rewritten(io.RawIOBase):
    """Stream of UTF-8 with `SEPARATOR` in place of a delimiter of several characters."""

    def __init__(self, text: IO[str], delimiter: str | None) -> None:
        self._text, self._delimiter, self._left, self._rest = text, delimiter, b"", ""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._left:
            text = self._text.read(1 << 20)
            held, self._rest = self._rest + text, ""
            if not held:
                return b""
            if self._delimiter:
                # The end of a block may be the first part of a delimiter, which the next block completes.
                held = held.replace(self._delimiter, SEPARATOR)
                parts = (self._delimiter[:length] for length in range(len(self._delimiter) - 1, 0, -1))
                part = next((part for part in parts if text and held.endswith(part)), "")
                held, self._rest = held.removesuffix(part), part
            self._left = held.encode("utf-8")
        block, self._left = (self._left, b"") if size < 0 else (self._left[:size], self._left[size:])
        return block


def header_of(path: Path, form: TextForm, kind: str) -> tuple[list[str], TextForm]:
    """Read the names of the columns of a delimited file, and recognize its delimiter.

    Args:
        path: the file.
        form: its form as far as it is known.
        kind: suffix of the name without the dot: `csv` means commas, `tsv` means tabs, unless the header has none of them.

    Raises:
        InputError: the delimiter cannot be recognized.
    """
    with open_text(path, form) as file:
        line = file.readline()
        delimiter = form.delimiter or _recognized(path, line, kind)
        if form.names:
            return list(form.names), TextForm(delimiter, form.encoding, form.names, form.quoted)
        lines = _lines(line, file)
        if len(delimiter) > 1:
            lines = (text.replace(delimiter, SEPARATOR) for text in lines)
        header = next(
            csv.reader(
                lines,
                delimiter=delimiter if len(delimiter) == 1 else SEPARATOR,
                quoting=csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE,
            ),
            [],
        )
    return header, TextForm(delimiter, form.encoding, (), form.quoted)


def _lines(first: str, file: IO[str]) -> Iterator[str]:
    yield first
    yield from file


def _recognized(path: Path, line: str, kind: str) -> str:
    usual = {"csv": ",", "tsv": "\t"}.get(kind)
    found = [delimiter for delimiter in DELIMITERS if delimiter in line]
    if usual and (usual in found or not found):
        return usual
    if len(found) == 1:
        return found[0]
    if not found:
        return ","
    raise InputError(
        f"{path}: the delimiter cannot be recognized, because the first line has {', '.join(map(repr, found))}; pass "
        f"delimiter={found[0]!r} or another"
    )


def open_delimited(path: Path, header: Sequence[str], form: TextForm, columns: Sequence[str]) -> pa.RecordBatchReader:
    """Open a delimited file whose delimiter is known; all columns are text."""
    delimiter = form.delimiter or ","
    rewritten = not form.is_utf8 or len(delimiter) > 1
    stream = (
        pa.PythonFile(_Rewritten(open_text(path, form), delimiter if len(delimiter) > 1 else None), "r") if rewritten else None
    )
    return pa_csv.open_csv(
        stream or open_bytes(path),
        read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, column_names=list(form.names) or None),
        parse_options=pa_csv.ParseOptions(
            delimiter=delimiter if len(delimiter) == 1 else SEPARATOR,
            newlines_in_values=form.quoted,
            quote_char='"' if form.quoted else False,
        ),
        convert_options=pa_csv.ConvertOptions(
            include_columns=list(columns), column_types=dict.fromkeys(columns, pa.large_string())
        ),
    )


def atomic_fields(path: Path, form: TextForm) -> dict[str, str]:
    """Read the header of an atomic file of RecBole, `user_id:token`, `rating:float`, ...: name -> type.

    Raises:
        InputError: a field has no type, occurs twice, or the file holds training examples in place of interactions.
    """
    with open_text(path, form) as file:
        fields = [field.rpartition(":") for field in file.readline().rstrip("\r\n").split("\t")]
    for name, _, kind in fields:
        if not name:
            raise InputError(f"{path}: the field {kind!r} of the header has no type; it must be name:type, such as user_id:token")
    names = [name for name, _, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: column {name!r} occurs more than once; rename one of them")
    lists = [name for name in names if name.endswith("_list")]
    if plain_name(path).endswith(".inter") and lists:
        raise InputError(
            f"{path}: {lists[0]!r} holds histories, so its rows are training examples, not interactions; use the file "
            "with one interaction per row"
        )
    return {name: kind for name, _, kind in fields}


def open_atomic(path: Path, fields: dict[str, str], form: TextForm, columns: Sequence[str]) -> pa.RecordBatchReader:
    """Open an atomic file: columns separated by tabs, without quotes; tokens are text, floats are float64."""
    for name in columns:
        if fields[name] not in ATOMIC_TYPES:
            readable = ", ".join(ATOMIC_TYPES)
            raise InputError(f"{path}: column {name!r} has type {fields[name]!r}; only {readable} can be read: leave it out")
    stream = open_bytes(path) if form.is_utf8 else pa.PythonFile(_Rewritten(open_text(path, form), None), "r")
    return pa_csv.open_csv(
        stream,
        read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, column_names=list(fields), skip_rows=1),
        parse_options=pa_csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pa_csv.ConvertOptions(
            include_columns=list(columns), column_types={name: ATOMIC_TYPES[fields[name]] for name in columns}
        ),
    )
