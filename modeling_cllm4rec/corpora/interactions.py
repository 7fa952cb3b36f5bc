"""Interactions and the texts of items and users: columns, ids, cleaning, k-core.

A table of interactions has the columns `user_id`, `item_id` and optionally `rating` (float64), `timestamp` (int64, unix
seconds), `review` and `split`. Row numbers in messages count from 1, without the header line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.readers import is_untyped, nearest_names, read_table

ID_TYPES = ("auto", "string", "integer")
IntArray = npt.NDArray[np.int64]
NAMED = 5
"""Most ids or rows that a message lists."""


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


def check_interactions(table: pa.Table) -> pa.Table:
    """Return the columns of a table of interactions that this package reads, each converted to its type.

    Args:
        table: `user_id`, `item_id` and any of `rating`, `timestamp`, `review`, `split`; other columns are dropped.

    Returns:
        A table with the same rows: ids unchanged, `rating` float64 (null where missing), `timestamp` int64 unix seconds
        (fractions of a second dropped), `review` and `split` text.

    Raises:
        InputError: the table is empty, `user_id` or `item_id` is missing, an id is empty, null or neither text nor integer, a
            rating is not a number, a timestamp is not one, or a review or split is not text.

    Example:
        >>> raw = pa.table({"user_id": ["ann"], "item_id": [7], "timestamp": ["1970-01-02T00:00:00"]})
        >>> check_interactions(raw).to_pylist()
        [{'user_id': 'ann', 'item_id': 7, 'timestamp': 86400}]
    """
    _check_has(table, ("user_id", "item_id"), "interactions")
    columns = {name: check_ids(table[name], name) for name in ("user_id", "item_id")}
    for name, check in (("rating", _ratings), ("timestamp", _unix_seconds)):
        if name in table.column_names:
            columns[name] = check(_plain(table[name]), name)
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


def check_ids(column: pa.ChunkedArray | pa.Array, name: str) -> pa.Array:
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
        raise InputError(f"{name} is empty or NaN in {_row_numbers(rows)}; each row needs one")
    if not pa.types.is_large_string(ids.type) and not pa.types.is_integer(ids.type):
        raise InputError(f"{name} must hold texts or integers, got {ids.type}")
    return ids


def clean_interactions(
    table: pa.Table, min_rating: float | None = None, k_core: int = 0
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Keep the last of repeated (user, item) pairs, then high ratings, then the k-core; the order of rows stays.

    Args:
        table: a table from `check_interactions`.
        min_rating: the lowest rating that is kept. The "rating > 3" of the paper, with whole stars, is 4.
        k_core: least number of interactions of each user and each item that is kept; 0 keeps all.

    Returns:
        The table, and for each filter in order `{"filter", "value", "removed"}`, `removed` in rows.

    Raises:
        InputError: a repeated pair has two splits, a rating is missing, a value is out of its range, or no row is left.
    """
    if k_core < 0:
        raise InputError(f"k_core must be at least 0 (off), got {k_core}")
    kept = table.take(pa.array(_rows_of_last(table)))
    filters = [{"filter": "duplicates", "value": "last", "removed": table.num_rows - kept.num_rows}]
    if min_rating is not None:
        before = kept.num_rows
        kept = kept.filter(_well_rated(kept, min_rating))
        filters.append({"filter": "min_rating", "value": min_rating, "removed": before - kept.num_rows})
    if k_core:
        before = kept.num_rows
        kept = kept.take(pa.array(k_core_rows(encode(kept["user_id"]), encode(kept["item_id"]), k_core)))
        filters.append({"filter": "k_core", "value": k_core, "removed": before - kept.num_rows})
    if not kept.num_rows:
        steps = "; ".join(f"{step['filter']} {step['value']} removed {step['removed']}" for step in filters)
        raise InputError(f"no interaction is left of {table.num_rows}: {steps}; lower min_rating or k_core")
    return kept, filters


def k_core_rows(users: IntArray, items: IntArray, k: int) -> IntArray:
    """Return the row numbers of the k-core: the largest set of rows in which every user and every item has at least k.

    Args:
        users: (rows,) user codes from 0.
        items: (rows,) item codes from 0.
        k: least number of rows per user and per item.

    Example:
        >>> k_core_rows(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1]), 2).tolist()
        [0, 1, 2, 3]
    """
    # Removing users lowers the counts of items and the other way around, so the filter repeats until nothing changes.
    rows = np.arange(len(users))
    while len(rows):
        enough = (np.bincount(users[rows])[users[rows]] >= k) & (np.bincount(items[rows])[items[rows]] >= k)
        if enough.all():
            break
        rows = rows[enough]
    return rows


def encode(ids: pa.ChunkedArray | pa.Array) -> IntArray:
    """Return the (rows,) codes of ids, numbered from 0 in order of first appearance."""
    return _plain(ids).dictionary_encode().indices.to_numpy().astype(np.int64)


def first_of(values: Any) -> str:
    """Return the first few values as text for a message: `'a', 'b' (and 3 more)`."""
    listed = ", ".join(repr(value) for value in pa.array(values[:NAMED]).to_pylist())
    return listed + (f" (and {len(values) - NAMED} more)" if len(values) > NAMED else "")


def _rows_of_last(table: pa.Table) -> IntArray:
    """Return the row numbers, ascending, of the last row of each (user, item) pair by time, then by order in the table."""
    users, items = encode(table["user_id"]), encode(table["item_id"])
    pairs = users * (items.max() + 1) + items
    times = (table["timestamp"].to_numpy(),) if "timestamp" in table.column_names else ()
    # lexsort is stable, so of equal times the later row comes last.
    order = np.lexsort((*times, pairs))
    new = np.diff(pairs[order], prepend=-1) != 0
    if "split" in table.column_names:
        splits = encode(table["split"])[order]
        conflicting = order[~new & (np.diff(splits, prepend=0) != 0)]
        if len(conflicting):
            rows = conflicting[:NAMED]
            listed_users, listed_items = (first_of(table[name].take(rows)) for name in ("user_id", "item_id"))
            raise InputError(
                f"{len(conflicting)} repeated (user, item) pairs have more than one split: users {listed_users} with items "
                f"{listed_items}; a pair may be in one split only"
            )
    return np.sort(order[np.append(new[1:], True)])


def _well_rated(table: pa.Table, min_rating: float) -> pa.Array:
    """Check which rows have a rating of at least `min_rating`."""
    if "rating" not in table.column_names:
        raise InputError(
            f"min_rating {min_rating} needs a column of ratings; name it with rating_column=..., or leave min_rating unset"
        )
    missing = int(table["rating"].null_count)
    if missing:
        raise InputError(f"min_rating {min_rating} needs all ratings, but rating is missing in {missing} rows")
    return pc.greater_equal(table["rating"], min_rating)


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


def _ratings(column: pa.Array, name: str) -> pa.Array:
    """Convert ratings to float64, null where missing."""
    if _is_text(column.type):
        numbers = pd.to_numeric(column.to_pandas(), errors="coerce").to_numpy(np.float64)
        blank = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(column, "")), "").to_numpy(zero_copy_only=False)
        _reject(column, np.isnan(numbers) & ~blank, f"{name} is not a number")
        return pa.array(numbers, mask=blank)
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        raise InputError(f"{name} must hold numbers, got {column.type}")
    return pc.if_else(pc.is_null(column, nan_is_null=True), None, column).cast(pa.float64())


def _unix_seconds(column: pa.Array, name: str) -> pa.Array:
    """Convert numbers, ISO-8601 texts or datetimes to int64 unix seconds."""
    complaint = f"{name} is neither seconds since 1970 nor an ISO-8601 time"
    _reject(column, pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False), complaint)
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    if pa.types.is_floating(column.type):
        seconds = column.to_numpy()
    elif pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return _floor_seconds(pd.to_datetime(column.cast(pa.timestamp("us")).to_pandas()))
    elif _is_text(column.type):
        numbers = pd.to_numeric(column.to_pandas(), errors="coerce")
        if numbers.isna().all():
            times = pd.to_datetime(column.to_pandas(), errors="coerce", utc=True, format="ISO8601")
            _reject(column, times.isna().to_numpy(), complaint)
            return _floor_seconds(times)
        seconds = numbers.to_numpy()
    else:
        raise InputError(f"{complaint}, got {column.type}")
    _reject(column, ~np.isfinite(seconds), complaint)
    return pa.array(np.floor(seconds).astype(np.int64))


def _floor_seconds(times: pd.Series) -> pa.Array:
    """Convert datetimes to whole seconds since 1970."""
    return pa.array(times.dt.floor("s").dt.as_unit("s").astype("int64").to_numpy())


def _reject(column: pa.Array, bad: npt.NDArray[np.bool_], complaint: str) -> None:
    """Raise an InputError that lists the first bad rows, if there are any."""
    rows = np.flatnonzero(bad)
    if len(rows):
        raise InputError(f"{complaint} in {_row_numbers(rows)}: {first_of(column.take(rows))}")


def _row_numbers(rows: IntArray) -> str:
    """Return row numbers, from 1, as text for a message."""
    listed = ", ".join(str(row + 1) for row in rows[:NAMED])
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"row {listed}" if len(rows) == 1 else f"rows {listed}{more}"
