"""A file of ranked lists as a recommender: the output of another program under the same evaluation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.top_items import PADDING
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.readers import read_table

NAMED = 5
"""Most ids that an error names."""


class RankedListsRecommender:
    """Lists of items by user; obeys `evaluator.Searcher`.

    The lists are evaluated unchanged. A seen item, or a second occurrence of an item in a list, keeps its rank, counts as a miss,
    and is one of the report's `illegal_items`.

    Args:
        lists: (users, k) item indices, best first, `PADDING` after the end of a list.
        num_items: size J of the catalogue.
        users: external ids of the users, for errors.
        name: name of the file, for the protocol and errors.
    """

    def __init__(self, lists: npt.NDArray[np.int64], num_items: int, users: IdMap, name: str) -> None:
        self.lists, self.num_items, self.users, self.name = lists, num_items, users, name

    @property
    def decoding(self) -> str:
        """Description of the lists for the protocol."""
        return f"ranked lists of {self.name}"

    @classmethod
    def fit(cls, data: RecommendationData, *, seed: int = 0, path: str) -> Self:
        """Read a table with the columns `user_id`, `item_id`, and `rank` (smallest first) or `score` (largest first).

        Of equal scores of a user the lower item index comes first, as in the ranking of scores.

        Args:
            data: the data folder with the users and items of the file.
            seed: unused, because nothing is random.
            path: a file that `readers.read_table` reads, such as Parquet, CSV or JSON Lines.

        Raises:
            InputError: there is neither a rank nor a score, one is no finite number, a rank of a user occurs twice, or the data
                has no such user or item (the first five are named).
            MissingFileError: there is no such file.
        """
        table = read_table(path, ["user_id", "item_id"], ["rank", "score"])
        by = next((column for column in ("rank", "score") if column in table.column_names), None)
        if by is None:
            raise InputError(f"{path} has the columns {', '.join(table.column_names)}; ranked lists also need rank or score")
        known_users = IdMap(data.users["user_id"], "user_id")
        users = _indices(table["user_id"], known_users, path)
        items = _indices(table["item_id"], IdMap(data.items["item_id"], "item_id"), path)
        keys = _numbers(table[by], by, path)
        order = np.lexsort((items, keys if by == "rank" else -keys, users))
        users, items, keys = users[order], items[order], keys[order]
        if by == "rank":
            twice = np.flatnonzero((users[1:] == users[:-1]) & (keys[1:] == keys[:-1]))
            if len(twice):
                user = known_users.ids_of(users[twice[:1]])[0]
                raise InputError(f"{path}: user {user!r} has the rank {keys[twice[0]]:g} twice; ranks must be unique")
        lengths = np.bincount(users, minlength=data.num_users)
        ranks = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        lists = np.full((data.num_users, int(lengths.max())), PADDING, dtype=np.int64)
        lists[users, ranks] = items
        return cls(lists, data.num_items, known_users, Path(path).name)

    def rank_histories(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, seen: Histories | None, k: int
    ) -> npt.NDArray[np.int64]:
        """Return the first k items of each user's list.

        Raises:
            InputError: users have no list, or the users are not given.
        """
        if user_indices is None:
            raise InputError(f"{self.name} has lists by user; it cannot rank for histories without users")
        lists = self.lists[user_indices]
        missing = user_indices[lists[:, 0] == PADDING]
        if len(missing):
            without = int((self.lists[:, 0] == PADDING).sum())
            raise InputError(
                f"{self.name} has no list for {without} of all {len(self.lists)} users, and {len(missing)} of them are evaluated "
                f"in one batch: {self.users.ids_of(missing[:NAMED])}; add their lists"
            )
        if (lists[:, min(k, lists.shape[1]) - 1] == PADDING).any() or k > lists.shape[1]:
            warnings.warn(f"{self.name} has lists of fewer than {k} items; empty ranks count as misses", stacklevel=2)
        empty = np.full((len(lists), max(k - lists.shape[1], 0)), PADDING, dtype=np.int64)
        return np.concatenate([lists, empty], axis=1)[:, :k]


def _indices(column: pa.ChunkedArray, ids: IdMap, path: str) -> npt.NDArray[np.int64]:
    """Return (rows,) dense indices of a column of external ids.

    Raises:
        InputError: ids are missing, of another type, or unknown.
    """
    if column.null_count:
        raise InputError(f"{path}: {ids.name} is empty in {column.null_count} rows; give every row an id")
    given = column.to_pylist()
    try:
        # A CSV file has no types, so its ids are text although those of the data may be integers.
        given = ids.parse(map(str, given)) if not ids.is_text else given
        indices = ids.indices_of(given, on_unknown="skip")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    unknown = list(dict.fromkeys(one for one, index in zip(given, indices, strict=True) if index < 0))
    if unknown:
        raise InputError(
            f"{path}: the data has no {ids.name} {', '.join(map(repr, unknown[:NAMED]))} ({len(unknown)} unknown); "
            "remove their rows, or evaluate on the data folder that the lists were made for"
        )
    return indices


def _numbers(column: pa.ChunkedArray, name: str, path: str) -> npt.NDArray[np.float64]:
    """Return (rows,) ranks or scores.

    Raises:
        InputError: one is missing or no finite number.
    """
    try:
        numbers: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path}: {name} holds a value that is no number ({error})") from error
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise InputError(f"{path}: {name} is empty or not finite in {len(wrong)} rows, first in row {wrong[0] + 1}")
    return numbers
