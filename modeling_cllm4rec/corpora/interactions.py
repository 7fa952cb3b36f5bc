"""Checks of interactions and of the texts of items and users: columns and ids.

A table of interactions has the columns `user_id`, `item_id` and optionally `rating` (float64), `timestamp`, `review` and
`split`. Row numbers in messages count from 1, without the header line.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.bad_rows import first_of, reject, row_numbers
from modeling_cllm4rec.corpora.readers import nearest_names
from modeling_cllm4rec.corpora.text_cleaning import clean_lists, clean_texts, parse_lists
from modeling_cllm4rec.corpora.times import parse_times

logger = logging.getLogger(__name__)


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
    if "review" in table.column_names:
        columns["review"] = clean_texts(_texts(table["review"], "review"))
    if "split" in table.column_names:
        columns["split"] = _texts(table["split"], "split")
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
    texts = _text_columns(table, name)
    repeated = _repeated(texts[name])
    if len(repeated):
        raise InputError(f"{name.removesuffix('_id')}s: {name} is repeated: {first_of(repeated)}; keep one row for each")
    return texts


def clean_text_table(table: pa.Table, name: str) -> pa.Table:
    """Do what `check_texts` does, clean the texts, and merge equal rows.

    Args:
        table: one row per item or user.
        name: the id column, `item_id` or `user_id`.

    Returns:
        The table with clean texts (see `text_cleaning`): without markup, and null where there is no letter or digit.

    Raises:
        InputError: as `check_texts`, but rows of one id are an error only if their texts differ.

    Example:
        >>> clean_text_table(pa.table({"item_id": [1, 1], "title": ["Tea &amp; milk", "Tea &amp; milk"]}), "item_id").to_pylist()
        [{'item_id': 1, 'title': 'Tea & milk'}]
    """
    texts = _text_columns(table, name)
    columns = {column: texts[column].combine_chunks() for column in texts.column_names if column != name}
    for column, values in columns.items():
        if pa.types.is_list(values.type):
            columns[column] = clean_lists(values)
        elif _is_text(_plain(table[column]).type):
            columns[column] = parse_lists(clean_texts(values), column)
    return _merge_equal_rows(pa.table({name: texts[name], **columns}), name, f"{name.removesuffix('_id')}s")


def _text_columns(table: pa.Table, name: str) -> pa.Table:
    """Return checked ids and, as texts or lists of texts, the other columns."""
    _check_has(table, (name,), f"{name.removesuffix('_id')}s")
    ids = check_ids(table[name], name)
    others = [column for column in table.column_names if column != name]
    return pa.table({name: ids} | {column: _text_or_lists(_plain(table[column]), column) for column in others})


def _repeated(ids: pa.ChunkedArray) -> pa.Array:
    """Return the ids that occur more than once."""
    counts = pc.value_counts(ids)
    return counts.filter(pc.greater(counts.field("counts"), 1)).field("values")


def _merge_equal_rows(table: pa.Table, name: str, entities: str) -> pa.Table:
    """Keep the first of rows that are equal.

    Raises:
        InputError: rows of one id differ.
    """
    ids = table[name].combine_chunks()
    repeated = _repeated(table[name])
    if not len(repeated):
        return table
    rows = np.flatnonzero(pc.is_in(ids, value_set=repeated).to_numpy(zero_copy_only=False))
    first: dict[Any, dict[str, Any]] = {}
    different, surplus = [], []
    for row, values in zip(rows.tolist(), table.take(pa.array(rows)).to_pylist(), strict=True):
        known = first.setdefault(values[name], values)
        if known is not values:
            surplus.append(row)
            if known != values and values[name] not in different:
                different.append(values[name])
    if different:
        raise InputError(
            f"{entities}: {name} is repeated with different texts: {first_of(different)}; keep one row for each (equal rows "
            "are merged)"
        )
    logger.info("%s: %s equal rows are merged", entities, f"{len(surplus):,}")
    keep = np.ones(len(ids), dtype=bool)
    keep[surplus] = False
    return table.filter(pa.array(keep))


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
    if pa.types.is_floating(ids.type):
        raise InputError(
            f"{name} must hold texts or integers, got {ids.type} ({first_of(ids)}); pandas reads integers so where some are "
            f"missing: convert them with frame[{name!r}].astype('Int64'), or read them as text"
        )
    if not pa.types.is_large_string(ids.type) and not pa.types.is_integer(ids.type):
        raise InputError(f"{name} must hold texts or integers, got {ids.type}")
    return ids


def is_written(reviews: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Check which reviews have more than blanks.

    Returns:
        (rows,) booleans, never null.
    """
    return pc.fill_null(pc.match_substring_regex(reviews, r"[^\s\v\p{Z}]"), False)


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


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array, with texts of any encoding as large_string."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    column = column.cast(pa.large_string() if _is_text(kind) else kind)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_text(kind: pa.DataType) -> bool:
    """Check whether a type is one of the text types."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    """Check whether a type is one of the list types."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return texts as large_string, still in chunks, because reviews are large."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not _is_text(kind) and not pa.types.is_null(kind):
        raise InputError(f"{name} must hold texts, got {kind}")
    return column.cast(pa.large_string())


def _text_or_lists(column: pa.Array, name: str) -> pa.Array:
    """Convert a column to texts or lists of texts."""
    kind = column.type
    if _is_list(kind):
        if _is_list(kind.value_type) and not pa.types.is_nested(kind.value_type.value_type):
            rows = [None if row is None else [part for inner in row for part in inner or ()] for row in column.to_pylist()]
            return pa.array(rows, pa.list_(kind.value_type.value_type)).cast(pa.list_(pa.large_string()))
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
