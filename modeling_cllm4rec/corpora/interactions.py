"""Interactions and the texts of items and users: columns and ids.

A table of interactions has the columns `user_id`, `item_id` and optionally `rating` (float64), `timestamp`, `review` and
`split`. Row numbers in messages count from 1, without the header line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.bad_rows import first_of, reject, row_numbers
from modeling_cllm4rec.corpora.readers import is_untyped, nearest_names, read_table
from modeling_cllm4rec.corpora.times import parse_times

ID_TYPES = ("auto", "string", "integer")


def read_interactions(
    source: str | Path,
    *,
    user_column: str = "user_id",
    item_column: str = "item_id",
    rating_column: str | None = None,
    timestamp_column: str | None = None,
    review_column: str | None = None,
    split_column: str | None = None,
    with_split: bool = False,
    id_type: str = "auto",
) -> pa.Table:
    """Read a table of interactions and rename its columns to those of this package.

    Args:
        source: any source of `readers.read_table`.
        user_column: column of user ids.
        item_column: column of item ids.
        rating_column: column of ratings; `None` means `rating`, if there is such a column. The same holds for the next three.
        timestamp_column: column of times: unix seconds, ISO-8601 texts or datetimes.
        review_column: column of review texts.
        split_column: column of split names; read only `with_split`, where it is required.
        with_split: whether to read the split.
        id_type: see `typed_ids`.

    Returns:
        The table as `check_interactions` returns it.

    Raises:
        MissingFileError, InputError: as `readers.read_table` and `check_interactions`.
    """
    required = {"user_id": user_column, "item_id": item_column}
    given = {"rating": rating_column, "timestamp": timestamp_column, "review": review_column}
    if with_split:
        required["split"] = split_column or "split"
    required |= {name: column for name, column in given.items() if column is not None}
    optional = {name: name for name, column in given.items() if column is None and name not in required.values()}
    if len(set(required.values())) < len(required):
        raise InputError(f"two columns would be read from the same one: {required}; name a different column for each")
    table = read_table(source, list(required.values()), list(optional))
    names = {column: name for name, column in (optional | required).items()}
    table = table.rename_columns([names[column] for column in table.column_names])
    for name in ("user_id", "item_id"):
        table = _replace(table, name, typed_ids(table[name], name, source, id_type, is_untyped(source)))
    return check_interactions(table)


def read_texts(
    source: str | Path,
    *,
    id_column: str,
    name: str,
    columns: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    id_type: str = "auto",
) -> pa.Table:
    """Read the texts of items or users, one row each.

    Args:
        source: any source of `readers.read_table`.
        id_column: column of ids.
        name: `item_id` or `user_id`, the name of the ids in the result.
        columns: the columns to keep (`None`: all).
        exclude: columns to leave out.
        id_type: as in `read_interactions`.

    Returns:
        The table as `check_texts` returns it.

    Raises:
        MissingFileError, InputError: as `readers.read_table` and `check_texts`.
    """
    wanted = [id_column] if columns is None else [id_column, *columns]
    table = read_table(source, wanted, None if columns is None else ())
    for column in exclude:
        if column not in table.column_names:
            names = table.column_names
            raise InputError(
                f"{source}: no column {column!r} to exclude; it has {', '.join(names)}{nearest_names(column, names)}"
            )
        if column == id_column:
            raise InputError(f"{source}: {column!r} is the column of ids and cannot be excluded")
    table = table.drop_columns(list(exclude))
    if name != id_column and name in table.column_names:
        raise InputError(f"{source}: ids are read from {id_column!r}, but there is a column {name!r}; exclude it")
    table = table.rename_columns([name if column == id_column else column for column in table.column_names])
    table = _replace(table, name, typed_ids(table[name], name, source, id_type, is_untyped(source)))
    return check_texts(table, name)


def check_interactions(table: pa.Table, first_row: int = 1) -> pa.Table:
    """Return the columns of a table of interactions that this package reads, each converted to its type.

    Args:
        table: `user_id`, `item_id` and any of `rating`, `timestamp`, `review`, `split`; other columns are dropped.
        first_row: number of the first row in messages.

    Returns:
        A table with the same rows: ids unchanged, `rating` float64 (null where missing), `timestamp` as `times.parse_times`
        returns it, `review` and `split` text.

    Raises:
        InputError: the table is empty, `user_id` or `item_id` is missing, an id is empty, null or neither text nor integer, a
            rating is not a number, a timestamp is not one, or a review or split is not text.

    Example:
        >>> raw = pa.table({"user_id": ["ann"], "item_id": [7], "rating": ["4"]})
        >>> check_interactions(raw).to_pylist()
        [{'user_id': 'ann', 'item_id': 7, 'rating': 4.0}]
    """
    _check_has(table, ("user_id", "item_id"), "interactions")
    columns = {name: check_ids(table[name], name, first_row) for name in ("user_id", "item_id")}
    if "rating" in table.column_names:
        columns["rating"] = _ratings(_plain(table["rating"]), "rating", first_row)
    if "timestamp" in table.column_names:
        columns["timestamp"] = parse_times(_plain(table["timestamp"]), first_row)
    for name in ("review", "split"):
        if name in table.column_names:
            columns[name] = _texts(table[name], name)
    return pa.table(columns)


def check_texts(table: pa.Table, name: str) -> pa.Table:
    """Check that a table of items or users has unique ids, and convert its other columns to texts or lists of texts.

    Args:
        table: one row per item or user; numbers, booleans and dates become text, NaN becomes null.
        name: the id column, `item_id` or `user_id`; it becomes the first column.

    Raises:
        InputError: the table is empty, the id column is missing, an id is empty, null, repeated or neither text nor integer, or
            a column cannot be converted.

    Example:
        >>> check_texts(pa.table({"price": [1.5], "item_id": ["a"], "tags": [["x", "y"]]}), "item_id").to_pylist()
        [{'item_id': 'a', 'price': '1.5', 'tags': ['x', 'y']}]
    """
    entities = f"{name.removesuffix('_id')}s"
    _check_has(table, (name,), entities)
    ids = check_ids(table[name], name)
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        raise InputError(f"{entities}: {name} is repeated: {first_of(repeated)}; keep one row for each")
    others = [column for column in table.column_names if column != name]
    return pa.table({name: ids} | {column: _text_or_lists(_plain(table[column]), column) for column in others})


def check_ids(column: pa.ChunkedArray | pa.Array, name: str, first_row: int = 1) -> pa.Array:
    """Check that ids are text or integers and none is missing, and return them as one array.

    Raises:
        InputError: an id is missing or has another type; the column and the first such rows are named.
    """
    ids = _plain(column)
    missing = ids.is_null(nan_is_null=True)
    if pa.types.is_large_string(ids.type):
        missing = pc.or_(missing, pc.equal(pc.utf8_trim_whitespace(pc.fill_null(ids, "")), ""))
    rows = np.flatnonzero(missing.to_numpy(zero_copy_only=False))
    if len(rows):
        raise InputError(f"{name} is empty or NaN in {row_numbers(rows, first_row)}; each row needs one")
    if not pa.types.is_large_string(ids.type) and not pa.types.is_integer(ids.type):
        raise InputError(f"{name} must hold texts or integers, got {ids.type}")
    return ids


def is_written(reviews: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Check which reviews have more than blanks.

    Returns:
        (rows,) booleans, never null.
    """
    return pc.fill_null(pc.match_substring_regex(reviews, r"[^\s\v\p{Z}]"), False)


def typed_ids(
    column: pa.ChunkedArray | pa.Array, name: str, source: str | Path, id_type: str = "auto", untyped: bool = True
) -> pa.ChunkedArray | pa.Array:
    """Convert ids to a type.

    Args:
        column: the ids.
        name: `user_id` or `item_id`.
        source: the file of the ids, for the message.
        id_type: `string`, `integer`, or `auto`: if the source is `untyped` and all ids are whole numbers without leading
            zeros, they become integers; otherwise they keep their type.
        untyped: whether the source has no types, as CSV files and the keys of JSON objects.

    Raises:
        InputError: an id is empty, or is no whole number although `id_type` is `integer`.

    Example:
        >>> typed_ids(pa.array(["7", "10"]), "item_id", "a.csv").to_pylist()
        [7, 10]
    """
    if id_type not in ID_TYPES:
        raise InputError(f"id_type must be one of {', '.join(ID_TYPES)}, got {id_type!r}")
    if id_type == "auto" and not untyped:
        return column
    if id_type == "string":
        return check_ids(column, name).cast(pa.large_string())
    ids = check_ids(column, name)
    if pa.types.is_integer(ids.type):
        return ids
    whole = pc.match_substring_regex(ids, r"^(0|-?[1-9]\d{0,17})$")
    if pc.all(whole).as_py():
        return ids.cast(pa.int64())
    if id_type == "auto":
        return ids
    others = pc.filter(ids, pc.invert(whole))
    raise InputError(f"{source}: with id_type integer, {name} must be plain whole numbers, got {first_of(others)}")


def _check_has(table: pa.Table, names: Sequence[str], table_name: str) -> None:
    """Check that a table has rows and some columns."""
    for name in names:
        if name not in table.column_names:
            columns = table.column_names
            raise InputError(
                f"{table_name}: no column {name!r}; the columns are {', '.join(columns)}{nearest_names(name, columns)}"
            )
    if not table.num_rows:
        raise InputError(f"{table_name}: the table has no rows")


def _replace(table: pa.Table, name: str, column: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Return a table with another column in place of the one called `name`."""
    return table.set_column(table.column_names.index(name), name, column)


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array, with texts of any encoding as large_string."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    column = column.cast(pa.large_string() if _is_text(kind) else kind)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_text(kind: pa.DataType) -> bool:
    """Check whether a type is one of the text types."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return texts as large_string, still in chunks, because reviews are large."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not _is_text(kind) and not pa.types.is_null(kind):
        raise InputError(f"{name} must hold texts, got {kind}")
    return column.cast(pa.large_string())


def _text_or_lists(column: pa.Array, name: str) -> pa.Array:
    """Convert a column to texts or lists of texts."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if not pa.types.is_nested(kind.value_type) and not pa.types.is_binary(kind.value_type):
            return column.cast(pa.list_(pa.large_string()))
    elif pa.types.is_floating(kind):
        return pc.if_else(pc.is_null(column, nan_is_null=True), None, column).cast(pa.large_string())
    elif not pa.types.is_nested(kind) and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        return column.cast(pa.large_string())
    raise InputError(f"column {name!r} holds {kind}, which is neither text nor a list of texts; exclude it")


def _ratings(column: pa.Array, name: str, first_row: int) -> pa.Array:
    """Convert ratings to float64, null where missing."""
    if _is_text(column.type):
        numbers = pd.to_numeric(column.to_pandas(), errors="coerce").to_numpy(np.float64)
        blank = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(column, "")), "").to_numpy(zero_copy_only=False)
        reject(column, np.isnan(numbers) & ~blank, f"{name} is not a number", first_row)
        return pa.array(numbers, mask=blank)
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        raise InputError(f"{name} must hold numbers, got {column.type}")
    return pc.if_else(pc.is_null(column, nan_is_null=True), None, column).cast(pa.float64())
