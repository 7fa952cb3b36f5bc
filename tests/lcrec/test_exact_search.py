"""The exact best items without scoring all, against scores of all items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

from modeling_cllm4rec.lcrec import exact_search
from modeling_cllm4rec.lcrec.beam_search import beam_search, bounded_search, score_all
from modeling_cllm4rec.lcrec.constrained_decoding import ItemTrie
from modeling_cllm4rec.lcrec.exact_search import best_of_all
from modeling_cllm4rec.lcrec.prompt_tree import PromptTree

FIRST, CODES, VOCABULARY = 20, 6, 50
SHARED: dict[str, Any] = {"tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
IDS = torch.tensor([[3, 5, 7, 9, 11], [2, 19, 0, 0, 0], [4, 4, 8, 25, 0]])
MASK = (torch.arange(5) < torch.tensor([[5], [2], [4]])).long()


def make_model(kind: str = "gpt2", peaked: float = 1.0) -> PreTrainedModel:
    """Make a model with random weights; `peaked` scales its logits, as training does."""
    shapes = {
        "gpt2": GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=24, initializer_range=0.4, **SHARED
        ),
        "llama": LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, **SHARED
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shapes[kind]).eval()
    model.get_output_embeddings().weight.data *= peaked
    return model


def make_trie(items: int = 150, levels: int = 4, seed: int = 0) -> ItemTrie:
    numbers = np.random.default_rng(seed).permutation(CODES**levels)[:items]
    return ItemTrie(np.stack([numbers // CODES**level % CODES for level in range(levels)], axis=1), CODES)


def best_by_scores(model: Any, trie: ItemTrie, k: int, left_out: list[list[int]] | None = None) -> tuple[np.ndarray, np.ndarray]:
    scores = score_all(model, IDS, MASK, trie, FIRST).numpy().copy()
    for row, items in enumerate(left_out or []):
        scores[row, items] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, 1)
    return np.where(np.isneginf(found), -1, order), found


@pytest.fixture(params=[1, 3, 20])
def first_beams(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Few beams prove nothing, so that the trie is read."""
    monkeypatch.setattr(exact_search, "FIRST_BEAMS", request.param)
    return int(request.param)


@pytest.mark.parametrize("peaked", [1.0, 20.0])
@pytest.mark.parametrize("nodes_at_a_time", [1, 4, 1000])
def test_it_is_the_best_of_all_scores(first_beams, nodes_at_a_time, peaked):
    model, trie = make_model(peaked=peaked), make_trie()
    items, scores = best_by_scores(model, trie, 7)
    found = best_of_all(model, IDS, MASK, trie, FIRST, 7, nodes_at_a_time=nodes_at_a_time)
    assert np.array_equal(found.items, items)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.codes, trie.item_codes(found.items.flatten()).view(3, 7, 4))


@pytest.mark.parametrize("levels", [1, 2])
def test_other_depths_and_left_padding(first_beams, levels):
    model, trie = make_model("llama"), make_trie(min(30, CODES**levels), levels)
    items, _ = best_by_scores(model, trie, 4)
    order = torch.argsort(MASK, dim=1, stable=True)
    left = best_of_all(model, IDS.gather(1, order), MASK.gather(1, order), trie, FIRST, 4)
    assert np.array_equal(left.items, items)


@given(st.data())
def test_with_seen_items_and_candidates(data):
    model, trie = make_model(peaked=5.0), make_trie(40, 3)
    some = st.lists(st.integers(0, 39), unique=True, max_size=12)
    candidates = data.draw(st.one_of(st.none(), some.filter(len)))
    seen = [data.draw(some) for _ in range(3)]
    outside = [] if candidates is None else [item for item in range(40) if item not in candidates]
    items, scores = best_by_scores(model, trie, 5, [[*row, *outside] for row in seen])
    rows = (np.cumsum([0, *map(len, seen)]), np.array([item for row in seen for item in row], dtype=np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_search, "FIRST_BEAMS", 1)
        found = best_of_all(model, IDS, MASK, trie, FIRST, 5, seen=rows, candidates=candidates)
    assert np.array_equal(found.items, items)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-4)


def test_little_is_read_where_the_model_is_sure(monkeypatch):
    model, trie = make_model(peaked=30.0), make_trie(1000)
    read = []
    plain = PromptTree.read
    monkeypatch.setattr(PromptTree, "read", lambda tree, tokens, *more: read.append(tokens.numel()) or plain(tree, tokens, *more))
    best_of_all(model, IDS, MASK, trie, FIRST, 5)
    few = sum(read)
    read.clear()
    score_all(model, IDS, MASK, trie, FIRST)
    assert few < sum(read) / 4


def test_the_bound_of_a_search_by_brute_force():
    model, trie = make_model(), make_trie(30, 3)
    found, bound = bounded_search(model, IDS, MASK, trie, FIRST, 4)
    scores = score_all(model, IDS, MASK, trie, FIRST)
    missed = scores.scatter(1, found.items, -torch.inf).amax(1)
    assert (bound >= missed - 1e-4).all()
    assert bounded_search(model, IDS, MASK, trie, FIRST, 40)[1].isneginf().all()


def test_beams_of_each_level():
    """Equal widths are one number; other widths are what exhaustive search keeps of each level."""
    model, trie = make_model(), make_trie(60, 3)
    for one, other in zip(
        beam_search(model, IDS, MASK, trie, FIRST, 5), beam_search(model, IDS, MASK, trie, FIRST, [5, 5, 5]), strict=True
    ):
        assert torch.equal(one, other)
    tree = PromptTree(model, IDS, MASK, trie, FIRST)
    codes = trie.item_codes(torch.arange(60)).tolist()
    scores = score_all(model, IDS, MASK, trie, FIRST)
    widths = [2, 7, 3]
    found = beam_search(model, IDS, MASK, trie, FIRST, widths)
    assert found.items.shape == (3, 3)
    for row in range(3):
        prompt, kept = IDS[row][MASK[row].bool()], {()}
        for level, width in enumerate(widths):
            prefixes = sorted({tuple(code[: level + 1]) for code in codes if tuple(code[:level]) in kept})
            gained = []
            for prefix in prefixes:
                tokens = torch.tensor([FIRST + place * CODES + code for place, code in enumerate(prefix)])
                with torch.no_grad():
                    logits = model(torch.cat([prompt, tokens])[None]).logits[0].log_softmax(-1)
                places = torch.arange(len(prompt) - 1, len(prompt) + level)
                gained.append(float(logits[places, tokens].sum()))
            best = np.argsort(-np.array(gained), kind="stable")[:width]
            kept = {prefixes[place] for place in best}
        expected = sorted((codes.index(list(prefix)) for prefix in kept), key=lambda item: -float(scores[row, item]))
        assert found.items[row].tolist() == expected
    assert tree.fed == 0


class TestBadInput:
    def test_numbers(self):
        model, trie = make_model(), make_trie()
        with pytest.raises(ValueError, match="k is 0; it must be 1 or more"):
            best_of_all(model, IDS, MASK, trie, FIRST, 0)
        with pytest.raises(ValueError, match="nodes_at_a_time is -1"):
            best_of_all(model, IDS, MASK, trie, FIRST, 1, nodes_at_a_time=-1)
        with pytest.raises(
            ValueError, match=r"num_beams is \[5, 5\]; give one number, or 4, one for each level of a semantic ID"
        ):
            beam_search(model, IDS, MASK, trie, FIRST, [5, 5])
        with pytest.raises(ValueError, match=r"num_beams is \[5, 0, 5, 5\]; it must be 1 or more"):
            beam_search(model, IDS, MASK, trie, FIRST, [5, 0, 5, 5])

    def test_catalogues_too_large_to_be_scored(self):
        model, trie = make_model(), make_trie()
        with pytest.raises(
            ValueError, match=r"all 150 items need 157 prefixes .* and the most is 100; search for the best items"
        ):
            score_all(model, IDS, MASK, trie, FIRST, most_nodes=100)

    def test_models_that_tell_no_item_from_another(self, monkeypatch):
        monkeypatch.setattr(exact_search, "FIRST_BEAMS", 1)
        message = "more than 50 prefixes of semantic IDs are as likely as the best items, .* 150 items .*search with num_beams"
        with pytest.raises(ValueError, match=message):
            best_of_all(make_model(peaked=0.01), IDS, MASK, make_trie(), FIRST, 5, most_nodes=50)
