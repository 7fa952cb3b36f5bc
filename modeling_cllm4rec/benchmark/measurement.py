"""Evaluation of a trained model under a condition: metrics of each user, also by popularity of items, and the time."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modeling_cllm4rec.baselines.ranked_lists import RankedListsRecommender
from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Condition
from modeling_cllm4rec.benchmark.slices import popularity_bins
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.top_items import PADDING
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.evaluator import PER_USER_METRICS, evaluate, parse_metrics, select_users, top_k
from modeling_cllm4rec.evaluation.protocol import ALL_SCORED, Protocol

HISTORY_LENGTH = "history_length"
POPULARITY = "popularity"
CANDIDATE_SEED = 0
"""Seed of the candidates of sampled metrics, the same for every model."""


class Measured(NamedTuple):
    """Result of an evaluation.

    Attributes:
        protocol: conditions of the measurement.
        metrics: means over users, and coverages.
        seconds: for scoring and ranking all users.
        per_user: `user_index`, `history_length`, a column for each metric, and one for the first metric over the true items
            of each bin of popularity (`popularity:5-9`), null if a user has no such item.
    """

    protocol: Protocol
    metrics: dict[str, float]
    seconds: float
    per_user: pa.Table


class RankingRecorder:
    """Wraps a recommender as the evaluator's `Searcher` and records its rankings.

    Args:
        recommender: a `Recommender` or a `Searcher`.
        num_users: number of users.
        anonymous: give the recommender no user indices.
        candidates: candidates of every user; None ranks all items.

    Attributes:
        ranked: (num_users, k) item indices, best first, `PADDING` after the end of a list and for users that were not ranked;
            None before the first call.
    """

    def __init__(self, recommender: Any, num_users: int, anonymous: bool = False, candidates: Histories | None = None) -> None:
        self.recommender, self.num_users, self.anonymous, self.candidates = recommender, num_users, anonymous, candidates
        self.ranked: npt.NDArray[np.int32] | None = None
        self.scores_all = hasattr(recommender, "score_histories")

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        return int(self.recommender.num_items)

    @property
    def decoding(self) -> str:
        """Description of the ranking for the protocol."""
        return ALL_SCORED if self.scores_all else str(self.recommender.decoding)

    def rank_histories(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, seen: Histories | None, k: int
    ) -> npt.NDArray[np.int64]:
        """Return the (batch, k) best unseen items and record them by user index."""
        assert user_indices is not None
        users = None if self.anonymous else user_indices
        candidates = None if self.candidates is None else select_users(self.candidates, user_indices)
        if candidates is not None and hasattr(self.recommender, "score_candidates"):  # each item costs a forward pass
            best = top_k(self.recommender.score_candidates(users, histories, candidates), k, seen)[0]
        elif self.scores_all:
            scores = self.recommender.score_histories(users, histories)
            best = top_k(scores if candidates is None else _only(scores, candidates), k, seen)[0]
        else:
            excluded = seen if candidates is None else _all_but(candidates, self.num_items)
            best = self.recommender.rank_histories(users, histories, excluded, k)
        if self.ranked is None:
            self.ranked = np.full((self.num_users, k), PADDING, dtype=np.int32)
        self.ranked[user_indices] = best
        return np.asarray(best)


def measure(
    recommender: Any,
    data: RecommendationData,
    config: BenchmarkConfig,
    condition: Condition,
    train_counts: npt.NDArray[np.int64],
    *,
    anonymous: bool = False,
    batch_size: int = 256,
) -> Measured:
    """Evaluate all users with test interactions, with the metrics of each user.

    Args:
        data: data of the evaluated users.
        train_counts: (J,) training interactions of each item in the training data.
        anonymous: give the model no user indices.

    Raises:
        InputError: `evaluate` refuses an argument, a user has too few unseen items for sampled metrics, or the recommender is a
            file of ranked lists, which cannot rank sampled candidates.
    """
    if condition.negatives and isinstance(recommender, RankedListsRecommender):
        raise InputError(f"sampled_negatives: {recommender.decoding} hold no scores of the sampled items; use full ranking")
    candidates = sampled_candidates(data, condition.negatives) if condition.negatives else None
    recorder = RankingRecorder(recommender, data.num_users, anonymous, candidates)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* users have no test items")  # the protocol has their number
        report = evaluate(
            recorder,
            data,
            "test",
            condition.test_history,
            condition.mask,
            config.metrics,
            batch_size=batch_size,
            n_resamples=0,
            max_users=config.max_users,
        )
    protocol = dataclasses.replace(report.protocol, dataset=config.dataset)
    if candidates is not None:
        drawn = f"SAMPLED: the true items and {condition.negatives} random unseen ones"
        protocol = dataclasses.replace(protocol, candidates=drawn)
    assert recorder.ranked is not None
    users = report.user_indices
    given = np.diff(data.histories(*condition.test_history.split("+")).indptr)[users]
    columns: dict[str, Any] = {"user_index": users.astype(np.int32), HISTORY_LENGTH: given.astype(np.int32), **report.per_user}
    truth = select_users(data.histories("test"), users)
    columns |= _by_popularity(recorder.ranked[users], truth, train_counts, config.metrics[0])
    return Measured(protocol, report.metrics, report.seconds, pa.table(columns))


def sampled_candidates(data: RecommendationData, negatives: int) -> Histories:
    """Return the candidates of every user: the test items, and `negatives` random items without an interaction.

    Raises:
        InputError: a user has too few such items.
    """
    truth, interactions = data.histories("test"), data.histories("train", "validation", "test")
    rows = []
    for user in range(data.num_users):
        true = truth.items[truth.indptr[user] : truth.indptr[user + 1]]
        if not len(true):  # such a user is not evaluated
            rows.append(true)
            continue
        own = interactions.items[interactions.indptr[user] : interactions.indptr[user + 1]]
        others = np.setdiff1d(np.arange(data.num_items, dtype=np.int32), own)
        if len(others) < negatives:
            raise InputError(f"sampled_negatives is {negatives}, but user {user} has {len(others)} unseen items; lower it")
        drawn = np.random.default_rng((CANDIDATE_SEED, user)).choice(others, negatives, replace=False)
        rows.append(np.concatenate([true, drawn]))
    return Histories(np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64), np.concatenate(rows))


def _by_popularity(
    ranked: npt.NDArray[np.int32], truth: Histories, counts: npt.NDArray[np.int64], metric: str
) -> dict[str, pa.Array]:
    """Return column name -> (users,) metric of the same rankings for the true items of one bin of popularity."""
    request = parse_metrics([metric], len(counts))[0]
    row_of = np.repeat(np.arange(len(ranked)), np.diff(truth.indptr))
    columns = {}
    for part in popularity_bins(counts):
        inside = (counts[truth.items] >= part.low) & (counts[truth.items] <= part.high)
        sizes = np.bincount(row_of[inside], minlength=len(ranked))
        kept = Histories(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), truth.items[inside])
        values = PER_USER_METRICS[request.metric](ranking.hits(ranked, kept), sizes, request.k)
        columns[f"{POPULARITY}:{part.label}"] = pa.array(values, mask=np.isnan(values))
    return columns


def _only(scores: npt.NDArray[np.float32], candidates: Histories) -> npt.NDArray[np.float32]:
    """Return the scores with -inf for all items but the candidates of each row."""
    rows = np.repeat(np.arange(len(scores)), np.diff(candidates.indptr))
    limited = np.full_like(scores, -np.inf)
    limited[rows, candidates.items] = scores[rows, candidates.items]
    return limited


def _all_but(candidates: Histories, num_items: int) -> Histories:
    """Return the items of each row that are no candidates."""
    rows = np.split(candidates.items, candidates.indptr[1:-1])
    others = [np.setdiff1d(np.arange(num_items, dtype=np.int32), row) for row in rows]
    return Histories(np.concatenate([[0], np.cumsum([len(row) for row in others])]).astype(np.int64), np.concatenate(others))
