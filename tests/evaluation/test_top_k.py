"""Top-k: exact, deterministic, ties by the lower index."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modeling_cllm4rec.evaluation import evaluator
from modeling_cllm4rec.evaluation.evaluator import top_k
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

INF = np.inf


def scores_of(rows):
    return np.array(rows, dtype=np.float32)


def plain_top_k(scores, k, seen):
    """Sort by score downwards, then by index upwards, as in the definition."""
    indices, values = [], []
    for row, items in zip(scores.tolist(), seen, strict=True):
        left = [(-score, item) for item, score in enumerate(row) if item not in items and score != -INF]
        best = sorted(left)[:k]
        indices.append([item for _, item in best] + [-1] * (k - len(best)))
        values.append([-score for score, _ in best] + [-INF] * (k - len(best)))
    return indices, values


def test_by_hand():
    indices, values = top_k(scores_of([[0.5, 2, -1, 1], [-5, -4, -3, -2]]), 3)
    assert indices.tolist() == [[1, 3, 0], [3, 2, 1]]
    assert values.tolist() == [[2, 1, 0.5], [-2, -3, -4]]
    assert indices.dtype == np.int64 and values.dtype == np.float32


def test_tie_across_the_last_place_goes_to_the_lower_index():
    indices, _ = top_k(scores_of([[1, 1, 3, 1, 1], [0, 0, 0, 0, 0]]), 3)
    assert indices.tolist() == [[2, 0, 1], [0, 1, 2]]


def test_two_zeros_are_equal():
    assert top_k(scores_of([[-0.0, 0.0, -0.0]]), 2)[0].tolist() == [[0, 1]]


def test_seen_items_are_left_out_and_the_rest_is_padded():
    scores = scores_of([[4, 3, 2], [1, 2, 3], [1, 2, 3]])
    kept = scores.copy()
    indices, values = top_k(scores, 2, histories_from_lists([[0], [0, 2], [2, 1, 0]]))
    assert indices.tolist() == [[1, 2], [1, -1], [-1, -1]]
    assert values.tolist() == [[3, 2], [2, -INF], [-INF, -INF]]
    assert (scores == kept).all(), "the caller's scores were changed"


def test_infinite_scores():
    indices, values = top_k(scores_of([[0, INF, -INF]]), 3)
    assert indices.tolist() == [[1, 0, -1]]
    assert values.tolist() == [[INF, 0, -INF]]


@given(
    arrays(np.float32, (4, 9), elements=st.floats(-3, 3, width=16) | st.sampled_from([-INF, INF, -0.0, 0.0])),
    st.integers(1, 9),
    st.lists(st.lists(st.integers(0, 8), max_size=9, unique=True), min_size=4, max_size=4),
)
def test_equals_the_definition(scores, k, seen):
    indices, values = top_k(scores, k, histories_from_lists(seen))
    assert (indices.tolist(), values.tolist()) == plain_top_k(scores, k, seen)


@given(arrays(np.float32, (3, 7), elements=st.floats(width=32, allow_nan=False)))
def test_any_finite_score_comes_back_as_it_was(scores):
    indices, values = top_k(scores, 7)
    there = indices >= 0
    assert (np.take_along_axis(scores, np.maximum(indices, 0), axis=1)[there] == values[there]).all()


def test_many_ties_in_a_big_catalogue_equal_a_stable_sort():
    scores = np.random.default_rng(0).integers(0, 50, size=(20, 3000)).astype(np.float32)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    assert (top_k(scores, 100)[0] == expected).all()


def test_blocks_change_nothing(monkeypatch):
    scores = np.random.default_rng(1).integers(0, 9, size=(11, 30)).astype(np.float32)
    seen = histories_from_lists([[row, row + 1] for row in range(11)])
    whole = top_k(scores, 5, seen)
    monkeypatch.setattr(evaluator, "KEYS_PER_BLOCK", 70)  # two rows at a time
    parts = top_k(scores, 5, seen)
    assert (whole[0] == parts[0]).all() and (whole[1] == parts[1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors(dtype):
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0]], dtype=dtype, requires_grad=True)
    indices, values = top_k(scores, 3)
    assert indices.tolist() == [[1, 2, 3]]
    assert values.tolist() == [[3, 3, 2]]


def test_half_precision_array():
    assert top_k(np.array([[1, 2]], dtype=np.float16), 1)[0].tolist() == [[1]]


def test_no_rows():
    assert top_k(np.zeros((0, 4), dtype=np.float32), 2)[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("scores", "k", "seen", "message"),
    [
        (np.zeros((1, 3)), 1, None, "scores must be of 32 or 16 bits, got float64"),
        (np.zeros((1, 3), dtype=np.int64), 1, None, "scores must be of 32 or 16 bits, got int64"),
        (np.zeros(3, dtype=np.float32), 1, None, r"scores must be \(batch, items\), got shape \(3,\)"),
        (scores_of([[0, 1], [np.nan, 0]]), 1, None, "scores hold NaN, first in row 1"),
        (scores_of([[0, 1]]), 0, None, "k must be at least 1, got 0"),
        (scores_of([[0, 1]]), 3, None, "k is 3, but there are 2 items"),
        (scores_of([[0, 1]]), 1, [[0], [1]], "seen has 2 histories for 1 rows"),
        (scores_of([[0, 1]]), 1, [[2]], "seen has item indices from 2 to 2, allowed are 0 to 1"),
    ],
)
def test_refuses(scores, k, seen, message):
    with pytest.raises(ValueError, match=message):
        top_k(scores, k, None if seen is None else histories_from_lists(seen))
