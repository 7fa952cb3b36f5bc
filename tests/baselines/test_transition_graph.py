"""The graph of transitions."""

import dataclasses

import numpy as np
import pytest

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.transition_graph import TransitionGraphRecommender, transition_graph
from modeling_cllm4rec.corpora.history_order import UnorderedHistoriesWarning
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

unordered = pytest.mark.filterwarnings("ignore::modeling_cllm4rec.corpora.history_order.UnorderedHistoriesWarning")


def dense_graph(histories, num_items, max_gap, backward):
    """Count with loops."""
    counts = np.zeros((num_items, num_items))
    for history in histories:
        for first, item in enumerate(history):
            for gap, other in enumerate(history[first + 1 : first + 1 + max_gap], start=1):
                counts[item, other] += 1 / gap
                counts[other, item] += backward / gap
    sums = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)


def test_by_hand():
    graph = transition_graph(histories_from_lists([[0, 1, 2], [1, 2], []]), 4, max_gap=2, backward=0.5)
    # 0: 1 to item 1, 1/2 to item 2; 1: 2 to item 2, 1/2 back to item 0; 2: 1 back to item 1, 1/4 back to item 0.
    wanted = [[0, 2 / 3, 1 / 3, 0], [0.2, 0, 0.8, 0], [0.2, 0.8, 0, 0], [0] * 4]
    assert graph.toarray() == pytest.approx(np.array(wanted))


@pytest.mark.parametrize("backward", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("max_gap", [1, 3, 50])
def test_equals_loops(max_gap, backward):
    generator = np.random.default_rng(max_gap)
    histories = [generator.permutation(12)[: generator.integers(0, 9)].tolist() for _ in range(15)]
    graph = transition_graph(histories_from_lists(histories), 12, max_gap, backward)
    assert graph.dtype == np.float32
    assert graph.toarray() == pytest.approx(dense_graph(histories, 12, max_gap, backward), abs=1e-6)


@unordered
@pytest.mark.parametrize("recency", [0.0, 1.0])
def test_scores_equal_dense_products(data, recency):
    train = data.histories("train")
    rows = [train.items[start:end].tolist() for start, end in zip(train.indptr, train.indptr[1:], strict=False)]
    graph = dense_graph(rows, data.num_items, 1, 0.5)
    weights = np.zeros((len(rows), data.num_items))
    for user, row in enumerate(rows):
        for steps_back, item in enumerate(row[::-1]):
            weights[user, item] = (1 + steps_back) ** -recency
    one = fit_baseline("transition-graph", data, max_gap=1, recency=recency).score_histories(None, train)
    two = fit_baseline("two-hop-graph", data, recency=recency).score_histories(None, train)
    assert one == pytest.approx(weights @ graph, abs=1e-5)
    assert two == pytest.approx(weights @ graph @ graph, abs=1e-5)


@unordered
def test_validation_is_fitted_if_asked_for(data):
    more = fit_baseline("transition-graph", data, fit_on="train+validation")
    assert more.transitions.nnz > fit_baseline("transition-graph", data).transitions.nnz


def test_order_that_means_nothing_is_reported(data):
    with pytest.warns(UnorderedHistoriesWarning, match="the transition graph reads it; choose itemknn"):
        fit_baseline("transition-graph", data)


def test_an_order_that_means_something_is_not(data, recwarn):
    ordered = dataclasses.replace(data, info={**data.info, "protocol": {**data.info["protocol"], "split": "leave-one-out"}})
    fit_baseline("transition-graph", ordered)
    assert not recwarn.list


@unordered
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_gap": 0}, "max_gap is 0; it must be 1 or more"),
        ({"backward": -0.5}, r"backward is -0.5; it must be 0 \(forward only\) or more"),
        ({"recency": -1.0}, "recency is -1.0; it must be 0"),
        ({"fit_on": "test"}, "fit_on is 'test'; allowed are"),
        ({"hops": 2}, "'transition-graph' fixes hops=1"),
    ],
)
def test_refuses(data, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_baseline("transition-graph", data, **settings)


def test_refuses_three_hops(data):
    with pytest.raises(ValueError, match="hops is 3; allowed are 1 and 2"):
        TransitionGraphRecommender.fit(data, hops=3)
