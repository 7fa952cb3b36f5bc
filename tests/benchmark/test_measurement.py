"""One evaluation: equal to `evaluate`, sliced, sampled."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from modeling_cllm4rec.baselines.popularity import PopularityRecommender, RandomRecommender
from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Condition
from modeling_cllm4rec.benchmark.measurement import measure, sampled_candidates
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate

TRAIN = Condition("train", "train")


class Searching:
    """Popularity as something that searches, which remembers who asked."""

    decoding = "by hand"

    def __init__(self, inner: Any) -> None:
        self.inner, self.num_items, self.asked = inner, inner.num_items, []

    def rank_histories(self, users: Any, histories: Histories, seen: Histories | None, k: int) -> np.ndarray:
        from modeling_cllm4rec.evaluation.evaluator import top_k

        self.asked.append(users)
        return top_k(self.inner.score_histories(users, histories), k, seen)[0]


@pytest.mark.parametrize("condition", [TRAIN, Condition("train", "train+validation"), Condition(*["train+validation"] * 2)])
def test_metrics_are_those_of_evaluate(data: RecommendationData, setting: BenchmarkConfig, condition: Condition) -> None:
    recommender = RandomRecommender(data.num_items, seed=3)
    ours = measure(recommender, data, setting, condition, data.histories("train"))
    theirs = evaluate(recommender, data, "test", *condition[:2], metrics=setting.metrics, n_resamples=0, progress=False)
    assert ours.metrics == theirs.metrics
    assert ours.protocol == theirs.protocol
    assert np.array_equal(ours.per_user["ndcg@10"].to_numpy(), theirs.per_user["ndcg@10"])
    given = np.diff(data.histories(*condition.test_history.split("+")).indptr)
    assert np.array_equal(ours.per_user["history_length"].to_numpy(), given[theirs.user_indices])


def test_what_searches_is_measured_alike(data: RecommendationData, setting: BenchmarkConfig) -> None:
    popularity, train = PopularityRecommender.fit(data), data.histories("train")
    for condition in (TRAIN, TRAIN._replace(negatives=6)):
        scored, searched = (measure(one, data, setting, condition, train) for one in (popularity, Searching(popularity)))
        assert scored.per_user.equals(searched.per_user)
        assert searched.protocol.decoding == "by hand"


def test_nobody_is_named_to_a_model_that_is_not_to_know(data: RecommendationData, setting: BenchmarkConfig) -> None:
    searching = Searching(PopularityRecommender.fit(data))
    measure(searching, data, setting, TRAIN, data.histories("train"), anonymous=True)
    assert searching.asked == [None]
    measure(searching, data, setting, TRAIN, data.histories("train"))
    assert len(searching.asked[1]) == 60


def test_slices_by_hand(data: RecommendationData, setting: BenchmarkConfig) -> None:
    """With the true items of one bin only, recall is hits in the bin over min(5, true items in the bin)."""
    recommender, truth, train = RandomRecommender(data.num_items, seed=3), data.histories("test"), data.histories("train")
    found = measure(recommender, data, setting, TRAIN, train).per_user
    counts = np.bincount(train.items, minlength=data.num_items)
    labels = [name for name in found.column_names if name.startswith("popularity:")]
    assert len(labels) >= 3
    for label in labels:
        low, _, high = label.partition(":")[2].partition("-")
        for row, user in enumerate(found["user_index"].to_pylist()):
            given = train.items[train.indptr[user] : train.indptr[user + 1]]
            scores = recommender.score_histories(np.array([user]), Histories(np.array([0, len(given)]), given))[0]
            scores[given] = -np.inf
            best = set(np.lexsort((np.arange(len(scores)), -scores))[:5].tolist())
            true = truth.items[truth.indptr[user] : truth.indptr[user + 1]]
            inside = {int(item) for item in true if int(low) <= counts[item] <= int(high or low)}
            wanted = len(best & inside) / min(5, len(inside)) if inside else None
            assert found[label][row].as_py() == wanted
    assert [name for name in found.column_names if name.startswith("relation:")] == [
        "relation:together with an item",
        "relation:never together",
    ], "a random split has no transitions"


def test_users_without_test_items_are_counted_and_left_out(data: RecommendationData, setting: BenchmarkConfig) -> None:
    gone = pc.and_(pc.equal(data.interactions["split"], "test"), pc.less(data.interactions["user_index"], 7))
    fewer = dataclasses.replace(data, interactions=data.interactions.filter(pc.invert(gone)))
    found = measure(PopularityRecommender.fit(fewer), fewer, setting, TRAIN, fewer.histories("train"))
    assert (found.protocol.users, found.protocol.excluded_users) == (53, 7)
    assert min(found.per_user["user_index"].to_pylist()) == 7
    assert not np.isnan(list(found.metrics.values())).any()


def test_candidates_are_true_items_and_unseen_ones(data: RecommendationData) -> None:
    candidates, truth, met = sampled_candidates(data, 6), data.histories("test"), data.histories("train", "validation", "test")
    for user in range(data.num_users):
        mine = candidates.items[candidates.indptr[user] : candidates.indptr[user + 1]]
        true = truth.items[truth.indptr[user] : truth.indptr[user + 1]]
        others = set(mine.tolist()) - set(true.tolist())
        assert set(true.tolist()) <= set(mine.tolist()) and len(others) == 6 and len(mine) == 6 + len(true)
        assert not others & set(met.items[met.indptr[user] : met.indptr[user + 1]].tolist())
    assert np.array_equal(sampled_candidates(data, 6).items, candidates.items)


def test_sampled_metrics_say_so_and_are_higher(data: RecommendationData, setting: BenchmarkConfig) -> None:
    recommender = PopularityRecommender.fit(data)
    full, sampled = (measure(recommender, data, setting, TRAIN._replace(negatives=n), data.histories("train")) for n in (0, 6))
    assert sampled.protocol.candidates == "SAMPLED: the true items and 6 random unseen ones"
    assert full.protocol.candidates == "full catalogue"
    assert sampled.metrics["recall@5"] > full.metrics["recall@5"]


def test_more_negatives_than_items(data: RecommendationData) -> None:
    with pytest.raises(ValueError, match=r"sampled_negatives is 39, but user 0 has \d+ unseen items; lower it"):
        sampled_candidates(data, 39)
