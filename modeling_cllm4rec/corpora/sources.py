"""Interactions and texts of items and users from files and data sets, under the column names of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.bad_rows import first_of
from modeling_cllm4rec.corpora.interactions import check_ids, check_interactions, check_texts
from modeling_cllm4rec.corpora.readers import is_untyped, nearest_names, read_table

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


def _replace(table: pa.Table, name: str, column: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Return a table with another column in place of the one called `name`."""
    return table.set_column(table.column_names.index(name), name, column)
