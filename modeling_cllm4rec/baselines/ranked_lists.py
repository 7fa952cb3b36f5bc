"""A file of ranked lists as a recommender: what another program recommends, under the same evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.top_items import PADDING
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.readers import read_table


class RankedListsRecommender:
    """Lists of items by user; obeys `evaluator.Searcher`.

    The lists are evaluated as they are: an item that the user has seen, or that is in a list twice, counts as a miss and among
    the report's illegal items.

    Args:
        lists: (users, k) item indices, best first, `PADDING` where a list is shorter or missing.
        num_items: size J of the catalogue.
        name: name of the file, for the protocol.
    """

    def __init__(self, lists: npt.NDArray[np.int64], num_items: int, name: str) -> None:
        self.lists, self.num_items, self.name = lists, num_items, name

    @property
    def decoding(self) -> str:
        """How the lists were found, for the protocol."""
        return f"ranked lists of {self.name}"

    @classmethod
    def fit(cls, data: RecommendationData, *, seed: int = 0, path: str) -> Self:
        """Read a table with `user_id`, `item_id` and `rank` (from 1) or `score`.

        Args:
            data: the data folder that the ids belong to.
            path: a file that `readers.read_table` reads.

        Raises:
            InputError: neither rank nor score, or ids that the data do not have (the first five are named).
            MissingFileError: there is no such file.
        """
        table = read_table(path, ["user_id", "item_id"], ["rank", "score"])
        by = next((name for name in ("rank", "score") if name in table.column_names), None)
        if by is None:
            raise InputError(f"{path} has columns {table.column_names}; ranked lists need 'rank' or 'score' as well")
        ids = [IdMap(data.users["user_id"], "user_id"), IdMap(data.items["item_id"], "item_id")]
        users, items = (
            one.indices_of(one.parse(map(str, table[name].to_pylist())) if not one.is_text else table[name].to_pylist())
            for one, name in zip(ids, ("user_id", "item_id"), strict=True)
        )
        keys = np.array(table[by].to_pylist(), dtype=np.float64) * (1 if by == "rank" else -1)
        order = np.lexsort((keys, users))
        users, items = users[order], items[order]
        counts = np.bincount(users, minlength=data.num_users)
        place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
        lists = np.full((data.num_users, max(int(counts.max(initial=0)), 1)), PADDING, dtype=np.int64)
        lists[users, place] = items
        return cls(lists, data.num_items, Path(path).name)

    def rank_histories(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, seen: Histories | None, k: int
    ) -> npt.NDArray[np.int64]:
        """Return the first k items of each user's list.

        Raises:
            InputError: users without a list, or a question without users.
        """
        if user_indices is None:
            raise InputError(f"{self.name} holds lists by user, and no users were given")
        lists = self.lists[user_indices]
        missing = int((lists[:, 0] == PADDING).sum())
        if missing:
            raise InputError(f"{self.name} has no list for {missing} of {len(lists)} users of a batch; add their lists")
        short = np.full((len(lists), max(k - lists.shape[1], 0)), PADDING, dtype=np.int64)
        return np.concatenate([lists, short], axis=1)[:, :k]
