"""What the page asks and gets, without a browser: lists with reasons, and a sentence for each question that has no answer."""

import re

import numpy as np
import pytest
import torch

from modeling_cllm4rec.app import reasons
from modeling_cllm4rec.app.answers import Question, ShownModel, ShownModels, user_index
from modeling_cllm4rec.app.reasons import near_in_history, score_in_words, score_meaning
from modeling_cllm4rec.baselines.hybrid import linear_part
from modeling_cllm4rec.cllm4rec.content_writer import content_writer
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.core.linear_parts import LinearParts
from modeling_cllm4rec.corpora.interaction_matrix import ItemWeights
from tests.helpers.lcrec_models import ITEMS, new_lcrec

HISTORY = ("B0", "B3")


def test_a_list_is_that_of_the_model(models, cllm4rec, lcrec):
    for one in (cllm4rec, lcrec):
        answer = models.answer(one, Question(HISTORY, k=5))
        expected = one.model.recommend(histories=[list(HISTORY)], k=5).to_pylist()
        assert [(row.item, row.rank, row.score) for row in answer.rows] == [
            (row["item"], row["rank"], row["score"]) for row in expected
        ]
        assert not {row.item for row in answer.rows} & set(HISTORY)
        assert answer.milliseconds > 0
        assert answer.message == ""


def test_titles_and_ids_where_there_is_none(models):
    assert models.titles(["B0", "🎸"]) == ["Lavender soap 0", "🎸"]
    assert models.title("B12") == "Crème brûlée"


def test_a_known_user_is_read(models, cllm4rec):
    answer = models.answer(cllm4rec, Question(HISTORY, user="ann", k=5))
    expected = cllm4rec.model.recommend(users=["ann"], histories=[list(HISTORY)], k=5).to_pylist()
    assert [row.score for row in answer.rows] == [row["score"] for row in expected]
    assert models.answer(cllm4rec, Question((), user="ann", k=3)).rows
    stranger = models.answer(cllm4rec, Question(HISTORY, user="bob", k=3))
    assert "does not know the user “bob”" in stranger.message
    assert stranger.rows == models.answer(cllm4rec, Question(HISTORY, k=3)).rows


def test_seen_items_candidates_and_beams(models, cllm4rec, lcrec):
    for one in (cllm4rec, lcrec):
        answer = models.answer(one, Question(HISTORY, k=2, exclude_seen=False, candidates=HISTORY))
        assert {row.item for row in answer.rows} == set(HISTORY)
        with pytest.warns(UserWarning, match="no item is left"):
            seen = models.answer(one, Question(HISTORY, k=2, candidates=HISTORY))
        assert seen.rows == () and seen.message.startswith("No item is left to recommend")
    wide = models.answer(lcrec, Question(HISTORY, k=12, num_beams=15))
    assert len(wide.rows) == 12


def test_queries(models, cllm4rec, lcrec):
    asked = Question(HISTORY, query="lavender", k=3)
    expected = lcrec.model.search(["lavender"], 3, histories=[list(HISTORY)]).to_pylist()
    assert [row.item for row in models.answer(lcrec, asked).rows] == [row["item"] for row in expected]
    assert models.answer(lcrec, asked).message == ""
    assert "reads no queries" in models.answer(cllm4rec, asked).message
    assert len(models.answer(lcrec, Question(query="lavender", k=3)).rows) == 3
    nonsense = models.answer(lcrec, Question(query="qqzz xyzzy", k=3))
    assert "No title holds any word of “qqzz xyzzy”" in nonsense.message
    assert (
        models.answer(cllm4rec, Question(query="lavender")).message
        == "CLLM4Rec reads no queries here. Add an item to the history."
    )


def test_k_larger_than_the_beams(models, cllm4rec, lcrec):
    question = Question(HISTORY, k=12)
    models.check(question)
    assert len(models.answer(cllm4rec, question).rows) == 12
    refused = models.answer(lcrec, question)
    assert refused.rows == ()
    assert refused.message == "“How many” is 12; allowed: 1 to 10, the number of beams of the search."
    assert "LC-Rec reads the items" in models.answer(lcrec, Question((), user="ann")).message


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Question(), "The history is empty. Find an item"),
        (Question(HISTORY, k=0), "“How many” is 0; allowed: a whole number from 1 to 15"),
        (Question(HISTORY, k=16), "“How many” is 16; allowed: a whole number from 1 to 15"),
        (Question(HISTORY, k=3, candidates=("B1", "B2")), "“How many” is 3; allowed: a whole number from 1 to 2"),
    ],
)
def test_questions_that_nobody_can_answer(models, question, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        models.check(question)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Question(HISTORY, num_beams=0), "“Beams of LC-Rec’s search” is 0; allowed: a whole number of 1 or more."),
        (Question(HISTORY, query="?!"), "“Looking for, in words” is '?!'; allowed: a text with words."),
    ],
)
def test_questions_that_one_model_cannot_answer(models, lcrec, question, sentence):
    models.check(question)
    assert models.answer(lcrec, question).message == sentence
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ShownModels([lcrec]).check(question)


def test_a_query_alone_needs_a_model_that_reads_words(models, cllm4rec):
    models.check(Question(query="soap"))
    with pytest.raises(ValueError, match="CLLM4Rec reads no queries here. Add an item"):
        ShownModels([cllm4rec]).check(Question(query="soap"))


def test_candidates(models):
    assert models.candidates("", "") is None
    assert models.candidates(" soap 1", "") == ("B1", "B10", "B11")
    assert models.candidates("soap 1", "B1\n\n B2 ") == ("B1",)
    with pytest.raises(ValueError, match="no item with the id “B99”, “x”"):
        models.candidates("", "B99\nB1\nx")
    with pytest.raises(ValueError, match="No item satisfies the filters"):
        models.candidates("soap 1", "B2")


def test_users_by_text():
    assert user_index(KnownUsers([17, 4]), "4") == 1
    assert user_index(KnownUsers([17, 4]), "ann") is None
    assert user_index(KnownUsers(["4"]), "5") is None
    assert user_index(None, "4") is None


def test_models_side_by_side_share_a_catalogue(cllm4rec, lcrec, monkeypatch):
    with pytest.raises(ValueError, match="no model was given"):
        ShownModels([])
    monkeypatch.setattr(lcrec.model, "catalogue", Catalogue(["B0", "B1", "z"]))
    with pytest.raises(ValueError, match=r"beauty and beauty-lcrec .* \(15 and 3 items, 2 in common\).*one data folder"):
        ShownModels([cllm4rec, lcrec])
    monkeypatch.setattr(lcrec.model, "catalogue", None)
    with pytest.raises(ValueError, match="beauty-lcrec has no catalogue"):
        ShownModels([cllm4rec, lcrec])


def test_vectors_by_hand(cllm4rec, lcrec):
    rows = cllm4rec.model.item_collaborative.weight
    assert np.array_equal(cllm4rec.model.item_vectors(np.array([2, 0])), rows[[2, 0]].detach().numpy())
    words = lcrec.model.backbone.get_input_embeddings().weight.detach()
    first = lcrec.model.config.first_index_token
    by_hand = words[first + 1] + words[first + 5 + 2]  # item 7 is <a_1><b_2>
    assert np.allclose(lcrec.model.item_vectors(np.array([7]))[0], by_hand.numpy(), atol=1e-6)


def test_the_nearest_of_the_history(cllm4rec):
    with torch.no_grad():
        old = cllm4rec.model.item_collaborative.weight.clone()
        cllm4rec.model.item_collaborative.weight[:4, 2:] = 0
        cllm4rec.model.item_collaborative.weight[:4, :2] = torch.tensor([[1.0, 0], [3, 4], [0, 2], [-1, 0]])
    near = near_in_history(cllm4rec.model, np.array([0, 2]), np.array([3, 1, 2, 1]))
    vectors = cllm4rec.model.item_vectors(np.arange(15))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with torch.no_grad():
        cllm4rec.model.item_collaborative.weight.copy_(old)
    assert [[one.item for one in row] for row in near] == [[1], [1]]  # an item is no reason for itself, nor one at cosine 0
    assert np.allclose([row[0].cosine for row in near], [0.6, 0.8])
    larger = [(vectors @ vectors[item] > cosine + 1e-4).sum() for item, cosine in ((0, 0.6), (2, 0.8))]
    assert [row[0].rank for row in near] == larger  # the item itself is one of the larger ones, and ranks begin with 1
    assert near_in_history(cllm4rec.model, np.array([0]), np.array([], np.int64)) == [[]]
    assert near_in_history(cllm4rec.model, np.array([0]), np.array([0])) == [[]]


def test_far_items_are_no_reasons(models, cllm4rec, monkeypatch):
    items, history = np.arange(3), np.arange(3, 15)
    cosines = [[one.cosine for one in row] for row in near_in_history(cllm4rec.model, items, history, count=12)]
    assert all(cosine > 0 for row in cosines for cosine in row) and all(len(row) < 12 for row in cosines)
    monkeypatch.setattr(reasons, "NEAREST_AT_LEAST", 2)
    for row in near_in_history(cllm4rec.model, items, history, count=12):
        assert len(row) <= 2 and [one.rank for one in row] == sorted(one.rank for one in row)


def test_reasons_name_items_of_the_history(models, cllm4rec):
    for row in models.answer(cllm4rec, Question(HISTORY, k=3)).rows:
        assert row.near is not None and {other.title for other in row.near} <= {"Lavender soap 0", "Lavender soap 3"}
        cosines = [other.cosine for other in row.near]
        assert cosines == sorted(cosines, reverse=True) and all(cosine > 0 for cosine in cosines)
    assert all(row.near is None for row in models.answer(cllm4rec, Question((), user="ann", k=3)).rows)


def test_scores_in_words(cllm4rec, lcrec, monkeypatch):
    assert (
        score_in_words(lcrec.model, 1, -2.3026, False) == "the likeliest of the items to choose from, with a probability of 10.0%"
    )
    assert score_in_words(lcrec.model, 3, -11.5, False) == "number 3 of the items to choose from, with a probability of 1.0e-05"
    assert score_in_words(cllm4rec.model, 1, 2.5, False) == "the best of the items to choose from, with a score of 2.50"
    assert score_in_words(cllm4rec.model, 2, -1, False) == "number 2 of the items to choose from, with a score of -1.00"
    assert "logarithm" in score_meaning(lcrec.model, False) and "dot product" in score_meaning(cllm4rec.model, False)
    monkeypatch.setattr(lcrec.model, "linear_parts", LinearParts([linear_part("ease", ItemWeights(np.eye(15)))], None))
    assert "those of 1 linear models" in score_meaning(lcrec.model, True)
    assert score_in_words(lcrec.model, 1, 2, True) == "the best of the items to choose from, with a score of 2.00"


def test_why(models, cllm4rec, lcrec):
    answers = [models.answer(one, Question(HISTORY, k=3)) for one in (cllm4rec, lcrec)]
    said = models.why(answers, 2)
    for one, answer in zip(("CLLM4Rec", "LC-Rec"), answers, strict=True):
        assert f"{one}: “{answer.rows[1].title}” is number 2 of the items to choose from" in said
    with pytest.raises(ValueError, match="No list has a number 7"):
        models.why(answers, 7)


def test_the_writer_shares_the_weights_and_writes_what_the_content_model_writes(models, cllm4rec, saved):
    from transformers import AutoModelForCausalLM

    writer = cllm4rec.writer
    ours, theirs = dict(cllm4rec.model.named_parameters()), dict(writer.writer.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in ours.items())
    alone, tokenizer = AutoModelForCausalLM.from_pretrained(saved), writer.tokenizer
    for user, name in ((1, "<user_1>"), (None, "Someone")):
        words = tokenizer(f"{name} says of <item_4>:", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[tokenizer.bos_token_id, *words]])  # as in training
        written = alone.generate(ids, max_new_tokens=40, no_repeat_ngram_size=3)
        expected = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert writer.write(4, user) == expected
    assert models.write(cllm4rec, "B4", "user 1") == writer.write(4, 1)


def test_who_can_write(saved, lcrec, cllm4rec, tmp_path):
    assert content_writer(cllm4rec.model, saved) is not None
    assert content_writer(cllm4rec.model, tmp_path) is None  # no tokenizer there


def test_the_prompt_is_that_of_the_training(saved, cllm4rec, tmp_path):
    cllm4rec.writer.tokenizer.save_pretrained(tmp_path)
    record = '{"pretrain": {"arguments": {"prompts": {"review": "{user} about {item}:"}}}}'
    (tmp_path / "training.json").write_text(record, encoding="utf-8")
    assert content_writer(cllm4rec.model, tmp_path).known != content_writer(cllm4rec.model, saved).known


def test_loading(saved):
    models = ShownModels.load([str(saved)])
    assert [one.name for one in models.shown] == ["beauty"]
    assert models.shown[0].writer is not None
    assert (models.read_words, models.beams) == (False, None)
    with pytest.raises(OSError, match="is no folder with a model"):
        ShownModels.load(["no/such/folder"])


def test_a_model_that_was_given_alone(lcrec):
    assert ShownModel("x", lcrec.model).system == "LC-Rec"
    assert ShownModels([lcrec]).beams == 10


def test_a_model_with_an_item_head_answers_by_it(tiny_backbones):
    """No number of beams is asked for unasked, which would put a search in the place of the item head and of a hybrid's sum."""
    model, tokenizer = new_lcrec(tiny_backbones["gpt2"], item_head=True)
    model.tokenizer = tokenizer
    model.linear_parts = LinearParts([linear_part("ease", ItemWeights(np.eye(len(ITEMS))))], None)
    one = ShownModel("mine", model)
    models = ShownModels([one])
    assert models.searches and models.beams is None
    history = tuple(ITEMS[:2])
    answer = models.answer(one, Question(history, k=3, num_beams=models.beams))
    assert [row.item for row in answer.rows] == model.recommend(histories=[history], k=3).table["item"].to_pylist()
    assert answer.hybrid and one.score_name(answer) == "score" and "1 linear models" in one.score_meaning(answer)
    for question in (Question(history, k=3, num_beams=5), Question(history, k=3, query="soap")):
        searched = models.answer(one, question)
        assert not searched.hybrid and one.score_name(searched) == "ln p" and "logarithm" in one.score_meaning(searched)


def test_the_model_that_reads_words_names_the_mistake_in_them(models):
    with pytest.raises(ValueError, match="“Looking for, in words” is '[?]!'; allowed: a text with words"):
        models.check(Question((), query="?!"))
