"""Queries that measure `search`: made of the reviews of validation and test pairs, which nothing else reads.

`prepare` leaves these reviews out of the data folder, because they would tell a model what it is to predict. Where it is asked
to, it writes them to a file of their own. No module that trains may import this one; a contract of import-linter checks it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.data_folder import HELD_OUT_REVIEWS, RecommendationData
from modeling_cllm4rec.corpora.interaction_files import read_parquet
from modeling_cllm4rec.evaluation.protocol import EVALUATED_SPLITS
from modeling_cllm4rec.evaluation.search_baselines import WriteQueries


@dataclass(frozen=True)
class SearchQueries:
    """Queries of users, each of which looks for one item.

    Attributes:
        split: the pairs whose reviews they are made of, `validation` or `test`.
        user_indices: (n,) the users, in ascending order.
        item_indices: (n,) the item that each query looks for.
        queries: n texts.
        pairs: number of pairs in the split, with or without a query.
    """

    split: str
    user_indices: npt.NDArray[np.int64]
    item_indices: npt.NDArray[np.int64]
    queries: list[str]
    pairs: int

    def __len__(self) -> int:
        return len(self.queries)

    def of(self, chosen: npt.NDArray[np.bool_]) -> SearchQueries:
        """Return the queries that (n,) `chosen` marks."""
        kept = [query for query, keep in zip(self.queries, chosen, strict=True) if keep]
        return SearchQueries(self.split, self.user_indices[chosen], self.item_indices[chosen], kept, self.pairs)


def held_out_reviews(data: RecommendationData, split: str) -> pa.Table:
    """Return the reviews of validation or test pairs: `user_index`, `item_index`, `split`, `review`, sorted by user.

    Raises:
        MissingFileError: the data folder was prepared without them.
        InputError: `split` is no held-out split, it has no review, or the file is of another data folder.
    """
    if split not in EVALUATED_SPLITS:
        raise InputError(f"split is {split!r}; queries are made of the reviews of {' or '.join(EVALUATED_SPLITS)} pairs")
    file = data.folder / f"{HELD_OUT_REVIEWS}.parquet"
    if not file.is_file():
        raise MissingFileError(
            f"{data.folder} has no held-out reviews, of which the queries are made; prepare it again with held_out_reviews=True "
            "(`cllm4rec prepare --held-out-reviews`), which changes nothing else in it"
        )
    table = read_parquet(file)
    table = table.filter(pc.equal(table["split"], split))
    if not table.num_rows:
        raise InputError(f"no {split} pair of {data.folder} has a review, so there are no queries; choose another split")
    pairs = data.interactions.filter(pc.equal(data.interactions["split"], split))
    keys = [_pair_keys(one, data.num_items) for one in (table, pairs)]
    if not np.isin(keys[0], keys[1]).all():
        raise InputError(f"{file} has reviews of pairs that are not in {split}: it is of another data folder; prepare it again")
    return table


def search_queries(data: RecommendationData, split: str, write: WriteQueries) -> SearchQueries:
    """Make a query of each review of a held-out pair, from that review alone.

    Args:
        data: a data folder with held-out reviews.
        split: `validation` or `test`.
        write: makes the queries. It is given the brand of each item too, because a query should not name it.

    Raises:
        MissingFileError, InputError: as `held_out_reviews`, or no review makes a query.
    """
    table = held_out_reviews(data, split)
    items = table["item_index"].to_numpy().astype(np.int64)
    brands = text_column(data.items, "brand") if "brand" in data.items.column_names else [""] * data.num_items
    written = write(table["review"].to_pylist(), [brands[item] for item in items.tolist()])
    pairs = int(pc.sum(pc.equal(data.interactions["split"], split)).as_py())
    found = SearchQueries(split, table["user_index"].to_numpy().astype(np.int64), items, written, pairs)
    found = found.of(np.array([bool(query) for query in written], dtype=bool))
    if not len(found):
        raise InputError(f"no review of a {split} pair makes a query: none has a word that says something; choose another split")
    return found


def _pair_keys(table: pa.Table, num_items: int) -> npt.NDArray[np.int64]:
    users, items = (table[name].to_numpy().astype(np.int64) for name in ("user_index", "item_index"))
    return users * num_items + items


__all__ = ["SearchQueries", "held_out_reviews", "search_queries"]
