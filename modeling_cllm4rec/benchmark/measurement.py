"""Evaluation of a trained model under a condition: metrics of each user, also of slices, and the time."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modeling_cllm4rec.baselines.ranked_lists import RankedListsRecommender
from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Condition
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate, select_users, top_k
from modeling_cllm4rec.evaluation.protocol import ALL_SCORED, Protocol
from modeling_cllm4rec.evaluation.slices import HISTORY_LENGTH, POPULARITY, RELATION

CANDIDATE_SEED = 0
"""Seed of the candidates of sampled metrics, the same for every model."""


class Measured(NamedTuple):
    """Result of an evaluation.

    Attributes:
        protocol: conditions of the measurement.
        metrics: means over users, and coverages.
        seconds: for scoring and ranking all users.
        per_user: `user_index`, `history_length`, a column for each metric, and one for the first metric over the true items
            of each slice (`popularity:5-9`), null if a user has no such item.
    """

    protocol: Protocol
    metrics: dict[str, float]
    seconds: float
    per_user: pa.Table


class LimitedRecommender:
    """A recommender as the evaluator's `Searcher`, without users or with candidates of each user.

    Args:
        recommender: a `Recommender` or a `Searcher`.
        anonymous: give the recommender no user indices.
        candidates: candidates of every user; None ranks all items.
    """

    def __init__(self, recommender: Any, anonymous: bool = False, candidates: Histories | None = None) -> None:
        self.recommender, self.anonymous, self.candidates = recommender, anonymous, candidates
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
        """Return the (batch, k) best unseen items."""
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
        return np.asarray(best)


def measure(
    recommender: Any,
    data: RecommendationData,
    config: BenchmarkConfig,
    condition: Condition,
    train: Histories,
    *,
    anonymous: bool = False,
    batch_size: int = 256,
) -> Measured:
    """Evaluate all users with test interactions, with the metrics of each user.

    Args:
        data: data of the evaluated users.
        train: histories of the training data.
        anonymous: give the model no user indices.

    Raises:
        InputError: `evaluate` refuses an argument, a user has too few unseen items for sampled metrics, or the recommender is a
            file of ranked lists, which cannot rank sampled candidates.
    """
    if condition.negatives and isinstance(recommender, RankedListsRecommender):
        raise InputError(f"sampled_negatives: {recommender.decoding} hold no scores of the sampled items; use full ranking")
    candidates = sampled_candidates(data, condition.negatives) if condition.negatives else None
    limited = LimitedRecommender(recommender, anonymous, candidates)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* users have no test items")  # the protocol has their number
        report = evaluate(
            limited,
            data,
            "test",
            condition.test_history,
            condition.mask,
            config.metrics,
            batch_size=batch_size,
            n_resamples=0,
            max_users=config.max_users,
            slice_by=train,
        )
    protocol = dataclasses.replace(report.protocol, dataset=config.dataset)
    if candidates is not None:
        drawn = f"SAMPLED: the true items and {condition.negatives} random unseen ones"
        protocol = dataclasses.replace(protocol, candidates=drawn)
    users, first = report.user_indices, config.metrics[0]
    given = np.diff(data.histories(*condition.test_history.split("+")).indptr)[users]
    columns: dict[str, Any] = {"user_index": users.astype(np.int32), HISTORY_LENGTH: given.astype(np.int32), **report.per_user}
    for name in (RELATION, POPULARITY):
        for label, part in report.slices[name].items():
            columns[f"{name}:{label}"] = pa.array(part.per_user[first], mask=np.isnan(part.per_user[first]))
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
