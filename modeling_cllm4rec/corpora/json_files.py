"""JSON lines, JSON arrays and lines of Python literals as Arrow batches; only the wanted columns are parsed.

DuckDB parses JSON on all cores. A wanted column comes out with one type for the whole file, which a first pass finds. Lines that
are Python literals, as in the metadata of Amazon 2014 and in Steam's files, are written as JSON into a temporary file first.
"""

from __future__ import annotations

import ast
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.text_files import TextForm, check_encoding, open_text

ROWS = 100_000
"""Rows of a batch."""
SAMPLE = 1000
"""Objects whose keys are the columns, where not all columns are wanted."""
LARGEST_OBJECT = 256 << 20
"""Bytes of the largest object."""
MIXED = {b"mixed": b"1"}
"""Metadata of a field whose values have more than one type, and were therefore converted to text."""
_INTEGERS = {"BIGINT", "UBIGINT"}
_DIRECT = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz", ".json.zst", ".jsonl.zst", ".ndjson.zst")


class JsonFile:
    """A file of JSON objects or of Python literals.

    Args:
        path: the file.
        form: its encoding.

    Raises:
        InputError: the file holds neither one object per line nor one array of objects.
    """

    def __init__(self, path: Path, form: TextForm) -> None:
        self.path, self._form, self._folder = path, form, None
        self._parsed = path
        self.kind = self._find_kind()
        if self.kind == "literals" or not form.is_utf8 or not path.name.lower().endswith(_DIRECT) or self._marked:
            self._folder = tempfile.TemporaryDirectory(prefix="cllm4rec-")  # removed when this object is
            self._parsed = Path(self._folder.name, "converted.json")
            self._convert()

    def names(self, everything: bool) -> list[str]:
        """Return the keys of the objects in order of appearance: of all of them, or of the first `SAMPLE`."""
        limit = "" if everything else f" limit {SAMPLE}"
        read = self._from({"json": "JSON"}, records=False)
        first = f"select json, row_number() over () as n {read}{limit}"
        other = self._rows(f"select n, json::varchar from ({first}) where json_type(json) <> 'OBJECT' limit 1")
        if other:
            number, value = other[0]
            raise InputError(f"{self.path}: row {number} is {value[:80]}, not an object; each row must be an object of columns")
        keys = f"select unnest(json_keys(json)) as key, generate_subscripts(json_keys(json), 1) as place, n from ({first})"
        query = f"select key, min(n) as first, arg_min(place, n) as place from ({keys}) group by key order by first, place"
        return [str(key) for key, *_ in self._rows(query)]

    def read(self, columns: Sequence[str], required: Sequence[str]) -> tuple[pa.RecordBatchReader, list[str]]:
        """Open the wanted columns.

        Args:
            columns: the wanted columns.
            required: those of them that must not be left out.

        Returns:
            The rows, and the names of the columns that are left out, because they hold objects.

        Raises:
            InputError: required columns hold objects, or the file is damaged.
        """
        types = self._types(columns)
        nested = [name for name in columns if types[name] is None]
        needed = [name for name in nested if name in required]
        if needed:
            raise InputError(f"{self.path}: {_named(needed)} objects, which are no texts; leave them out")
        kept = [name for name in columns if name not in nested]
        select = ", ".join(f"{_expression(name, types[name] or '')} as {_quoted(name)}" for name in kept)
        schema = pa.schema([_field(name, types[name] or "") for name in kept])
        query = f"select {select} {self._from(dict.fromkeys(kept, 'JSON'))}"
        return pa.RecordBatchReader.from_batches(schema, self._batches(query, schema)), nested

    def _batches(self, query: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        connection = _connect()
        try:
            for batch in connection.sql(query).to_arrow_reader(ROWS):
                yield from pa.Table.from_batches([batch]).cast(schema).to_batches()
        except duckdb.Error as error:
            raise self._explained(error) from error
        finally:
            connection.close()

    def _types(self, columns: Sequence[str]) -> dict[str, str | None]:
        """Find the type of each column: `text`, `mixed`, `integer`, `float`, `boolean`, `list`, `lists`, `None` for objects."""
        if not columns:
            return {}
        facts = []
        for name in columns:
            column = _quoted(name)
            facts += [
                f"list(distinct json_type({column}))",
                f"bool_or(list_contains(json_type({column}, '$[*]'), 'OBJECT'))",
                f"bool_or(list_contains(json_type({column}, '$[*]'), 'ARRAY'))",
                f"bool_or(list_contains(json_type({column}, '$[*][*]'), 'OBJECT') or "
                f"list_contains(json_type({column}, '$[*][*]'), 'ARRAY'))",
                f"bool_or(json_type({column}) = 'UBIGINT' and try_cast({column}->>'$' as bigint) is null)",
            ]
        (row,) = self._rows(f"select {', '.join(facts)} {self._from(dict.fromkeys(columns, 'JSON'))}")
        values = [row[start : start + 5] for start in range(0, len(row), 5)]
        return {name: _type(*found) for name, found in zip(columns, values, strict=True)}

    def _from(self, columns: dict[str, str], records: bool = True) -> str:
        """Return the FROM clause of a query."""
        pairs = ", ".join(f"{_text(name)}: {_text(kind)}" for name, kind in columns.items())
        form = "array" if self.kind == "array" else "newline_delimited"
        more = "" if records else ", records='false'"
        return (
            f"from read_json({_text(str(self._parsed))}, format='{form}', columns={{{pairs}}}, "
            f"maximum_object_size={LARGEST_OBJECT}{more})"
        )

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with _connect() as connection:
            try:
                return connection.sql(query).fetchall()
            except duckdb.Error as error:
                raise self._explained(error) from error

    def _find_kind(self) -> str:
        """Return `array`, `lines` or `literals`, by the first line that is not blank."""
        try:
            with open_text(self.path, self._form) as file:
                line = next((line for line in file if line.strip()), "")
            with open_text(self.path, TextForm(encoding="latin-1")) as file:
                self._marked = file.read(3) == "\xef\xbb\xbf"
        except UnicodeDecodeError:
            check_encoding(self.path, self._form)
            raise
        start = line.lstrip()[:1]
        if start == "[":
            return "array"
        if start != "{":
            raise InputError(
                f"{self.path}: it must hold one JSON object per line or one array of objects, not {line.strip()[:60]!r}"
            )
        try:
            json.loads(line)
        except ValueError as error:
            if isinstance(_literal(line), dict):
                return "literals"
            raise InputError(
                f"{self.path}: it cannot be read: line 1 is neither a JSON object nor a Python literal ({error}); write one "
                "object per line, or one array of objects"
            ) from error
        return "lines"

    def _convert(self) -> None:
        """Write a file that DuckDB reads: UTF-8, JSON, not compressed."""
        with open_text(self.path, self._form) as file, open(self._parsed, "w", encoding="utf-8") as output:
            try:
                if self.kind != "literals":
                    while block := file.read(1 << 20):
                        output.write(block)
                    return
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        value = _literal(line)
                        if not isinstance(value, dict):
                            raise InputError(
                                f"{self.path}: line {number} is no Python literal of an object: {line.strip()[:60]!r}"
                            )
                        output.write(json.dumps(value, default=str, ensure_ascii=False).replace("\u2028", "\\u2028") + "\n")
            except UnicodeDecodeError:
                check_encoding(self.path, self._form)
                raise

    def _explained(self, error: duckdb.Error) -> InputError:
        """Return an error of DuckDB as one of this package."""
        found = re.search(r"Malformed JSON in file .*, at byte (\d+) in (line|record/value) (\d+): (.*)", str(error))
        if found is None:
            return InputError(f"{self.path}: cannot be read: {error}")
        if "UTF-8" in found[4]:
            try:
                check_encoding(self.path, self._form)
            except InputError as better:
                return better
        place = f"line {int(found[3]) - 1}" if found[2] == "line" else f"row {found[3]}"
        return InputError(
            f"{self.path}: cannot be read: {place} is not JSON ({found[4].strip().rstrip('.')}, at byte {found[1]})"
        )


def _literal(line: str) -> Any:
    """Return the value of a Python literal, `None` if the line is none; nothing is run."""
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _type(kinds: list[str] | None, objects: bool, lists: bool, deep: bool, large: bool) -> str | None:
    """Return the type of a column from the types of its values."""
    found = {kind for kind in kinds or () if kind not in (None, "NULL")}
    if "OBJECT" in found or objects or deep:
        return None
    if "ARRAY" in found:
        return "lists" if lists else "list"
    if found <= _INTEGERS and found:
        return "mixed" if large else "integer"
    if found <= _INTEGERS | {"DOUBLE", "HUGEINT", "UHUGEINT"} and found:
        return "float"
    if found == {"BOOLEAN"}:
        return "boolean"
    return "text" if len(found) < 2 else "mixed"


def _field(name: str, kind: str) -> pa.Field:
    types = {"integer": pa.int64(), "float": pa.float64(), "boolean": pa.bool_()}
    lists = pa.list_(pa.large_string())
    return pa.field(
        name,
        types.get(kind, lists if kind.startswith("list") else pa.large_string()),
        metadata=MIXED if kind == "mixed" else None,
    )


def _expression(name: str, kind: str) -> str:
    """Return the SQL expression of a column in its type."""
    column = _quoted(name)
    if kind in ("integer", "float", "boolean"):
        return f"cast({column} as {({'integer': 'bigint', 'float': 'double'}).get(kind, kind)})"
    if kind == "list":
        # A bare text between lists is a list of one.
        return f"case json_type({column}) when 'ARRAY' then {column}->>'$[*]' when 'NULL' then null else [{column}->>'$'] end"
    if kind == "lists":
        return f"case json_type({column}, '$[0]') when 'ARRAY' then {column}->>'$[*][*]' else {column}->>'$[*]' end"
    return f"{column}->>'$'"


def _named(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names))
    return f"column {listed} holds" if len(names) == 1 else f"columns {listed} hold"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _connect() -> duckdb.DuckDBPyConnection:
    # No extension is needed, and looking for them takes half of the start.
    return duckdb.connect(config={"autoload_known_extensions": "false", "autoinstall_known_extensions": "false"})
