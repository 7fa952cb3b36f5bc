"""External ids at the edge, dense indices inside: the catalogue, the known users, and the table of recommendations.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import InputError

OnUnknown = Literal["raise", "skip"]
"""Treatment of ids that the catalogue does not have: an error, or they are left out."""
CATALOGUE_FILE = "catalogue.parquet"
"""File of a saved folder with item ids and short texts."""
USERS_FILE = "users.parquet"
"""File of a saved folder with user ids and their histories."""
SAVED_COLUMNS = ("item_id", "title", "brand", "categories", "codes")
"""Columns of a catalogue that are saved in its file; longer texts stay with the data."""
NO_HISTORIES = "this model was saved without its users' histories; pass histories= together with users="


class IdMap:
    """External ids, all strings or all integers, in the order of their dense index.

    Example:
        >>> ids = IdMap(["B07", "user 1", "🎸"], "item_id")
        >>> ids.indices_of(["🎸", "B07"]).tolist(), ids.ids_of([1])
        ([2, 0], ['user 1'])
    """

    def __init__(self, ids: Sequence[Any] | pa.Array | pa.ChunkedArray, name: str) -> None:
        self.name = name
        if isinstance(ids, str):
            raise InputError(f"{name} is the string {ids!r}; give a list of ids, as [{ids!r}]")
        try:
            self.array = pa.array(ids) if not isinstance(ids, (pa.Array, pa.ChunkedArray)) else ids
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"{name} mixes types ({error}); give all strings or all integers") from error
        if isinstance(self.array, pa.ChunkedArray):
            self.array = self.array.combine_chunks()
        kind = self.array.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if len(self.array) and not (text or pa.types.is_integer(kind)):
            raise InputError(f"{name} has type {kind}; external ids are strings or integers")
        self.is_text = text
        if self.array.null_count:
            raise InputError(f"{name} has {self.array.null_count} empty ids; give every row an id")
        if len(pc.unique(self.array)) != len(self.array):
            counts = pc.value_counts(self.array).to_pylist()
            twice = [entry["values"] for entry in counts if entry["counts"] > 1][:5]
            raise InputError(f"{name} names some ids twice: {twice}; ids must be unique")

    def __len__(self) -> int:
        return len(self.array)

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.array.to_numpy(zero_copy_only=False))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids in their order."""
        digest = hashlib.sha256()
        for start in range(0, len(self.array), 65536):
            digest.update(json.dumps(self.array.slice(start, 65536).to_pylist()).encode())
        return digest.hexdigest()

    def wrongly_typed(self, ids: Iterable[Any]) -> list[Any]:
        """Return the values that cannot be ids of this map: not text, or no whole numbers. An empty map takes any.

        Example:
            >>> IdMap([7, 8], "user_id").wrongly_typed([7, True, "8", 7.0])
            [True, '8', 7.0]
        """
        allowed: tuple[type, ...] = (str,) if self.is_text else (int, np.integer)
        return [value for value in ids if len(self) and (not isinstance(value, allowed) or isinstance(value, bool))]

    def indices_of(self, ids: Iterable[Any], on_unknown: OnUnknown = "raise") -> np.ndarray:
        """Dense indices of external ids, int64; -1 for an unknown id when `on_unknown="skip"`.

        Raises:
            InputError: an unknown id with `on_unknown="raise"` (the first five are named), or ids of the wrong type.
        """
        if on_unknown not in ("raise", "skip"):
            raise InputError(f"on_unknown is {on_unknown!r}; allowed are 'raise' and 'skip'")
        given = list(ids)
        if wrong := self.wrongly_typed(given):
            wanted = "strings" if self.is_text else "integers"
            raise InputError(f"{self.name}: got {wrong[:5]!r}, but the ids of this catalogue are {wanted}; convert them first")
        dtype = self._index.dtype if self.is_text else None  # an integer may be too large for the catalogue's type
        indices = self._index.get_indexer(pd.Index(given, dtype=dtype) if given else [])
        if on_unknown == "raise" and (indices < 0).any():
            unknown = list(dict.fromkeys(value for value, index in zip(given, indices, strict=True) if index < 0))
            raise InputError(
                f"{len(unknown)} unknown {self.name}: {unknown[:5]!r}; the model knows {len(self)}. "
                "Correct them, or pass on_unknown='skip' to leave them out"
            )
        return np.asarray(indices, dtype=np.int64)

    def ids_of(self, indices: Sequence[int] | np.ndarray) -> list[Any]:
        """External ids, in the type in which they came, of dense indices."""
        return list(self.array.take(pa.array(np.asarray(indices, dtype=np.int64))).to_pylist())

    def parse(self, words: Iterable[str]) -> list[Any]:
        """Ids typed on a command line, turned into the type of this map's ids."""
        if self.is_text:
            return list(words)
        try:
            return [int(word) for word in words]
        except ValueError as error:
            raise InputError(f"{self.name}: {error}; the ids of this catalogue are integers") from error


class Catalogue:
    """The items of a model: row j of `table` is item_index j; `item_id` and any text columns (`title`, ...)."""

    def __init__(self, items: pa.Table | Sequence[Any]) -> None:
        self.table = items if isinstance(items, pa.Table) else pa.table({"item_id": IdMap(items, "item_id").array})
        if "item_id" not in self.table.column_names:
            raise InputError(f"the catalogue has no column 'item_id', only {self.table.column_names}")
        self.ids = IdMap(self.table["item_id"], "item_id")

    def __len__(self) -> int:
        return len(self.ids)

    def titles(self, indices: Sequence[int] | np.ndarray) -> list[str | None]:
        """Titles of items, None where the catalogue has none."""
        if "title" not in self.table.column_names:
            return [None] * len(indices)
        return list(self.table["title"].take(pa.array(np.asarray(indices, dtype=np.int64))).to_pylist())

    def save(self, folder: str | Path) -> None:
        """Write `catalogue.parquet`: ids and, where present, title, brand, categories and codes (LC-Rec)."""
        columns = [name for name in SAVED_COLUMNS if name in self.table.column_names]
        pq.write_table(self.table.select(columns), Path(folder) / CATALOGUE_FILE)

    @classmethod
    def load(cls, path: str | Path) -> Catalogue:
        """Read a `catalogue.parquet`."""
        return cls(_read_parquet(path))


class KnownUsers:
    """Users with an ID token: external ids and, unless left out for privacy, their histories.

    Args:
        ids: external user ids, row i = user_index i.
        indptr, items: histories as compressed rows: user i has items[indptr[i]:indptr[i + 1]], oldest first, as item
            indices. Both or neither.
    """

    def __init__(
        self,
        ids: Sequence[Any] | pa.Array | pa.ChunkedArray,
        indptr: np.ndarray | None = None,
        items: np.ndarray | None = None,
    ) -> None:
        self.ids = IdMap(ids, "user_id")
        if (indptr is None) != (items is None) or (indptr is not None and len(indptr) != len(self.ids) + 1):
            raise InputError("histories: give indptr (users + 1,) and items together, or neither")
        self.indptr = indptr
        self.items = items

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_histories(self) -> bool:
        """Return whether histories are stored."""
        return self.indptr is not None

    def history(self, user_index: int) -> np.ndarray:
        """(history,) item indices of one user, oldest first."""
        if self.indptr is None or self.items is None:
            raise InputError(NO_HISTORIES)
        return np.asarray(self.items[self.indptr[user_index] : self.indptr[user_index + 1]], dtype=np.int64)

    def history_lengths(self, user_indices: np.ndarray) -> np.ndarray:
        """(users,) how many items the stored histories of these users hold."""
        if self.indptr is None:
            raise InputError(NO_HISTORIES)
        return np.asarray(self.indptr[user_indices + 1] - self.indptr[user_indices])

    def without_histories(self) -> KnownUsers:
        """Return the same users with no history stored."""
        return KnownUsers(self.ids.array)

    def renumbered(self, place: np.ndarray) -> KnownUsers:
        """Return the same users with item j named place[j] in their histories; items at -1 leave them.

        Example:
            >>> users = KnownUsers(["ann"], np.array([0, 3]), np.array([0, 1, 2], dtype=np.int32))
            >>> users.renumbered(np.array([1, -1, 0])).history(0).tolist()
            [1, 0]
        """
        if self.indptr is None or self.items is None:
            return self
        items = place[self.items]
        indptr = np.concatenate([[0], np.cumsum(items >= 0)])[self.indptr]
        return KnownUsers(self.ids.array, indptr, items[items >= 0].astype(np.int32))

    def save(self, folder: str | Path) -> None:
        """Write `users.parquet`: `user_id` and, where stored, `history` (lists of row numbers of `catalogue.parquet`)."""
        columns: dict[str, Any] = {"user_id": self.ids.array}
        if self.indptr is not None:
            columns["history"] = pa.LargeListArray.from_arrays(
                pa.array(self.indptr, pa.int64()), pa.array(self.items, pa.int32())
            )
        pq.write_table(pa.table(columns), Path(folder) / USERS_FILE)

    @classmethod
    def load(cls, path: str | Path) -> KnownUsers:
        """Read a `users.parquet`."""
        table = _read_parquet(path)
        if "user_id" not in table.column_names:
            raise InputError(f"{path} has no column 'user_id', only {table.column_names}; copy or download the folder again")
        if "history" not in table.column_names:
            return cls(table["user_id"])
        try:
            lists = table["history"].combine_chunks().cast(pa.large_list(pa.int32()))
        except pa.ArrowException as error:
            raise InputError(f"{path}: the histories are no lists of item indices ({error}); copy the folder again") from error
        if lists.null_count or lists.values.null_count:
            raise InputError(f"{path}: a history is empty (null) or has an empty item; copy or download the folder again")
        return cls(table["user_id"], lists.offsets.to_numpy(), lists.values.to_numpy())


def extended_catalogue(
    catalogue: Catalogue, items: pa.Table | pd.DataFrame | Sequence[Mapping[str, Any]]
) -> tuple[Catalogue, pa.Table]:
    """Append new items to a catalogue.

    Args:
        items: `item_id` and any columns.

    Returns:
        The catalogue, with the columns of both (null where an item has none), and the new items as a table.

    Raises:
        InputError: rows that are no dicts, no `item_id`, ids of another type, an id that is already there or given twice,
            columns of another type.

    Example:
        >>> together, new = extended_catalogue(Catalogue(["B1"]), [{"item_id": "B2", "title": "Soap"}])
        >>> together.ids.array.to_pylist(), together.titles([0, 1])
        (['B1', 'B2'], [None, 'Soap'])
    """
    try:
        if isinstance(items, pd.DataFrame):
            items = pa.Table.from_pandas(items, preserve_index=False)
        elif not isinstance(items, pa.Table):
            wrong = [row for row in items if not isinstance(row, Mapping)]
            if wrong:
                raise InputError(f"items holds {wrong[0]!r}; give a table, or a list with a dict (item_id, texts) for each item")
            items = pa.Table.from_pylist([dict(row) for row in items]) if len(items) else catalogue.table.slice(0, 0)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"items: a column mixes types ({error}); give texts as strings, and None where there is none") from error
    if "item_id" not in items.column_names:
        raise InputError(f"items has no column 'item_id', only {items.column_names}; name the ids' column so")
    new = new_ids(items["item_id"], catalogue.ids)
    items = items.set_column(items.column_names.index("item_id"), "item_id", new.array.cast(catalogue.ids.array.type))
    for name in set(items.column_names) & set(catalogue.table.column_names):
        column, kind = items[name], catalogue.table[name].type
        if pa.types.is_null(column.type) or is_text_type(column.type) == is_text_type(kind):
            continue
        raise InputError(f"items: column {name!r} has type {column.type}, in the catalogue {kind}; convert it first")
    together = pa.concat_tables([catalogue.table, items], promote_options="permissive")
    return Catalogue(together), items


def new_ids(ids: Any, known: IdMap) -> IdMap:
    """Ids as a map of their own.

    Raises:
        InputError: ids of another type than those that are known, one twice or empty, or one that is known already.
    """
    new = IdMap(ids, known.name)
    if len(new) and new.is_text != known.is_text:
        kinds = ("strings", "integers") if known.is_text else ("integers", "strings")
        raise InputError(f"{known.name}: the model's ids are {kinds[0]}, the new ones {kinds[1]}; convert them first")
    there = known.indices_of(new.array.to_pylist(), on_unknown="skip") >= 0
    if there.any():
        twice = [value for value, is_there in zip(new.array.to_pylist(), there, strict=True) if is_there]
        raise InputError(f"{len(twice)} of the new {known.name} are known already: {twice[:5]!r}; add only what is new")
    return new


def is_text_type(kind: pa.DataType) -> bool:
    """Return whether a column holds strings or lists of strings."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner))


def text_column(table: pa.Table, name: str) -> list[str]:
    """Return a text column as strings: lists joined by commas, empty where a row has no text."""
    column = table[name]
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return [", ".join(dict.fromkeys(word for word in value or [] if word)) for value in column.to_pylist()]
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]


def _read_parquet(path: str | Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file ({error}); it may be cut off: copy the folder again") from error


@dataclass
class Recommendations:
    """One table of recommendations: columns `user`, `item`, `rank` (from 1) and `score`, best first for each user.

    `user` is the external user id, or the history's number where no user was named.
    """

    table: pa.Table
    asked: ClassVar[str] = "user"
    """The column with the users, histories or items that were asked for."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def to_pandas(self) -> pd.DataFrame:
        """As a pandas frame."""
        return self.table.to_pandas()

    def to_pylist(self) -> list[dict[str, Any]]:
        """As a list of dicts, one a row."""
        return list(self.table.to_pylist())

    def to_parquet(self, path: str | Path) -> None:
        """Write the table to a Parquet file."""
        pq.write_table(self.table, path)

    def items(self, user: Any) -> list[Any]:
        """Item ids recommended to one user, best first."""
        return list(self.table.filter(pc.equal(self.table[self.asked], user))["item"].to_pylist())

    def __repr__(self) -> str:
        shown = self.table.slice(0, 10).to_pandas().to_string(index=False)
        return f"{type(self).__name__}({self.table.num_rows} rows)\n{shown}"


class SimilarItems(Recommendations):
    """One table of similar items: columns `target_item`, `item`, `rank` (from 1) and `score` (cosine), best first.

    `items(target_item)` lists those of one target.
    """

    asked = "target_item"


__all__ = [
    "CATALOGUE_FILE",
    "USERS_FILE",
    "Catalogue",
    "IdMap",
    "KnownUsers",
    "OnUnknown",
    "Recommendations",
    "SimilarItems",
    "extended_catalogue",
    "is_text_type",
    "new_ids",
    "text_column",
]
