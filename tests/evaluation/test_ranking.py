"""The metric arithmetic: values by hand, properties, and equality with scikit-learn and torchmetrics."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall

from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

PER_USER = [ranking.recall_at_k, ranking.ndcg_at_k, ranking.hit_rate_at_k, ranking.mrr_at_k]


def measure(metric, ranked, truth_lists, k):
    truth = histories_from_lists(truth_lists)
    return metric(ranking.hits(np.asarray(ranked), truth), ranking.truth_sizes(truth), k)


@st.composite
def worlds(draw):
    """Return a catalogue, a full ranking of it for each user, and one to all true items for each user."""
    num_items = draw(st.integers(1, 12))
    users = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranked = np.stack([rng.permutation(num_items) for _ in range(users)])
    truth = [rng.choice(num_items, rng.integers(1, num_items + 1), replace=False).tolist() for _ in range(users)]
    return ranked, truth


# By hand


def test_hits_marks_true_items_and_never_padding():
    ranked = np.array([[4, 2, 7], [1, -1, -1], [0, 2, 4]])
    marks = ranking.hits(ranked, histories_from_lists([[7, 4], [], [2]]))
    assert marks.tolist() == [[True, False, True], [False, False, False], [False, True, False]]


def test_hits_without_any_truth():
    assert not ranking.hits(np.array([[0, 1]]), histories_from_lists([[]])).any()


def test_hits_of_no_users():
    assert ranking.hits(np.zeros((0, 3), dtype=np.int64), histories_from_lists([])).shape == (0, 3)


@pytest.mark.parametrize(
    ("metric", "k", "expected"),
    [
        # Ranks of the hits: 1 and 3 of four true items.
        (ranking.recall_at_k, 1, 1 / 1),
        (ranking.recall_at_k, 2, 1 / 2),
        (ranking.recall_at_k, 3, 2 / 3),
        (ranking.recall_at_k, 5, 2 / 4),
        (ranking.ndcg_at_k, 1, 1.0),
        (ranking.ndcg_at_k, 3, (1 + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2)),
        (ranking.ndcg_at_k, 5, (1 + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(5))),
        (ranking.hit_rate_at_k, 1, 1.0),
        (ranking.mrr_at_k, 5, 1.0),
    ],
)
def test_values_by_hand(metric, k, expected):
    assert measure(metric, [[9, 1, 8, 2, 3]], [[8, 9, 20, 21]], k) == pytest.approx([expected], abs=1e-15)


def test_first_hit_behind_k_counts_as_none():
    ranked, truth = [[0, 1, 2, 3]], [[3]]
    assert measure(ranking.mrr_at_k, ranked, truth, 4).tolist() == [0.25]
    for metric in PER_USER:
        assert measure(metric, ranked, truth, 3).tolist() == [0.0]


def test_short_list_counts_its_padding_as_misses():
    assert measure(ranking.recall_at_k, [[5, -1, -1]], [[5, 6]], 3).tolist() == [0.5]


def test_coverage_by_hand():
    ranked = np.array([[0, 1, 2], [1, 0, 3], [4, -1, -1]])
    assert ranking.coverage_at_k(ranked, num_items=10, k=1) == 0.3
    assert ranking.coverage_at_k(ranked, num_items=10, k=3) == 0.5
    assert ranking.items_shown(ranked, num_items=5, k=2).tolist() == [True, True, False, False, True]


# Users without true items


@pytest.mark.parametrize("metric", PER_USER)
def test_empty_truth_is_nan(metric):
    values = measure(metric, [[0, 1], [0, 1]], [[], [0]], 2)
    assert np.isnan(values).tolist() == [True, False]


def test_mean_leaves_out_and_counts_users_without_truth():
    with pytest.warns(UserWarning, match="2 of 4 users have no true item"):
        assert ranking.mean_over_users(np.array([np.nan, 1.0, np.nan, 0.5])) == 0.75


def test_mean_of_complete_values_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ranking.mean_over_users(np.array([1.0, 0.0])) == 0.5


def test_mean_of_nobody_is_nan():
    with pytest.warns(UserWarning, match="1 of 1 users"):
        assert math.isnan(ranking.mean_over_users(np.array([np.nan])))


# Properties


@given(worlds(), st.data())
def test_values_lie_between_0_and_1(world, data):
    ranked, truth = world
    k = data.draw(st.integers(1, ranked.shape[1]))
    for metric in PER_USER:
        values = measure(metric, ranked, truth, k)
        assert ((values >= 0) & (values <= 1)).all()
    assert 0 <= ranking.coverage_at_k(ranked, ranked.shape[1], k) <= 1


@given(worlds(), st.data())
def test_perfect_ranking_gives_exactly_1(world, data):
    ranked, truth = world
    perfect = [items + [item for item in row if item not in items] for row, items in zip(ranked, truth, strict=True)]
    k = data.draw(st.integers(1, ranked.shape[1]))
    for metric in PER_USER:
        assert (measure(metric, perfect, truth, k) == 1).all()


@given(worlds())
def test_whole_catalogue_finds_everything(world):
    ranked, truth = world
    assert (measure(ranking.recall_at_k, ranked, truth, ranked.shape[1]) == 1).all()
    assert ranking.coverage_at_k(ranked, ranked.shape[1], ranked.shape[1]) == 1


@given(worlds())
def test_more_places_never_hurt(world):
    ranked, truth = world
    largest = max(len(items) for items in truth)
    for metric, first in ((ranking.recall_at_k, largest), (ranking.hit_rate_at_k, 1), (ranking.mrr_at_k, 1)):
        curves = np.stack([measure(metric, ranked, truth, k) for k in range(first, ranked.shape[1] + 1)])
        assert (np.diff(curves, axis=0) >= 0).all()


@given(worlds(), st.randoms(use_true_random=False))
def test_order_of_users_does_not_matter(world, random):
    ranked, truth = world
    order = list(range(len(truth)))
    random.shuffle(order)
    k = ranked.shape[1]
    for metric in PER_USER:
        values = measure(metric, ranked, truth, k)
        shuffled = measure(metric, ranked[order], [truth[user] for user in order], k)
        assert shuffled.tolist() == values[order].tolist()


@given(worlds())
def test_hits_equal_plain_membership(world):
    ranked, truth = world
    expected = [[item in items for item in row] for row, items in zip(ranked.tolist(), truth, strict=True)]
    assert ranking.hits(ranked, histories_from_lists(truth)).tolist() == expected


# Second libraries


def relevance_and_scores(ranked, truth):
    """(users, items) binary relevance, and scores of which `ranked` is the order."""
    relevance = np.zeros(ranked.shape, dtype=np.int64)
    for user, items in enumerate(truth):
        relevance[user, items] = 1
    scores = np.empty(ranked.shape)
    np.put_along_axis(scores, ranked, np.arange(ranked.shape[1], 0, -1.0)[None, :], axis=1)
    return relevance, scores


@settings(max_examples=30, deadline=None)
@given(worlds(), st.data())
def test_ndcg_equals_scikit_learn(world, data):
    ranked, truth = world
    if ranked.shape[1] == 1:
        return  # scikit-learn refuses a single item
    k = data.draw(st.integers(1, ranked.shape[1]))
    relevance, scores = relevance_and_scores(ranked, truth)
    ours = measure(ranking.ndcg_at_k, ranked, truth, k)
    assert ours.mean() == pytest.approx(ndcg_score(relevance, scores, k=k), abs=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ranking.recall_at_k, RetrievalRecall),
        (ranking.ndcg_at_k, RetrievalNormalizedDCG),
        (ranking.hit_rate_at_k, RetrievalHitRate),
        (ranking.mrr_at_k, RetrievalMRR),
    ],
)
@pytest.mark.parametrize("k", [5, 10, 40])
def test_equals_torchmetrics(ours, theirs, k):
    rng = np.random.default_rng(k)
    ranked = np.stack([rng.permutation(40) for _ in range(25)])
    truth = [rng.choice(40, rng.integers(1, 6), replace=False).tolist() for _ in range(25)]  # never more than k
    relevance, scores = relevance_and_scores(ranked, truth)
    users = np.repeat(np.arange(25), 40)
    expected = theirs(top_k=k)(
        torch.from_numpy(scores).float().flatten(), torch.from_numpy(relevance).flatten(), torch.from_numpy(users)
    )
    assert measure(ours, ranked, truth, k).mean() == pytest.approx(expected.item(), abs=1e-6)


# Bad input


@pytest.mark.parametrize("metric", PER_USER)
def test_k_must_be_positive(metric):
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        measure(metric, [[0, 1]], [[0]], 0)


@pytest.mark.parametrize("metric", PER_USER)
def test_k_must_not_pass_the_ranked_items(metric):
    with pytest.raises(ValueError, match="k is 3, but only 2 items are ranked"):
        measure(metric, [[0, 1]], [[0]], 3)


def test_coverage_checks_k_and_indices():
    with pytest.raises(ValueError, match="k must be at least 1"):
        ranking.coverage_at_k(np.array([[0]]), num_items=3, k=0)
    with pytest.raises(ValueError, match="ranked names item 3, but num_items is 3"):
        ranking.coverage_at_k(np.array([[3]]), num_items=3, k=1)


@pytest.mark.parametrize(
    ("ranked", "truth", "message"),
    [
        (np.array([[0], [1]]), [[0]], "ranked has 2 users and truth has 1"),
        (np.array([0, 1]), [[0]], r"ranked must be a \(users, K\) integer array, got shape \(2,\)"),
        (np.array([[0.0]]), [[0]], "integer array, got shape .* of float64"),
        (np.array([[-2]]), [[0]], "or -1 for padding, got -2"),
        (np.array([[-1, 3]]), [[0]], "an item after padding"),
        (np.array([[3, 3]]), [[0]], "ranked recommends an item twice"),
        (np.array([[3, 4]]), [[5, 5]], "truth.items names an item twice"),
        (np.array([[3, 4]]), [[-1]], "truth.items must be item indices >= 0, got -1"),
    ],
)
def test_hits_refuses(ranked, truth, message):
    with pytest.raises(ValueError, match=message):
        ranking.hits(ranked, histories_from_lists(truth))


def test_marks_and_sizes_must_fit():
    with pytest.raises(ValueError, match="hit must be .* boolean array"):
        ranking.recall_at_k(np.array([[1, 0]]), np.array([1]), 1)
    with pytest.raises(ValueError, match="sizes must have one number per user"):
        ranking.recall_at_k(np.array([[True, False]]), np.array([1, 2]), 1)
