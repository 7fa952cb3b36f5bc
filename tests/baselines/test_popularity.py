"""Popularity and random."""

import numpy as np
import pytest
from scipy import stats

from modeling_cllm4rec.baselines.popularity import PopularityRecommender, RandomRecommender
from modeling_cllm4rec.evaluation.evaluator import select_users
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

HISTORIES = histories_from_lists([[5, 1], [], [3], [2, 0, 4], [1, 5]])
USERS = np.array([0, 1, 2, 3, 4])


class TrainOnly:
    num_items = 7

    def histories(self, *splits):
        assert splits == ("train",)
        return HISTORIES


def test_popularity_counts_train_users():
    recommender = PopularityRecommender.fit(TrainOnly())
    scores = recommender.score_histories(None, select_users(HISTORIES, np.array([1, 0])))
    assert scores.dtype == np.float32
    assert scores.tolist() == [[1, 2, 1, 1, 1, 2, 0]] * 2
    scores[:] = 0  # the caller owns them
    assert recommender.score_histories(None, HISTORIES)[0].tolist() == [1, 2, 1, 1, 1, 2, 0]


def test_random_does_not_depend_on_the_batch():
    recommender = RandomRecommender(50, seed=1)
    whole = recommender.score_histories(USERS, HISTORIES)
    assert whole.shape == (5, 50) and whole.dtype == np.float32
    for rows in ([3], [4, 0], [1, 2, 3]):
        part = RandomRecommender(50, seed=1).score_histories(USERS[rows], select_users(HISTORIES, np.array(rows)))
        assert (part == whole[rows]).all()


def test_random_depends_on_user_history_and_seed():
    rows = RandomRecommender(50, seed=1).score_histories(USERS, HISTORIES)
    assert len({row.tobytes() for row in rows}) == 5
    nobody = RandomRecommender(50, seed=1).score_histories(None, HISTORIES)
    assert (nobody[0] == nobody[4]).all(), "the same set of items without a user"
    assert len({row.tobytes() for row in nobody}) == 4
    assert not (RandomRecommender(50, seed=2).score_histories(USERS, HISTORIES) == rows).all(axis=1).any()


def test_random_is_uniform():
    histories = histories_from_lists([[0]] * 200)
    scores = RandomRecommender(500).score_histories(np.arange(200), histories)
    assert scores.min() >= 0 and scores.max() < 1
    assert stats.kstest(scores.ravel(), "uniform").pvalue > 0.01
    best = np.bincount(scores.argmax(axis=1), minlength=500)
    assert best.max() <= 5
    neighbours = np.corrcoef(scores)[np.triu_indices(200, 1)]
    assert np.abs(neighbours).max() < 0.25


@pytest.mark.parametrize("counts", [np.zeros(0, dtype=np.int64), np.zeros((2, 2), dtype=np.int64)])
def test_popularity_refuses(counts):
    with pytest.raises(ValueError, match="counts must be a non-empty"):
        PopularityRecommender(counts)


def test_random_refuses():
    with pytest.raises(ValueError, match="num_items must be at least 1, got 0"):
        RandomRecommender(0)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        RandomRecommender(3, seed=-1)
