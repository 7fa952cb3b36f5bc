"""Nearest neighbours by text."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.textknn import TextKNNRecommender, nearest_neighbours
from modeling_cllm4rec.corpora.history_order import UnorderedHistoriesWarning
from modeling_cllm4rec.corpora.text_vectors import text_vectors, unit_rows
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

HALF = 2**-0.5
VECTORS = np.array([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0], [0.0, 0.0]])


def dense_scores(vectors, histories, neighbours, recency, max_history):
    """Score with loops and dense matrices."""
    num_items = len(vectors)
    unit = unit_rows(vectors).astype(np.float64)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    for row in cosines:
        order = sorted(range(num_items), key=lambda item: (-row[item], item))
        row[order[neighbours:]] = 0
    cosines[cosines < 0] = 0
    scores = np.zeros((len(histories), num_items))
    for user, history in enumerate(histories):
        for steps_back, item in enumerate(history[::-1][:max_history]):
            scores[user] += (1 + steps_back) ** -recency * cosines[item]
    return scores


@pytest.mark.parametrize("neighbours", [None, 3])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
def test_cosines_by_hand(kind, neighbours):
    scores = TextKNNRecommender(kind(VECTORS), neighbours).score_histories(None, histories_from_lists([[0, 1], [2], [3], []]))
    assert scores.dtype == np.float32
    assert scores == pytest.approx(np.array([[0, 0, 2 * HALF, 0], [HALF, HALF, 0, 0], [0] * 4, [0] * 4]), abs=1e-6)


def test_recency_and_last_item_by_hand():
    histories = histories_from_lists([[0, 1]])
    late = TextKNNRecommender(VECTORS, recency=1.0).score_histories(None, histories)
    assert late == pytest.approx(np.array([[0, 0, 1.5 * HALF, 0]]), abs=1e-6)
    last = TextKNNRecommender(VECTORS, max_history=1).score_histories(None, histories)
    assert last == pytest.approx(np.array([[0, 0, HALF, 0]]), abs=1e-6)


@pytest.mark.parametrize(("neighbours", "recency", "max_history"), [(1, 0.0, None), (4, 0.5, None), (30, 1.0, 2), (7, 0.0, 1)])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
def test_equals_dense_loops(kind, neighbours, recency, max_history):
    generator = np.random.default_rng(0)
    vectors = generator.integers(0, 3, (30, 5)).astype(float) * generator.integers(0, 2, (30, 1))  # ties, and rows of zeros
    histories = [generator.permutation(30)[: generator.integers(0, 6)].tolist() for _ in range(20)]
    recommender = TextKNNRecommender(kind(vectors), neighbours, recency, max_history)
    wanted = dense_scores(vectors, histories, neighbours, recency, max_history)
    assert recommender.score_histories(None, histories_from_lists(histories)) == pytest.approx(wanted, abs=1e-5)
    if neighbours == 30:
        unpruned = TextKNNRecommender(kind(vectors), None, recency, max_history)
        assert unpruned.score_histories(None, histories_from_lists(histories)) == pytest.approx(wanted, abs=1e-5)


def test_neighbours_over_blocks(monkeypatch):
    vectors = unit_rows(np.random.default_rng(1).random((23, 4)))
    whole = nearest_neighbours(vectors, 5).toarray()
    monkeypatch.setattr("modeling_cllm4rec.baselines.textknn.BLOCK", 4)
    assert nearest_neighbours(vectors, 5).toarray() == pytest.approx(whole, abs=1e-6)
    assert ((whole > 0).sum(axis=1) == 5).all()


def test_any_encoder(data, tiny_backbones):
    encoder = str(tiny_backbones["llama"])
    recommender = fit_baseline("textknn", data, encoder=encoder, fields=["title"], neighbours=None, progress=False)
    scores = recommender.score_histories(None, histories_from_lists([[item] for item in range(data.num_items)]))
    vectors = text_vectors(data, encoder=encoder, fields=["title"], progress=False)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, 0)
    assert scores == pytest.approx(cosines, abs=1e-5)


def test_items_without_text_score_nothing(data):
    written = [f"{colour} {thing}" for colour in ("red", "blue", "green", "white") for thing in ("lamp", "pot", "chair", "desk")]
    texts = ["", None, "...", *(written * data.num_items)[: data.num_items - 3]]
    fewer = dataclasses.replace(data, items=pa.table({"item_id": data.items["item_id"], "title": texts}))
    recommender = fit_baseline("textknn", fewer)
    scores = recommender.score_histories(None, histories_from_lists([[0, 1], [3]]))
    assert (scores[0] == 0).all() and (scores[1, :3] == 0).all() and (scores[1] > 0).any()


def test_training_reviews_are_texts(data):
    recommender = fit_baseline("textknn", data, fields=["review"])
    assert recommender.similarities.nnz
    without = dataclasses.replace(data, items=data.items.select(["item_id"]))
    default = fit_baseline("textknn", without)
    assert (default.similarities != recommender.similarities).nnz == 0


def test_order_that_means_nothing_is_reported(data):
    with pytest.warns(UnorderedHistoriesWarning, match=r"means nothing in .*: text-kNN reads it with max_history=1"):
        fit_baseline("textknn-last", data)
    with pytest.warns(UnorderedHistoriesWarning, match="text-kNN reads it with recency=0.5; leave that out"):
        fit_baseline("textknn", data, recency=0.5)


def test_recency_is_that_of_the_data(data, recwarn):
    assert fit_baseline("textknn", data).recency == 0
    ordered = dataclasses.replace(data, info={**data.info, "protocol": {**data.info["protocol"], "split": "leave-one-out"}})
    assert fit_baseline("textknn", ordered).recency == 1
    assert fit_baseline("textknn", ordered, recency=0.0).recency == 0
    assert not recwarn.list


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbours": 0}, "neighbours is 0; it must be 1 or more, or None for all"),
        ({"max_history": 0}, "max_history is 0; it must be 1 or more, or None for all"),
        ({"recency": -1.0}, "recency is -1.0; it must be 0"),
        ({"fields": ["colour"]}, "the items have no column 'colour'"),
        ({"max_text_tokens": 5}, "max_text_tokens has no effect on the encoder 'tfidf'"),
        ({"pooling": "together"}, "pooling has no effect on the encoder 'tfidf'"),
    ],
)
@pytest.mark.filterwarnings("ignore::modeling_cllm4rec.corpora.history_order.UnorderedHistoriesWarning")
def test_refuses(data, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_baseline("textknn", data, **settings)


def test_refuses_no_vectors():
    with pytest.raises(ValueError, match=r"vectors must be a non-empty \(items, dimensions\) array, got shape \(0, 3\)"):
        TextKNNRecommender(np.zeros((0, 3)))
