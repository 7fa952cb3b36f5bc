"""iALS against the normal equations, solved densely."""

import numpy as np
import pytest

from modeling_cllm4rec.baselines.ials import IALSRecommender
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

pytest.importorskip("implicit")


def test_a_history_is_solved_for():
    """(Y'Y + Y'(C - I)Y + regularization I) x = Y'C p for one user (eq. 4 of the paper)."""
    factors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    alpha, regularization = 5.0, 0.7
    recommender = IALSRecommender(factors, alpha, regularization)
    histories = [[0, 3, 8], [2], []]
    scores = recommender.score_histories(None, histories_from_lists(histories))
    for items, row in zip(histories, scores, strict=True):
        liked = np.zeros(9)
        liked[items] = 1
        confidence = np.where(liked, alpha, 1.0)
        left = factors.T @ (confidence[:, None] * factors) + regularization * np.eye(4)
        user = np.linalg.solve(left, factors.T @ (confidence * liked))
        assert row == pytest.approx(factors @ user, abs=1e-4)


def test_item_factors_solve_their_own_equations(data):
    """After many iterations both sides fit: solving once more for the items changes little."""
    recommender = IALSRecommender.fit(data, factors=4, iterations=60, regularization=1.0, alpha=5.0, progress=False)
    histories = data.histories("train")
    matrix = np.zeros((data.num_users, data.num_items))
    for user in range(data.num_users):
        matrix[user, histories.items[histories.indptr[user] : histories.indptr[user + 1]]] = 1
    items = recommender.item_factors.astype(np.float64)
    users = np.linalg.lstsq(items, recommender.score_histories(None, histories).T.astype(np.float64), rcond=None)[0].T
    for item in range(data.num_items):
        confidence = np.where(matrix[:, item], 5.0, 1.0)
        left = users.T @ (confidence[:, None] * users) + np.eye(4)
        expected = np.linalg.solve(left, users.T @ (confidence * matrix[:, item]))
        assert items[item] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("setting", ["factors", "iterations", "regularization", "alpha"])
def test_refuses(data, setting):
    with pytest.raises(ValueError, match=f"{setting} is 0; it must be"):
        IALSRecommender.fit(data, **{setting: 0})
