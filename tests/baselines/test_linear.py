"""Item-kNN and EASE against second implementations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_cllm4rec.baselines.ease import EASERecommender, memory_gib
from modeling_cllm4rec.baselines.itemknn import ItemKNNRecommender
from modeling_cllm4rec.baselines.popularity import PopularityRecommender
from modeling_cllm4rec.corpora.interaction_matrix import interaction_matrix
from modeling_cllm4rec.evaluation.ranking import histories_from_lists


class Splits:
    """What `fit` reads of a data folder."""

    def __init__(self, train, num_items, validation=None):
        self.num_items = num_items
        self.lists = {"train": train, "validation": validation or [[] for _ in train]}

    def histories(self, *splits):
        users = zip(*(self.lists[name] for name in splits), strict=True)
        return histories_from_lists([[item for part in parts for item in part] for parts in users])


logs = st.integers(3, 8).flatmap(
    lambda items: st.tuples(
        st.just(items), st.lists(st.lists(st.integers(0, items - 1), unique=True, max_size=items), min_size=1, max_size=12)
    )
)


def dense(lists, num_items):
    matrix = np.zeros((len(lists), num_items))
    for row, items in enumerate(lists):
        matrix[row, items] = 1
    return matrix


def test_itemknn_by_hand():
    data = Splits([[0, 1], [0, 1], [0, 2]], num_items=4)  # items 0, 1, 2 have 3, 2, 1 users
    scores = ItemKNNRecommender.fit(data, shrink=1.0).score_histories(None, histories_from_lists([[0], [1, 2], []]))
    first, second = 2 / (6**0.5 + 1), 1 / (3**0.5 + 1)
    assert scores.dtype == np.float32
    assert scores == pytest.approx(np.array([[0, first, second, 0], [first + second, 0, 0, 0], [0, 0, 0, 0]]))


@settings(max_examples=40)
@given(logs, st.sampled_from([0.0, 3.0]), st.sampled_from([None, 1, 2]))
def test_itemknn_equals_a_plain_loop(log, shrink, neighbours):
    num_items, lists = log
    matrix = dense(lists, num_items)
    expected = np.zeros((num_items, num_items))
    for target in range(num_items):
        similar = []
        for other in range(num_items):
            shared = matrix[:, target] @ matrix[:, other]
            if other != target and shared:
                both = np.sqrt(matrix[:, target].sum() * matrix[:, other].sum())
                similar.append((-shared / (both + shrink), other))
        for value, other in sorted(similar)[:neighbours]:
            expected[other, target] = -value
    fitted = ItemKNNRecommender.fit(Splits(lists, num_items), shrink=shrink, neighbours=neighbours)
    assert fitted.similarities.toarray() == pytest.approx(expected, abs=1e-6)
    assert fitted.score_histories(None, histories_from_lists(lists)) == pytest.approx(matrix @ expected, abs=1e-5)


@settings(max_examples=40)
@given(logs, st.sampled_from([0.5, 10.0]), st.sampled_from(["float64", "float32"]))
def test_ease_equals_a_ridge_regression_for_each_item(log, regularization, precision):
    """Each column of the weights predicts one item from all others, itself left out."""
    num_items, lists = log
    matrix = dense(lists, num_items)
    expected = np.zeros((num_items, num_items))
    for target in range(num_items):
        others = np.arange(num_items) != target
        inputs = matrix[:, others]
        gram = inputs.T @ inputs + regularization * np.eye(num_items - 1)
        expected[others, target] = np.linalg.solve(gram, inputs.T @ matrix[:, target])
    fitted = EASERecommender.fit(Splits(lists, num_items), regularization=regularization, precision=precision)
    assert fitted.weights.dtype == np.float32
    assert fitted.weights == pytest.approx(expected, abs=1e-4)
    assert (np.diag(fitted.weights) == 0).all()


def test_a_big_inverse_is_put_together_from_blocks(monkeypatch):
    lists = [np.random.default_rng(user).choice(23, 6, replace=False).tolist() for user in range(40)]
    whole = EASERecommender.fit(Splits(lists, 23)).weights
    monkeypatch.setattr("modeling_cllm4rec.baselines.ease.BLOCK", 5)
    assert EASERecommender.fit(Splits(lists, 23)).weights == pytest.approx(whole)


def test_recency_weighs_late_items_more():
    weights = np.diag([1.0, 1.0, 1.0]).astype(np.float32)
    scores = EASERecommender(weights, recency=0.5).score_histories(None, histories_from_lists([[2, 0, 1], [], [1]]))
    assert scores == pytest.approx(np.array([[2**-0.5, 1, 3**-0.5], [0, 0, 0], [0, 1, 0]]))


@pytest.mark.parametrize("fit", [PopularityRecommender.fit, ItemKNNRecommender.fit, EASERecommender.fit])
def test_fit_on_chooses_the_splits(fit):
    data = Splits([[0, 1], [1]], num_items=3, validation=[[2], [0]])
    together = Splits([[0, 1, 2], [1, 0]], num_items=3)
    question = histories_from_lists([[1]])
    assert (fit(data).score_histories(None, question) == fit(Splits([[0, 1], [1]], 3)).score_histories(None, question)).all()
    both = fit(data, fit_on="train+validation").score_histories(None, question)
    assert (both == fit(together).score_histories(None, question)).all()
    with pytest.raises(ValueError, match="fit_on is 'test'; allowed are 'train' and 'train\\+validation'"):
        fit(data, fit_on="test")


def test_ease_refuses_catalogues_beyond_its_memory():
    data = Splits([[0]], num_items=20_000)
    with pytest.raises(MemoryError, match=r"20000 items needs 4.5 GiB .* max_memory_gib is 4.0; .*float32' \(1.5 GiB\)"):
        EASERecommender.fit(data, max_memory_gib=4.0)
    with pytest.raises(MemoryError, match="raise max_memory_gib to 1 if"):
        EASERecommender.fit(data, max_memory_gib=1.0, precision="float32")
    assert memory_gib(1024, "float32") == 1 / 256


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"regularization": 0.0}, "regularization is 0.0; it must be above 0"),
        ({"regularization": float("nan")}, "regularization is nan"),
        ({"recency": -1.0}, "recency is -1.0"),
        ({"precision": "float16"}, "precision is 'float16'; allowed are 'float64' and 'float32'"),
        ({"regularization": 1e-30}, "regularization is too small"),
    ],
)
def test_ease_refuses(setting, message):
    with pytest.raises(ValueError, match=message):
        EASERecommender.fit(Splits([[0, 1]] * 4, num_items=2), **setting)


def test_itemknn_refuses():
    with pytest.raises(ValueError, match="shrink is -1"):
        ItemKNNRecommender.fit(Splits([[0]], 1), shrink=-1)
    with pytest.raises(ValueError, match="neighbours is 0; it must be 1 or more, or None"):
        ItemKNNRecommender.fit(Splits([[0]], 1), neighbours=0)


def test_histories_of_another_catalogue():
    with pytest.raises(ValueError, match="item indices from 0 to 7, but the baseline was fitted on items 0 to 2"):
        interaction_matrix(histories_from_lists([[0], [7]]), 3)
