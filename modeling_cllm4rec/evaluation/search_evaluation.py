"""Evaluation of search (figure 3 of LC-Rec): queries in words, with or without the user's history, over the whole catalogue."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.top_items import PADDING
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.evaluator import PER_USER_METRICS, SAMPLE_SEED, parse_metrics, select_users, top_k
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval
from modeling_cllm4rec.evaluation.protocol import WITHOUT_HISTORY
from modeling_cllm4rec.evaluation.protocol import Protocol as EvaluationProtocol
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.search_baselines import QueryScorer
from modeling_cllm4rec.evaluation.search_queries import SearchQueries

SEARCH_METRICS = ("hit_rate@1", "hit_rate@5", "hit_rate@10", "ndcg@5", "ndcg@10")
"""Metrics of `evaluate --search`."""


class QueryRanker(Protocol):
    """A recommender that finds items for queries, such as LC-Rec."""

    num_items: int
    decoding: str

    def rank_queries(self, queries: Sequence[str], histories: Histories | None, k: int) -> npt.NDArray[np.int64]:
        """Return the (n, k) best items for queries, without those of the histories, best first, -1 where there are fewer."""
        ...


class SearchingModel:
    """A model of this package as a `QueryRanker`: it answers as `model.search` does, with seen items left out.

    Args:
        model: a `RecommenderModel` that reads queries.
        settings: of its search, such as `num_beams` of LC-Rec.
        template: number of the template of queries.
        batch_size: queries in one pass (default: the model's).

    Raises:
        InputError: the model reads no queries, or has no such setting.
    """

    def __init__(
        self, model: Any, settings: Mapping[str, Any] | None = None, template: int = 0, batch_size: int | None = None
    ) -> None:
        if not model.reads_queries:
            raise InputError(
                f"{model.name_or_path or type(model).__name__} reads no queries, so there is no search to measure; name an "
                "LC-Rec model, or evaluate its recommendations"
            )
        self.num_items = int(model.num_items)
        self._model, self._template, self._batch_size = model, template, batch_size
        self._settings = dict(settings or {})
        checked = model.read_question(None, None, ["query"], 1, True, None, "raise", **self._settings)
        self.decoding = str(model.describe_search(**{**checked.search, "template": template}))

    def rank_queries(self, queries: Sequence[str], histories: Histories | None, k: int) -> npt.NDArray[np.int64]:
        """Return the (n, k) best items; see `QueryRanker`."""
        ids = self._model.require_catalogue().ids
        given = None
        if histories is not None:
            rows = np.split(np.asarray(histories.items), np.asarray(histories.indptr)[1:-1])
            given = [ids.array.take(row).to_pylist() for row in rows]
        question = self._model.read_question(None, given, list(queries), k, True, None, "raise", **self._settings)
        ranked = np.full((len(queries), k), PADDING, dtype=np.int64)
        for table in self._model.iter_answers(question, self._batch_size, template=self._template):
            places = (table["user"].to_numpy(), table["rank"].to_numpy() - 1)
            ranked[places] = ids.indices_of(table["item"].to_pylist())
        return ranked


def evaluate_search(
    recommender: QueryRanker | QueryScorer,
    data: RecommendationData,
    queries: SearchQueries,
    test_history: str = "train",
    metrics: Sequence[str] = SEARCH_METRICS,
    seed: int = 0,
    n_resamples: int = 1000,
    max_users: int | None = None,
) -> EvaluationReport:
    """Rank the whole catalogue for each query, and measure the rank of the item whose review the query was made of.

    A query has one true item. A user's metric is the mean over the user's queries, so intervals are over users.

    Args:
        recommender: a `SearchingModel`, or a baseline of `search_baselines`, which reads no history.
        data: the prepared data folder.
        queries: see `search_queries.search_queries`.
        test_history: the history that is given with a query, `train` or `train+validation` (the latter for `test` only), or
            `none`. Items of the history are excluded from the ranking, for baselines as well. With a history, queries of users
            who have none are left out; the protocol says how many.
        metrics, seed, n_resamples, max_users: see `evaluator.evaluate`.

    Raises:
        InputError: an argument is out of range, the recommender has another catalogue, or no query is left.
    """
    if n_resamples < 0:
        raise InputError(f"n_resamples must be 0 (no intervals) or more, got {n_resamples}")
    if recommender.num_items != data.num_items:
        raise InputError(
            f"the recommender has {recommender.num_items} items, but the data has {data.num_items}; "
            "evaluate on the data folder that the recommender was made for"
        )
    requests = parse_metrics(metrics, data.num_items)
    protocol = EvaluationProtocol(
        dataset=data.name,
        splitting=data.info["protocol"]["line"],
        split=queries.split,
        test_history=test_history,
        masked=test_history,
        items=data.num_items,
        users=0,
        excluded_users=0,
        queries=f"{len(queries)} of the reviews of {queries.pairs} {queries.split} pairs, made by rules",
    )
    histories = None
    if test_history != WITHOUT_HISTORY:
        every = data.histories(*test_history.split("+"))
        with_history = np.diff(every.indptr)[queries.user_indices] > 0
        if not with_history.all():
            protocol = dataclasses.replace(
                protocol, queries=f"{protocol.queries}, {int((~with_history).sum())} of users without a history left out"
            )
            queries = queries.of(with_history)
        histories = every
    users = np.unique(queries.user_indices)
    if not len(users):
        raise InputError(f"no user with a query has a history in {test_history}; measure without the history")
    if max_users is not None and max_users < 1:
        raise InputError(f"max_users is {max_users}; it must be 1 or more")
    if max_users is not None and max_users < len(users):
        protocol = dataclasses.replace(protocol, sample=f"a random sample of {len(users)}, seed {SAMPLE_SEED}")
        users = np.sort(np.random.default_rng(SAMPLE_SEED).choice(users, max_users, replace=False))
        queries = queries.of(np.isin(queries.user_indices, users))
    protocol = dataclasses.replace(protocol, users=len(users), excluded_users=data.num_users - len(users))
    if not hasattr(recommender, "score_queries"):
        protocol = dataclasses.replace(protocol, decoding=recommender.decoding)

    start = time.perf_counter()
    largest_k = max(request.k for request in requests)
    given = None if histories is None else select_users(histories, queries.user_indices)
    if hasattr(recommender, "score_queries"):
        ranked = top_k(recommender.score_queries(queries.queries), largest_k, given)[0]
    else:
        ranked = recommender.rank_queries(queries.queries, given, largest_k)
    seconds = time.perf_counter() - start
    truth = Histories(np.arange(len(queries) + 1), queries.item_indices.astype(np.int32))
    hit, sizes = ranking.hits(ranked, truth), ranking.truth_sizes(truth)
    rows = np.searchsorted(users, queries.user_indices)
    per_user = {
        label: np.bincount(rows, PER_USER_METRICS[metric](hit, sizes, k)) / np.bincount(rows)
        for label, metric, k in requests
        if metric != "coverage"
    }
    means = {
        label: float(per_user[label].mean()) if label in per_user else ranking.coverage_at_k(ranked, data.num_items, k)
        for label, _, k in requests
    }
    intervals = {}
    if n_resamples:
        intervals = {label: bootstrap_interval(values, n_resamples=n_resamples, seed=seed) for label, values in per_user.items()}
    return EvaluationReport(
        protocol, means, intervals, seconds, seed, n_resamples, users, per_user, dataset_revision=data.revision
    )


__all__ = ["SEARCH_METRICS", "QueryRanker", "SearchingModel", "evaluate_search"]
