"""Nearest neighbours by text."""

import numpy as np
import pytest

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.textknn import TextKNNRecommender
from modeling_cllm4rec.evaluation.ranking import histories_from_lists


def test_cosines_by_hand():
    vectors = np.array([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0], [0.0, 0.0]])
    scores = TextKNNRecommender(vectors).score_histories(None, histories_from_lists([[0, 1], [2], [3], []]))
    half = 2**-0.5
    assert scores == pytest.approx(np.array([[half, half, 1, 0], [half, half, 1, 0], [0] * 4, [0] * 4]))


def test_items_of_one_text_are_nearest(data, tiny_backbones):
    recommender = fit_baseline("textknn", data, encoder=str(tiny_backbones["llama"]), progress=False)
    scores = recommender.score_histories(None, histories_from_lists([[item] for item in range(data.num_items)]))
    assert np.diag(scores) == pytest.approx(np.ones(data.num_items))
    assert scores.max() <= 1 + 1e-5


def test_refuses():
    with pytest.raises(ValueError, match=r"vectors must be a non-empty \(items, dimensions\) array, got shape \(0, 3\)"):
        TextKNNRecommender(np.zeros((0, 3)))
