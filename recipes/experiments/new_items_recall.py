"""How well items are found that came after training, known by their texts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm.auto import tqdm

from modeling_cllm4rec.baselines.popularity import PopularityRecommender, RandomRecommender
from modeling_cllm4rec.baselines.textknn import TextKNNRecommender
from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.core.top_items import top_candidates
from modeling_cllm4rec.corpora.cold_items import HeldOutItems
from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.evaluator import Recommender, select_users
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval

MEASURES = ("new among new", "new among all", "old among all")
"""What is to be found, and among what: the items that were added, or these and all that were there before.

The last one tells what the new items cost: they take places in the lists from old ones.
"""


@dataclass(frozen=True)
class NewItemsResult:
    """Recall of the new items, and of the old ones beside them, for one recommender.

    Attributes:
        k: how many of the first items count.
        users: users who have a new item and an old one in their training history.
        left_out: users who have a new item, but no training history left: they cannot be asked for.
        recall: Recall@k (over min(k, what the user chose of them)) for each of `MEASURES`.
        intervals: 95% bootstrap intervals over users.
        per_user: (users,) values for each of `MEASURES`, in the order of the data's users; NaN for who has no old test item.
    """

    k: int
    users: int
    left_out: int
    recall: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_user: dict[str, npt.NDArray[np.float64]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the values of each user."""
        return {name: value for name, value in asdict(self).items() if name != "per_user"}


def baselines_for(withheld: HeldOutItems, new: int, vectors: npt.NDArray[np.floating], seed: int = 0) -> dict[str, Recommender]:
    """Recommenders over the old items and `new` further ones: popularity (0 for what is new), random, text neighbours.

    Args:
        new: how many items are new.
        vectors: (old + new, d) vectors of all items' texts, the new ones last.
    """
    counts = np.bincount(withheld.data.histories("train").items, minlength=withheld.data.num_items + new)
    return {
        "popularity": PopularityRecommender(counts),
        "random": RandomRecommender(withheld.data.num_items + new, seed),
        "text nearest neighbour": TextKNNRecommender(vectors),
    }


def new_items_recall(
    recommender: Recommender | RecommenderModel,
    withheld: HeldOutItems,
    new: pa.Table,
    *,
    k: int = 20,
    batch_size: int = 256,
    seed: int = 0,
    n_resamples: int = 1000,
    progress: bool = True,
    search: Mapping[str, Any] | None = None,
) -> NewItemsResult:
    """Recall@k of items that were added after training, for the users who chose one of them.

    Everything a user did with a new item is to be found, from the user's training history of old items; items of that
    history are not recommended. Of the old items, those of the user's test split are to be found.

    Args:
        recommender: a model of either system to which the new items were added, or anything that scores histories; in both, old
            items come first, in the order of the data, and the new ones last, in the order of `new`.
        withheld: the data that the model was trained on, and what was withheld from it.
        new: the items that were added, with their `item_id`.
        k, batch_size, seed, n_resamples, progress: as in `evaluate`.
        search: settings of the model's own search (LC-Rec: `num_beams`, `scoring`).

    Raises:
        InputError: a recommender of another number of items, k larger than the number of new items, or nobody with a new item.
    """
    data, count = withheld.data, withheld.data.num_items + new.num_rows
    num_items = recommender.num_items
    if num_items != count:
        raise InputError(
            f"the recommender has {num_items} items, the data {data.num_items} and {new.num_rows} new ones; "
            "add these items, and no other"
        )
    if not 1 <= k <= new.num_rows:
        raise InputError(f"k is {k}; it must lie between 1 and the number of new items, {new.num_rows}")
    truth, choosers = _truth(withheld, new)
    histories = data.histories("train")
    users = np.flatnonzero((ranking.truth_sizes(truth) > 0) & (np.diff(histories.indptr) > 0))
    if not len(users):
        raise InputError("nobody with a training history chose one of the new items; withhold more")
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
    told = {name: values for name, values in without_nan.items() if len(values)}
    return NewItemsResult(
        k,
        len(users),
        choosers - len(users),
        {name: float(values.mean()) for name, values in told.items()},
        {name: bootstrap_interval(values, n_resamples=n_resamples, seed=seed) for name, values in told.items()},
        per_user,
    )


def new_items_table(results: Mapping[str, NewItemsResult]) -> str:
    """Results as a Markdown table, and below it who was asked."""
    first = next(iter(results.values()))
    head = [f"Recall@{first.k}, {name}" for name in first.recall]
    lines = [f"| | {' | '.join(head)} |", "|---|" + "---|" * len(head)]
    for label, result in results.items():
        cells = [f"{result.recall[name]:.4f} [{low:.4f}, {high:.4f}]" for name, (low, high) in result.intervals.items()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    note = f"{first.users} users with a new item; {first.left_out} more have no training history left and are left out."
    return "\n".join([*lines, "", note])


def _truth(withheld: HeldOutItems, new: pa.Table) -> tuple[Histories, int]:
    """The new items of each user of the data, of all splits, as indices behind the old ones; and how many people chose one."""
    ids, users = IdMap(new["item_id"], "item_id"), IdMap(withheld.data.users["user_id"], "user_id")
    item = ids.indices_of(withheld.interactions["item_id"].to_pylist(), on_unknown="skip")
    user = users.indices_of(withheld.interactions["user_id"].to_pylist(), on_unknown="skip")
    choosers = len(pc.unique(withheld.interactions["user_id"].filter(pa.array(item >= 0))))
    both = (item >= 0) & (user >= 0)
    item, user = item[both], user[both]
    order = np.argsort(user, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))]).astype(np.int64)
    return Histories(indptr, (item[order] + withheld.data.num_items).astype(np.int32)), choosers


def _batches(
    histories: Histories, users: npt.NDArray[np.int64], batch_size: int
) -> Iterator[tuple[npt.NDArray[np.int64], Histories]]:
    """Row numbers of `users`, those with long histories first, and their histories."""
    order = np.argsort(-np.diff(histories.indptr)[users], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, select_users(histories, users[rows])


def _ranked(
    recommender: Recommender | RecommenderModel,
    users: npt.NDArray[np.int64],
    given: Histories,
    k: int,
    choices: Sequence[npt.NDArray[np.int64] | None],
    search: Mapping[str, Any],
) -> list[npt.NDArray[np.int64]]:
    """(batch, k) best unseen items among each of the choices (item indices, None for all)."""
    seen: Sequence[npt.NDArray[np.int64]] = [row.astype(np.int64) for row in np.split(given.items, given.indptr[1:-1])]
    if isinstance(recommender, RecommenderModel):
        prompts = recommender.build_prompts(users, seen)
        return [recommender.best_items(prompts, seen, k, choice, **search)[0] for choice in choices]
    scores = torch.from_numpy(recommender.score_histories(users, given))
    return [top_candidates(scores, seen, k, choice)[0] for choice in choices]
