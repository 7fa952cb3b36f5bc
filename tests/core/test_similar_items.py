"""Similar items: hand-computed cosines, both systems against a plain loop, pieces, and bad questions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from lcrec_models import new_lcrec

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.core import similar_items as module
from modeling_cllm4rec.core.catalogue import Catalogue
from modeling_cllm4rec.core.questions import QuestionError
from modeling_cllm4rec.core.similar_items import most_similar

VECTORS = np.array([[1, 0], [2, 2], [0, 0], [0, 3], [-1, 0], [3, 0]], dtype=np.float32)


class Vectors:
    """A model that has vectors only."""

    num_items = len(VECTORS)

    def item_vectors(self, items: np.ndarray) -> np.ndarray:
        return VECTORS[items]


@pytest.fixture(scope="module", params=["cllm4rec", "lcrec"])
def model(request, tiny_backbones):
    if request.param == "lcrec":
        return new_lcrec(tiny_backbones["gpt2"])[0]
    catalogue = Catalogue(pa.table({"item_id": ["a", "b", "c", "d", "e"]}))
    return CLLM4RecForRecommendation.from_backbone(
        tiny_backbones["gpt2"], num_users=2, catalogue=catalogue, initializer_range=0.5
    )


def test_cosines_by_hand():
    items, scores = most_similar(Vectors(), np.array([0, 3]), k=5)
    assert items.tolist() == [[5, 1, 2, 3, 4], [1, 0, 2, 4, 5]]  # ties by item index
    root = 0.5**0.5
    np.testing.assert_allclose(scores, [[1, root, 0, 0, -1], [root, 0, 0, 0, 0]], atol=1e-6)


def test_an_item_is_not_similar_to_itself_and_fewer_than_k_may_be_left():
    items, _ = most_similar(Vectors(), np.array([0]), k=2, candidates=np.array([0, 4]))
    assert items.tolist() == [[4, -1]]


def test_pieces_change_nothing(monkeypatch):
    whole = most_similar(Vectors(), np.arange(6), k=6)
    monkeypatch.setattr(module, "VECTORS_AT_ONCE", 2)
    for found, expected in zip(most_similar(Vectors(), np.arange(6), k=6), whole, strict=True):
        assert found.tolist() == expected.tolist()


def test_a_model_answers_as_a_plain_loop_does(model):
    ids = model.catalogue.ids.array.to_pylist()
    vectors = model.item_vectors(np.arange(len(ids))).astype(np.float64)
    for target in (0, 3):
        cosine = [float(vectors[target] @ one / np.linalg.norm(vectors[target]) / np.linalg.norm(one)) for one in vectors]
        expected = sorted((item for item in range(len(ids)) if item != target), key=lambda item: -cosine[item])[:3]
        rows = model.similar_items([ids[target]], k=3).to_pylist()
        assert [row["item"] for row in rows] == [ids[item] for item in expected]
        assert [row["score"] for row in rows] == pytest.approx([cosine[item] for item in expected], abs=1e-5)
        assert [(row["target_item"], row["rank"]) for row in rows] == [(ids[target], rank) for rank in (1, 2, 3)]


def test_batches_and_the_order_of_the_question_change_nothing(model):
    ids = model.catalogue.ids.array.to_pylist()
    together = model.similar_items(ids[::-1], k=2)
    pieces = model.similar_items(ids[::-1], k=2, batch_size=2)
    assert pieces.table.drop_columns("score").equals(together.table.drop_columns("score"))
    for item in ids:
        assert model.similar_items([item], k=2).items(item) == together.items(item)
    assert repr(together).startswith(f"SimilarItems({2 * len(ids)} rows)")


def test_unknown_items_are_left_out_when_asked(model):
    first, second = model.catalogue.ids.ids_of([0, 1])
    found = model.similar_items(["nothing", first], k=1, candidates=[second, "nothing"], on_unknown="skip")
    assert found.items(first) == [second] and len(found) == 1
    assert len(model.similar_items(["nothing"], k=1, on_unknown="skip")) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"items": "a"}, r"items is 'a'; allowed: a list of ids; put it in \[ \]"),
        ({"items": None}, "items is None; allowed: a list of ids"),
        ({"items": ["zzz"]}, r"items is \['zzz'\]; allowed: the \d+ item_ids that the model knows"),
        ({"items": [7]}, r"items is \[7\]; allowed: strings"),
        ({"items": [], "k": 0}, "k is 0; allowed: a whole number from 1 to"),
        ({"items": [], "k": 10**6}, "k is 1000000; allowed: a whole number from 1 to"),
        ({"items": [], "candidates": []}, "candidates is .*; allowed: at least one known item id"),
        ({"items": [], "on_unknown": "drop"}, "on_unknown is 'drop'; allowed: 'raise' and 'skip'"),
        ({"items": [], "k": 1, "batch_size": 0}, "batch_size is 0; allowed: a whole number of 1 or more"),
    ],
)
def test_a_bad_question_gets_the_reason(model, arguments, words):
    with pytest.raises(QuestionError, match=words):
        model.similar_items(**arguments)
