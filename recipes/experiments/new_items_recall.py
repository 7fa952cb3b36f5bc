"""Recall of cold items: items added after training by their texts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from cold_items import HeldOutItems
from tqdm.auto import tqdm

from modeling_cllm4rec.baselines.popularity import PopularityRecommender, RandomRecommender
from modeling_cllm4rec.baselines.textknn import TextKNNRecommender
from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.core.top_items import top_candidates
from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.evaluator import Recommender, select_users
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval

MEASURES = ("new among new", "new among all", "old among all")
"""Target items and candidates: new or old items, ranked among the new items only or among the whole catalogue.

The last one measures the cost of new items: they displace old items from the lists.
"""


@dataclass(frozen=True)
class NewItemsResult:
    """Recall of new and of old items for one recommender.

    Attributes:
        k: length of the ranked lists.
        users: users with a new item and with a training history of old items.
        left_out: excluded users, who have a new item but no training history of old items.
        recall: Recall@k (over min(k, true items)) for each of `MEASURES`.
        intervals: 95% bootstrap intervals over users.
        per_user: (users,) values for each of `MEASURES`, in the data's order; NaN for users without an old test item.
    """

    k: int
    users: int
    left_out: int
    recall: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_user: dict[str, npt.NDArray[np.float64]]

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON, without the values per user."""
        return {name: value for name, value in asdict(self).items() if name != "per_user"}


def baselines_for(held_out: HeldOutItems, new: int, vectors: npt.NDArray[np.floating], seed: int = 0) -> dict[str, Recommender]:
    """Return baselines over the old and `new` further items: popularity (0 for new items), random, text nearest neighbours.

    Args:
        new: number of new items.
        vectors: (old + new, d) text vectors of all items, new items last.
    """
    counts = np.bincount(held_out.data.histories("train").items, minlength=held_out.data.num_items + new)
    return {
        "popularity": PopularityRecommender(counts),
        "random": RandomRecommender(held_out.data.num_items + new, seed),
        "text nearest neighbour": TextKNNRecommender(vectors, neighbours=None),
    }


def new_items_recall(
    recommender: Recommender | RecommenderModel,
    held_out: HeldOutItems,
    new: pa.Table,
    *,
    k: int = 20,
    batch_size: int = 256,
    seed: int = 0,
    n_resamples: int = 1000,
    progress: bool = True,
    search: Mapping[str, Any] | None = None,
) -> NewItemsResult:
    """Compute Recall@k of items added after training, over the users who interacted with one of them.

    The input is a user's training history of old items, which are excluded from the lists. True new items are those of all
    splits; true old items are those of the user's test split.

    Args:
        recommender: a model of either system to which the new items were added, or anything that scores histories. In both, old
            items come first, in the order of the data, and new items last, in the order of `new`.
        held_out: the training data and the items held out of it.
        new: the added items, with `item_id`.
        k, batch_size, seed, n_resamples, progress: as in `evaluate`.
        search: options of the model's search (LC-Rec: `num_beams`, `scoring`).

    Raises:
        InputError: the recommender has another number of items, k exceeds the number of new items, or no user has a new item.
    """
    data, count = held_out.data, held_out.data.num_items + new.num_rows
    num_items = recommender.num_items
    if num_items != count:
        raise InputError(
            f"the recommender has {num_items} items, the data {data.num_items} and {new.num_rows} new ones; "
            "add exactly these items"
        )
    if not 1 <= k <= new.num_rows:
        raise InputError(f"k is {k}; it must be between 1 and the number of new items, {new.num_rows}")
    truth, users_with_new = _truth(held_out, new)
    histories = data.histories("train")
    users = np.flatnonzero((ranking.truth_sizes(truth) > 0) & (np.diff(histories.indptr) > 0))
    if not len(users):
        raise InputError("no user with a training history interacted with a new item; hold out more items")
    only_new, old_truth = np.arange(data.num_items, count), data.histories("test")
    per_user = {name: np.full(len(users), np.nan) for name in MEASURES}
    with tqdm(total=len(users), desc="ranking new items", unit="user", disable=not progress) as bar:
        for rows, given in _batches(histories, users, batch_size):
            among_new, among_all = _ranked(recommender, users[rows], given, k, (only_new, None), search or {})
            for name, ranked, wanted in zip(MEASURES, (among_new, among_all, among_all), (truth, truth, old_truth), strict=True):
                theirs = select_users(wanted, users[rows])
                per_user[name][rows] = ranking.recall_at_k(ranking.hits(ranked, theirs), ranking.truth_sizes(theirs), k)
            bar.update(len(rows))
    without_nan = {name: values[~np.isnan(values)] for name, values in per_user.items()}
    measured = {name: values for name, values in without_nan.items() if len(values)}
    return NewItemsResult(
        k,
        len(users),
        users_with_new - len(users),
        {name: float(values.mean()) for name, values in measured.items()},
        {name: bootstrap_interval(values, n_resamples=n_resamples, seed=seed) for name, values in measured.items()},
        per_user,
    )


def new_items_table(results: Mapping[str, NewItemsResult]) -> str:
    """Return the results as a Markdown table, with the number of users below it."""
    first = next(iter(results.values()))
    head = [f"Recall@{first.k}, {name}" for name in first.recall]
    lines = [f"| | {' | '.join(head)} |", "|---|" + "---|" * len(head)]
    for label, result in results.items():
        cells = [f"{result.recall[name]:.4f} [{low:.4f}, {high:.4f}]" for name, (low, high) in result.intervals.items()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    note = f"{first.users} users with a new item; {first.left_out} more have no training history and are excluded."
    return "\n".join([*lines, "", note])


def _truth(held_out: HeldOutItems, new: pa.Table) -> tuple[Histories, int]:
    """Return each user's new items, numbered after the old ones, and the number of users with a new item."""
    ids, users = IdMap(new["item_id"], "item_id"), IdMap(held_out.data.users["user_id"], "user_id")
    item = ids.indices_of(held_out.interactions["item_id"].to_pylist(), on_unknown="skip")
    user = users.indices_of(held_out.interactions["user_id"].to_pylist(), on_unknown="skip")
    users_with_new = len(pc.unique(held_out.interactions["user_id"].filter(pa.array(item >= 0))))
    both = (item >= 0) & (user >= 0)
    item, user = item[both], user[both]
    order = np.argsort(user, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))]).astype(np.int64)
    return Histories(indptr, (item[order] + held_out.data.num_items).astype(np.int32)), users_with_new


def _batches(
    histories: Histories, users: npt.NDArray[np.int64], batch_size: int
) -> Iterator[tuple[npt.NDArray[np.int64], Histories]]:
    """Yield rows of `users` and their histories, longest histories first so that a lack of memory shows at once."""
    order = np.argsort(-np.diff(histories.indptr)[users], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, select_users(histories, users[rows])


def _ranked(
    recommender: Recommender | RecommenderModel,
    users: npt.NDArray[np.int64],
    given: Histories,
    k: int,
    candidate_sets: Sequence[npt.NDArray[np.int64] | None],
    search: Mapping[str, Any],
) -> list[npt.NDArray[np.int64]]:
    """Return the (batch, k) best unseen items for each candidate set (item indices, None for all)."""
    seen: Sequence[npt.NDArray[np.int64]] = [row.astype(np.int64) for row in np.split(given.items, given.indptr[1:-1])]
    if isinstance(recommender, RecommenderModel):
        prompts = recommender.build_prompts(users, seen)
        return [recommender.best_items(prompts, seen, k, candidates, **search)[0] for candidates in candidate_sets]
    scores = torch.from_numpy(recommender.score_histories(users, given))
    return [top_candidates(scores, seen, k, candidates)[0] for candidates in candidate_sets]
