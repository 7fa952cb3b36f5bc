"""The item head of LC-Rec: scores by hand, ways of scoring, and a catalogue that changes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config

from modeling_cllm4rec.core.questions import QuestionError
from modeling_cllm4rec.lcrec.configuration_lcrec import LCRecConfig
from modeling_cllm4rec.lcrec.item_head import NEIGHBOURS, ItemHead, free_rows_near
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from tests.helpers.lcrec_models import HISTORIES, ITEMS, WIDTH, new_lcrec


@pytest.fixture
def embeddings() -> np.ndarray:
    """Of the texts; the last item has none."""
    made = np.random.default_rng(3).normal(size=(len(ITEMS), WIDTH)).astype(np.float32)
    made[-1] = 0
    return made


@pytest.fixture
def model(tiny_backbones: dict[str, Path], embeddings: np.ndarray) -> LCRecForRecommendation:
    model, tokenizer = new_lcrec(tiny_backbones["gpt2"], item_head=True, embeddings=embeddings)
    model.tokenizer = tokenizer
    return model


def test_text_vectors_are_white_and_an_item_without_text_has_none(model: LCRecForRecommendation, embeddings: np.ndarray) -> None:
    head = model.item_head
    assert head is not None
    vectors = head.text_vectors[:-1].double().numpy()
    words = model.backbone.get_input_embeddings().weight[: model.config.first_index_token].detach().double()
    square = vectors.T @ vectors / len(vectors)
    np.testing.assert_allclose(square, np.eye(WIDTH) * square[0, 0], atol=1e-6)
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=1e-6)
    rows = head.matrix()[:-1].detach().double()
    np.testing.assert_allclose(rows.square().mean(), words.square().mean(), rtol=1e-4)  # as large as word rows
    assert not head.text_vectors[-1].any() and not head.rows.weight.any()
    torch.testing.assert_close(head.vectors_of(embeddings), head.text_vectors)
    with pytest.raises(ValueError, match="embeddings have width 2; the item head reads those of width 6"):
        head.vectors_of(np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="the item head of this model reads no texts"):
        ItemHead(3, 4).vectors_of(embeddings)


def test_scores_are_products_with_the_last_state(model: LCRecForRecommendation) -> None:
    head = model.item_head
    assert head is not None and head.projection is not None
    with torch.no_grad():
        head.rows.weight.normal_()
    prompts = model.build_prompts(None, [np.array([0, 3, 5]), np.array([11])])
    scores = model.head_scores(prompts)
    for prompt, row in zip(prompts, scores, strict=True):
        with torch.no_grad():
            state = model.backbone.base_model(input_ids=torch.from_numpy(prompt)[None]).last_hidden_state[0, -1]
            rows = head.rows.weight + head.projection(head.text_vectors)
            torch.testing.assert_close(row, (state @ rows.T).log_softmax(-1), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(model.item_vectors(np.array([2, 11])), rows[[2, 11]].numpy(), rtol=1e-6)


def test_recommend_uses_the_head_unless_told_otherwise(model: LCRecForRecommendation, tmp_path: Path) -> None:
    histories = [[ITEMS[item] for item in history] for history in HISTORIES]
    found = model.recommend(histories=histories, k=6).table  # more than the 5 beams of the search
    assert found.num_rows == 18 and found["score"].to_numpy().max() <= 0
    assert not set(found["item"].to_pylist()[:6]) & set(histories[0])
    assert found.equals(model.recommend(histories=histories, k=6, scoring="head").table)
    beams = model.recommend(histories=histories, k=5, num_beams=5).table
    assert beams.equals(model.recommend(histories=histories, k=5, scoring="beam").table) and not beams.equals(found)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    assert LCRecForRecommendation.from_pretrained(folder).recommend(histories=histories, k=6).table.equals(found)


def test_queries_are_answered_by_a_search(model: LCRecForRecommendation) -> None:
    searched = model.search(["a blue one"], k=3).table
    assert searched.equals(model.search(["a blue one"], k=3, scoring="beam").table)
    with pytest.raises(QuestionError, match="scoring is 'head'; allowed: 'beam' and 'all' for queries; leave it out"):
        model.search(["a blue one"], k=3, scoring="head")


def test_scoring_by_a_head_that_is_not_there(tiny_backbones: dict[str, Path], model: LCRecForRecommendation) -> None:
    plain, _ = new_lcrec(tiny_backbones["gpt2"])
    assert plain.item_head is None and plain.config.scoring == "beam"
    with pytest.raises(
        QuestionError, match="scoring is 'head'; allowed: 'beam' and 'all' with this model, which has no item head"
    ):
        plain.recommend(histories=[[ITEMS[0]]], k=2, scoring="head")
    with pytest.raises(QuestionError, match="num_beams is 4; allowed: none with scoring='head'"):
        model.recommend(histories=[[ITEMS[0]]], k=2, scoring="head", num_beams=4)
    with pytest.raises(QuestionError, match="scoring is 'best'; allowed: 'beam', 'all' and 'head'"):
        model.recommend(histories=[[ITEMS[0]]], k=2, scoring="best")
    with pytest.raises(ValueError, match="embeddings are for the item head; set item_head=True"):
        new_lcrec(tiny_backbones["gpt2"], embeddings=np.ones((12, 6), np.float32))
    with pytest.raises(ValueError, match=r"embeddings have shape \(3, 6\); 12 items need \(12, width\)"):
        new_lcrec(tiny_backbones["gpt2"], item_head=True, embeddings=np.ones((3, 6), np.float32))


def test_new_items_have_a_row_from_their_text_and_removed_items_none(model: LCRecForRecommendation, tmp_path: Path) -> None:
    head = model.item_head
    assert head is not None and head.projection is not None
    with torch.no_grad():
        head.rows.weight.normal_()
    before = head.matrix().detach()
    new = np.random.default_rng(5).normal(size=(2, WIDTH)).astype(np.float32)
    model.add_items([{"item_id": "new 1"}, {"item_id": "new 2"}], new)
    grown = model.item_head
    assert grown is not None and grown.projection is not None
    torch.testing.assert_close(grown.matrix()[:12], before)
    free = free_rows_near(grown.vectors_of(new), head.text_vectors, head.rows.weight)
    torch.testing.assert_close(grown.matrix()[12:], grown.projection(grown.vectors_of(new)) + free)
    model.remove_items([ITEMS[4], "new 1"])
    assert model.item_head is not None
    torch.testing.assert_close(model.item_head.matrix(), grown.matrix()[[*range(4), *range(5, 12), 13]])
    model.save_pretrained(tmp_path / "saved")
    loaded = LCRecForRecommendation.from_pretrained(tmp_path / "saved")
    asked = {"histories": [[ITEMS[0]]], "k": 11}
    assert loaded.recommend(**asked).table.equals(model.recommend(**asked).table)
    assert "new 2" in loaded.recommend(**asked).table["item"].to_pylist()


def test_free_rows_of_new_items_are_those_of_the_nearest_texts() -> None:
    """Against plain loops; a new item as an old one and with others against it, and one without text."""
    generator = torch.Generator().manual_seed(0)
    known, rows = torch.randn(40, 6, generator=generator), torch.randn(40, 5, generator=generator)
    new = torch.cat([torch.randn(3, 6, generator=generator), torch.zeros(1, 6)])
    made = free_rows_near(new, known, rows)
    for vector, row in zip(new[:3], made, strict=False):
        cosines = [float(torch.dot(vector, other) / vector.norm() / other.norm()) for other in known]
        near = [number for number in sorted(range(40), key=lambda one: -cosines[one])[:NEIGHBOURS] if cosines[number] > 0]
        total = sum(cosines[number] for number in near)
        mean = sum(cosines[number] / total * rows[number] for number in near)
        size = sum(cosines[number] / total * float(rows[number].norm()) for number in near)
        assert isinstance(mean, torch.Tensor)
        torch.testing.assert_close(row, mean / mean.norm() * size)
    assert not made[3].any()
    opposite = free_rows_near(-known[:1], known[:1], rows[:1])
    assert not opposite.any()


def test_a_head_without_texts_has_no_row_for_a_new_item(tiny_backbones: dict[str, Path]) -> None:
    model, _ = new_lcrec(tiny_backbones["gpt2"], item_head=True)
    assert model.item_head is not None and model.item_head.rows.weight.std() > 0.01
    with pytest.raises(ValueError, match="the item head of this model reads no texts, so a new item has no row"):
        model.add_items([{"item_id": "new"}], np.ones((1, WIDTH), np.float32))
    assert model.num_items == 12


# ---- the head's rows in the input ----


@pytest.fixture
def reader(tiny_backbones: dict[str, Path], embeddings: np.ndarray) -> LCRecForRecommendation:
    """Return a model that reads the rows of its head."""
    model, tokenizer = new_lcrec(tiny_backbones["gpt2"], item_head=True, item_inputs=True, embeddings=embeddings)
    model.tokenizer = tokenizer
    assert model.item_head is not None
    with torch.no_grad():
        model.item_head.rows.weight.normal_(std=0.3)
    return model


def test_the_last_token_of_a_semantic_id_gets_the_row_of_its_item(reader: LCRecForRecommendation) -> None:
    head = reader.item_head
    assert head is not None
    (prompt,) = reader.build_prompts(None, [np.array([4, 9])])
    tokens = torch.from_numpy(prompt)
    layer = reader.backbone.get_input_embeddings()
    last = [int((tokens == reader.tokens_of(np.array([item]))[0, -1]).nonzero()[-1]) for item in (4, 9)]
    with torch.no_grad():
        expected = layer.weight[tokens].clone()
        for place, item in zip(last, (4, 9), strict=True):
            expected[place] += head.matrix()[item]
        torch.testing.assert_close(layer(tokens[None])[0], expected)
        # Neither half a semantic ID nor the codes of no item count, wherever padding is.
        codes = reader.tokens_of(np.array([4]))[0]
        taken = {tuple(row) for row in reader.semantic_ids.codes.tolist()}
        nobody = next(pair for pair in np.ndindex(*[reader.config.codebook_size] * len(codes)) if pair not in taken)
        free = codes - reader.semantic_ids.codes[4] + np.array(nobody)
        for given in (codes[1:], codes[:-1], free):
            torch.testing.assert_close(layer(torch.from_numpy(given)[None]), layer.weight[torch.from_numpy(given)][None])


@pytest.mark.parametrize("scoring", ["all", "beam"])
def test_a_search_reads_the_rows_as_a_plain_forward_pass_does(reader: LCRecForRecommendation, scoring: str) -> None:
    history = np.array([2, 7, 5])
    (prompt,) = reader.build_prompts(None, [history])
    continued = np.stack([np.concatenate([prompt, codes]) for codes in reader.tokens_of(np.arange(12))])
    with torch.no_grad():
        log_probs = reader(input_ids=torch.from_numpy(continued)).logits.float().log_softmax(-1)
    places = torch.arange(len(prompt), continued.shape[1])
    of_items = log_probs[:, places - 1].gather(2, torch.from_numpy(continued)[:, places, None]).sum((1, 2))
    beams = {"num_beams": 12} if scoring == "beam" else {}
    items, scores = reader.best_items([prompt], [history], 9, None, [history], scoring=scoring, **beams)
    np.testing.assert_allclose(scores[0], of_items[items[0]].numpy(), atol=1e-4)
    assert list(items[0]) == [item for item in of_items.argsort(descending=True).tolist() if item not in history]
    with torch.no_grad():
        reader.item_head.rows.weight.zero_()  # type: ignore[union-attr]
    assert np.abs(reader.best_items([prompt], [history], 9, None, [history], scoring=scoring, **beams)[1] - scores).max() > 1e-3


def test_prompts_of_different_lengths_are_read_alike(reader: LCRecForRecommendation) -> None:
    prompts = reader.build_prompts(None, [np.array([0, 3, 5, 1, 2]), np.array([11])])
    alone = torch.cat([reader.head_scores([prompt]) for prompt in prompts])
    torch.testing.assert_close(reader.head_scores(prompts), alone, atol=1e-5, rtol=1e-5)


def test_a_changed_catalogue_is_read_with_its_own_rows(reader: LCRecForRecommendation, tmp_path: Path) -> None:
    asked = {"histories": [[ITEMS[7], ITEMS[3]]], "k": 5}
    before = reader.recommend(**asked).table
    copied = copy.deepcopy(reader)
    new = np.random.default_rng(5).normal(size=(1, WIDTH)).astype(np.float32)
    reader.add_items([{"item_id": "new"}], new)
    reader.remove_items([ITEMS[0]])  # item 3 is now item 2
    head = reader.item_head
    assert head is not None
    tokens = torch.from_numpy(reader.tokens_of(np.array([11, 2])))
    layer = reader.backbone.get_input_embeddings()
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens)[:, -1] - layer.weight[tokens[:, -1]], head.matrix()[[11, 2]], atol=1e-6, rtol=0)
    assert "new" in reader.recommend(histories=[[ITEMS[7], ITEMS[3]]], k=10).table["item"].to_pylist()
    assert copied.recommend(**asked).table.equals(before), "a copy reads its own rows"
    reader.save_pretrained(tmp_path / "saved")
    loaded = LCRecForRecommendation.from_pretrained(tmp_path / "saved")
    assert loaded.config.item_inputs and loaded.recommend(**asked).table.equals(reader.recommend(**asked).table)


def test_the_rows_learn_from_what_they_are_read_for(reader: LCRecForRecommendation) -> None:
    (prompt,) = reader.build_prompts(None, [np.array([4, 9])])
    reader.item_head.requires_grad_(True)  # type: ignore[union-attr]
    reader(input_ids=torch.from_numpy(prompt)[None], labels=torch.from_numpy(prompt)[None]).loss.backward()
    gradient = reader.item_head.rows.weight.grad  # type: ignore[union-attr]
    assert gradient is not None and sorted(gradient.any(1).nonzero().flatten().tolist()) == [4, 9]


def test_too_many_semantic_ids_to_look_up() -> None:
    text_config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=300_000)
    with pytest.raises(ValueError, match="4 levels of 65536 codes are too many semantic IDs to look up; index"):
        LCRecConfig(text_config, num_items=3, num_levels=4, codebook_size=65536, item_head=True, item_inputs=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scoring": "head"}, "scoring is 'head'; it must be 'beam' or 'all', because the model has no item head"),
        ({"item_head": True, "scoring": "best"}, "scoring is 'best'; it must be 'beam', 'all' or 'head'"),
        ({"item_head": "yes"}, "item_head is yes; it must be true or false"),
        ({"item_head": True, "item_head_text_size": 4}, "an item head has both sizes or none"),
        ({"item_inputs": True}, "item_inputs is True, but the model has no item head whose rows it could read"),
        ({"item_inputs": 1}, "item_inputs is 1; it must be true or false"),
        ({"item_head_text_size": 4, "item_head_embedding_size": 4}, "without one both are 0"),
        ({"item_head_embedding_size": -1}, "item_head_embedding_size is -1; it must be 0 or more"),
    ],
)
def test_configurations_that_describe_no_head(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LCRecConfig(None, num_items=3, num_levels=2, codebook_size=4, **fields)
