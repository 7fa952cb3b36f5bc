"""Interactions of a data folder: its files, one a split, are one table in the order of users and of the rows of a user.

The files are sorted by user, so they are merged some users at a time, whatever their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.bad_rows import first_of
from modeling_cllm4rec.corpora.splits import SPLITS
from modeling_cllm4rec.corpora.times import ORDER

INTERACTION_TYPES = {
    "user_index": pa.int32(),
    "item_index": pa.int32(),
    "split": pa.string(),
    "rating": pa.float64(),
    "timestamp": pa.int64(),
    "review": pa.large_string(),
}
"""The columns of the interactions; the first three are required."""
POSITION = "position"
"""Column of the files: number of a row among all interactions of its user, from 0. It restores the order over the splits."""
ROWS_AT_ONCE = 100_000
"""Rows of each file that are read together."""


def read_parquet(path: Path) -> pa.Table:
    """Read a file of the folder.

    Raises:
        MissingFileError: there is no such file.
        InputError: it cannot be read.
    """
    require_file(path)
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            return file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error


def interaction_parts(folder: Path) -> Iterator[pa.Table]:
    """Yield the interactions of a folder in the order of `RecommendationData.interactions`; all rows of a user are in one part.

    Raises:
        MissingFileError: a file is missing.
        InputError: a file cannot be read, lacks a column or is not sorted, or the files do not fit together.
    """
    schemas = [_schema(folder, name) for name in SPLITS]
    if any(schema != schemas[0] for schema in schemas):
        raise InputError(f"{folder}: the files of the splits have different columns; prepare it again")
    batches = {name: _batches(folder, name, schemas[0]) for name in SPLITS}
    waiting = {name: next(batches[name], None) for name in SPLITS}
    left = {name: table for name, table in waiting.items() if table is not None}
    whole: set[str] = {name for name in SPLITS if name not in left}
    if not left:
        yield _in_order(folder, [schemas[0].empty_table().append_column("split", pa.array([], pa.string()))])
    while left:
        open_ends = [table["user_index"][-1].as_py() for name, table in left.items() if name not in whole]
        # Rows of earlier users than these cannot come any more.
        end = min(open_ends) if open_ends else np.iinfo(np.int64).max
        pieces = []
        for name, table in left.items():
            cut = int(np.searchsorted(table["user_index"].to_numpy(), end))
            pieces.append(table.slice(0, cut))
            left[name] = table.slice(cut)
        if any(piece.num_rows for piece in pieces):
            yield _in_order(folder, pieces)
        for name in list(left):
            table = left[name]
            if name not in whole and (not table.num_rows or table["user_index"][-1].as_py() == end):
                more = next(batches[name], None)
                whole |= {name} if more is None else set()
                left[name] = table if more is None else pa.concat_tables([table, more])
            if name in whole and not left[name].num_rows:
                del left[name]


def check_interaction_table(table: pa.Table, num_users: int, num_items: int, time_unit: str) -> None:
    """Check columns, types, order and splits of interactions, all of them or the rows of some users.

    Raises:
        InputError: a check fails; the column is named.
    """
    types = INTERACTION_TYPES | ({"timestamp": pa.float64()} if time_unit == ORDER else {})
    for name, kind in types.items():
        if name not in table.column_names:
            if name in ("user_index", "item_index", "split"):
                raise InputError(f"interactions: no column {name!r}; the columns are {', '.join(table.column_names)}")
        elif table[name].type != kind:
            raise InputError(f"interactions: {name} must be {kind}, got {table[name].type}")
        elif name not in ("rating", "review") and table[name].null_count:
            raise InputError(f"interactions: {name} is null in {table[name].null_count} rows")
    users, items = (table[name].to_numpy().astype(np.int64) for name in ("user_index", "item_index"))
    for name, indices, size in (("user_index", users, num_users), ("item_index", items, num_items)):
        if len(indices) and not 0 <= indices.min() <= indices.max() < size:
            raise InputError(f"interactions: {name} must be in [0, {size}), got {indices.min()} to {indices.max()}")
    if (np.diff(users) < 0).any():
        raise InputError("interactions: rows must be sorted by user_index")
    if len(np.unique(users * num_items + items)) < len(users):
        raise InputError("interactions: a (user_index, item_index) pair occurs more than once")
    unknown = set(pc.unique(table["split"]).to_pylist()) - set(SPLITS)
    if unknown:
        raise InputError(f"interactions: split must be one of {', '.join(SPLITS)}, got {first_of(sorted(unknown))}")
    # A review of a held-out pair would leak the item and its qualities into training.
    if "review" in table.column_names:
        leaked = pc.sum(pc.and_(pc.not_equal(table["split"], "train"), table["review"].is_valid())).as_py()
        if leaked:
            raise InputError(f"interactions: {leaked} pairs outside train have a review; only train pairs may")


def require_file(path: Path) -> None:
    """Check that a file of a data folder is there.

    Raises:
        MissingFileError: it is not.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; prepare the folder again with `cllm4rec prepare`")


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is truncated or not Parquet ({error}); prepare the folder again")


def _schema(folder: Path, name: str) -> pa.Schema:
    """Return the columns of a split but the external ids, and check that those are there which give the order."""
    path = folder / f"{name}.parquet"
    require_file(path)
    try:
        schema = pq.read_schema(path).remove_metadata()
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error
    kept = pa.schema([field for field in schema if not field.name.endswith("_id")])
    for column in (POSITION, "user_index", "item_index"):
        if column not in kept.names:
            raise InputError(f"interactions: no column {column!r} in {name}.parquet; the columns are {', '.join(kept.names)}")
    return kept


def _batches(folder: Path, name: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of a split, with the column `split`."""
    path, last = folder / f"{name}.parquet", -1
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=schema.names):
                table = pa.Table.from_batches([batch], schema)
                for column in (POSITION, "user_index"):
                    if table[column].null_count:
                        raise InputError(f"interactions: {column} is null in {table[column].null_count} rows of {path.name}")
                users = table["user_index"].to_numpy()
                if len(users) and (users[0] < last or (np.diff(users) < 0).any()):
                    raise InputError(f"interactions: rows must be sorted by user_index, but those of {path.name} are not")
                if len(users):
                    last = int(users[-1])
                    yield table.append_column("split", pa.array([name] * len(users), pa.string()))
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error


def _in_order(folder: Path, pieces: list[pa.Table]) -> pa.Table:
    """Sort the rows of some users by user and position, and check that the positions number them."""
    table = pa.concat_tables(pieces)
    users, positions = table["user_index"].to_numpy(), table[POSITION].to_numpy()
    order = np.lexsort((positions, users))
    starts = np.flatnonzero(np.diff(users[order], prepend=-1))
    numbered = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    if not np.array_equal(positions[order], numbered):
        raise InputError(
            f"{folder}: {POSITION} does not number the rows of each user from 0, so the files of the splits are not of one "
            "folder; prepare it again"
        )
    table = table.take(pa.array(order))
    return table.select([name for name in INTERACTION_TYPES if name in table.column_names])


__all__ = [
    "INTERACTION_TYPES",
    "POSITION",
    "ROWS_AT_ONCE",
    "check_interaction_table",
    "interaction_parts",
    "read_parquet",
    "require_file",
]
