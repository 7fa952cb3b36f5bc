"""The tree of real items against a plain dictionary, and the search in it against brute force and `generate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from modeling_cllm4rec.constrained_decoding import ItemTrie, TrieLogitsProcessor, beam_search, score_all
from modeling_cllm4rec.prompt_assembly import pad_right

SHAPES = ["gpt2", "gpt2-untied", "llama", "qwen2", "bert"]
LEVELS, SIZE, ITEMS, WORDS = 3, 4, 30, 50
FIRST = WORDS


def unique_codes(items: int, levels: int, size: int, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed).permutation(size**levels)[:items]
    return (numbers[:, None] // size ** np.arange(levels - 1, -1, -1) % size).astype(np.int32)


@pytest.fixture(scope="module", params=SHAPES)
def language_model(request, tiny_backbones: dict[str, Path]):
    """Random weights, far from uniform; tokens from `FIRST` on are index tokens."""
    torch.manual_seed(0)
    if request.param == "bert":
        config = BertConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=64, is_decoder=True, tie_word_embeddings=True,
        )  # fmt: skip
        model = BertLMHeadModel(config)
    else:
        config = AutoModelForCausalLM.from_pretrained(tiny_backbones[request.param]).config
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def trie() -> ItemTrie:
    return ItemTrie(unique_codes(ITEMS, LEVELS, SIZE), SIZE)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return unique_codes(ITEMS, LEVELS, SIZE)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    rows = [np.array([3, 7, 1, 9, 11]), np.array([5]), np.array([2, 8, 40])]
    ids = torch.from_numpy(pad_right(rows, 0))
    return ids, (torch.arange(5) < torch.tensor([[5], [1], [3]])).long()


@torch.no_grad()
def brute_force(model, codes: np.ndarray) -> torch.Tensor:
    """(B, J) each item's index after each prompt, alone and without a cache."""
    ids, mask = prompts()
    scores = torch.zeros(len(ids), len(codes))
    for row, (one, real) in enumerate(zip(ids, mask, strict=True)):
        for item, code in enumerate(codes):
            tokens = FIRST + torch.arange(LEVELS) * SIZE + torch.from_numpy(code)
            whole = torch.cat([one[real.bool()], tokens])[None]
            logits = model(input_ids=whole).logits[0].float().log_softmax(-1)
            scores[row, item] = logits[torch.arange(-LEVELS - 1, -1), tokens].sum()
    return scores


def test_every_score_equals_brute_force(language_model, trie, codes):
    expected = brute_force(language_model, codes)
    for nodes_at_a_time in (512, 3):
        found = score_all(language_model, *prompts(), trie, FIRST, nodes_at_a_time)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [ITEMS, ITEMS + 5])
def test_as_many_beams_as_items_are_exact(language_model, trie, codes, beams):
    expected = brute_force(language_model, codes)
    items, scores = beam_search(language_model, *prompts(), trie, FIRST, beams)
    assert items.shape == scores.shape == (3, beams)
    assert (items[:, ITEMS:] == -1).all() and torch.isinf(scores[:, ITEMS:]).all()
    best = expected.sort(dim=1, descending=True)
    torch.testing.assert_close(scores[:, :ITEMS], best.values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(expected.gather(1, items[:, :ITEMS]), best.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 4, 7])
def test_fewer_beams_are_those_of_generate(language_model, trie, beams):
    ids, mask = prompts()
    items, scores = beam_search(language_model, ids, mask, trie, FIRST, beams)
    for row in range(len(ids)):
        prompt = ids[row][mask[row].bool()][None]
        out = language_model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=LEVELS,
            do_sample=False,
            length_penalty=0.0,
            logits_processor=[TrieLogitsProcessor(trie, FIRST, prompt.shape[1])],
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=0,
            eos_token_id=None,
        )
        written = out.sequences[:, prompt.shape[1] :] - FIRST - torch.arange(LEVELS) * SIZE
        assert trie.leaf_items[trie_leaves(trie, written)].tolist() == items[row].tolist()
        if beams > 1:
            torch.testing.assert_close(out.sequences_scores, scores[row], rtol=1e-4, atol=1e-4)


def trie_leaves(trie: ItemTrie, codes: torch.Tensor) -> torch.Tensor:
    return trie.walk(codes)


def test_processor_with_left_padded_prompts_and_an_end(trie):
    rules = TrieLogitsProcessor(trie, FIRST, prompt_length=2, end_token_id=1)
    codes = trie.codes_of[0]
    tokens = torch.tensor([[0, 5], [6, 7]])
    scores = torch.zeros(2, 100)
    assert (rules(tokens, scores) == 0).nonzero()[:, 1].tolist() == [FIRST + int(code) for code in codes] * 2
    whole = torch.cat([tokens, torch.full((2, LEVELS), FIRST)], dim=1)
    assert (rules(whole, scores) == 0).nonzero().tolist() == [[0, 1], [1, 1]]
    assert torch.equal(TrieLogitsProcessor(trie, FIRST, 2)(whole, scores), scores)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(2, 5))
def test_tree_equals_a_dictionary(seed, levels, size):
    codes = unique_codes(min(40, size**levels), levels, size, seed)
    trie = ItemTrie(codes, size)
    children: dict[tuple[int, ...], set[int]] = {}
    for row in codes.tolist():
        for level in range(levels):
            children.setdefault(tuple(row[:level]), set()).add(row[level])
    for prefix, expected in children.items():
        node = trie.walk(torch.tensor([prefix], dtype=torch.int64).reshape(1, len(prefix)))
        _, found = trie.children(len(prefix), node)
        assert trie.codes_of[len(prefix)][found].tolist() == sorted(expected)
    missing = [prefix for prefix in np.ndindex(*(size,) * (levels - 1)) if prefix not in children] if levels > 1 else []
    for prefix in missing[:3]:
        assert trie.walk(torch.tensor([prefix])).tolist() == [-1]
    assert sorted(trie.leaf_items.tolist()) == list(range(len(codes)))
    assert [codes[item].tolist() for item in trie.leaf_items] == sorted(codes.tolist())


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=30)
def test_permitted_counts_equal_counting(seed, with_candidates):
    generator = np.random.default_rng(seed)
    codes = unique_codes(25, 3, 3, seed)
    trie = ItemTrie(codes, 3)
    seen = [generator.choice(25, generator.integers(0, 6), replace=True) for _ in range(4)]  # an item may stand twice
    candidates = np.unique(generator.choice(25, 20)) if with_candidates else None
    indptr = np.cumsum([0, *map(len, seen)])
    permitted = trie.permitted(4, (indptr, np.concatenate(seen)), candidates)
    allowed = set(range(25)) if candidates is None else set(candidates.tolist())
    for level in range(4):
        nodes = torch.arange(len(trie.leaf_starts[level]) - 1)
        for row in range(4):
            left = allowed - set(seen[row].tolist())
            starts = trie.leaf_starts[level].tolist()
            below = [set(trie.leaf_items[first:last].tolist()) for first, last in zip(starts, starts[1:], strict=False)]
            counts = permitted.count(torch.full_like(nodes, row), level, nodes)
            assert counts.tolist() == [len(items & left) for items in below]


@pytest.mark.parametrize("language_model", ["gpt2", "bert"], indirect=True)
def test_seen_items_and_other_than_candidates_take_no_beam(language_model, trie, codes):
    expected = brute_force(language_model, codes)
    best = expected.argsort(dim=1, descending=True)
    seen = [best[row, :10].numpy() for row in range(3)]
    compressed = (np.array([0, 10, 20, 30]), np.concatenate(seen))
    items, _ = beam_search(language_model, *prompts(), trie, FIRST, 20, seen=compressed)
    for row in range(3):
        assert sorted(items[row].tolist()) == sorted(best[row, 10:].tolist())  # 20 beams, 20 items left: none wasted
    some = np.array([2, 5, 11])
    items, _ = beam_search(language_model, *prompts(), trie, FIRST, 3, candidates=some)
    assert [sorted(row) for row in items.tolist()] == [some.tolist()] * 3
    one, _ = beam_search(language_model, *prompts(), trie, FIRST, 1, seen=compressed, candidates=best[0, 5:15].numpy())
    assert one[0, 0] not in seen[0]


@pytest.mark.parametrize("language_model", ["llama"], indirect=True)
@given(seed=st.integers(0, 100), beams=st.integers(1, 9))
@settings(max_examples=15)
def test_what_is_found_is_real_and_stands_once(language_model, seed, beams):
    trie = ItemTrie(unique_codes(8, 2, 5, seed), 5)
    items, scores = beam_search(language_model, *prompts(), trie, FIRST, beams)
    for row, values in zip(items.tolist(), scores.tolist(), strict=True):
        found = [item for item in row if item >= 0]
        assert len(set(found)) == len(found) == min(beams, 8)
        assert set(found) <= set(range(8))
        assert values == sorted(values, reverse=True)


def test_a_batch_is_its_rows(language_model, trie):
    ids, mask = prompts()
    items, scores = beam_search(language_model, ids, mask, trie, FIRST, 6)
    for row in range(3):
        length = int(mask[row].sum())
        alone = beam_search(language_model, ids[row : row + 1, :length], mask[row : row + 1, :length], trie, FIRST, 6)
        assert alone[0][0].tolist() == items[row].tolist()
        torch.testing.assert_close(alone[1][0], scores[row], rtol=1e-4, atol=1e-4)


def test_a_hundred_thousand_items():
    codes = unique_codes(100_000, 4, 64)
    trie = ItemTrie(codes, 64)
    places = torch.tensor([0, 5, 99_999])
    leaves = trie.walk(torch.from_numpy(codes[places].astype(np.int64)))
    assert trie.leaf_items[leaves].tolist() == places.tolist()


class TestBadInput:
    @pytest.fixture
    def model(self, tiny_backbones):
        return AutoModelForCausalLM.from_pretrained(tiny_backbones["gpt2"]).eval()

    def test_codes(self):
        with pytest.raises(ValueError, match=r"2 items share their codes with another, first items \[0, 2\]"):
            ItemTrie(np.array([[1, 1], [0, 1], [1, 1]]), 2)
        with pytest.raises(ValueError, match="item 1 has code 2 at level 0, outside the codebook of 2 codes"):
            ItemTrie(np.array([[1, 1], [2, 1]]), 2)

    def test_beams(self, model, trie):
        with pytest.raises(ValueError, match="num_beams is 0; it must be 1 or more"):
            beam_search(model, *prompts(), trie, FIRST, 0)
        with pytest.raises(ValueError, match="nodes_at_a_time is 0"):
            score_all(model, *prompts(), trie, FIRST, 0)
        with pytest.raises(ValueError, match="prompt_length is 0"):
            TrieLogitsProcessor(trie, FIRST, 0)

    def test_pruned_to_nothing(self, model, trie):
        seen = (np.array([0, 0, 2, 2]), np.array([4, 6]))
        with pytest.raises(ValueError, match="nothing is left to recommend to row 1: all candidates were seen"):
            beam_search(model, *prompts(), trie, FIRST, 2, seen=seen, candidates=np.array([4, 6]))

    def test_prompts(self, model, trie):
        ids, mask = prompts()
        with pytest.raises(ValueError, match="prompts must be padded on the right"):
            beam_search(model, ids.flip(1), mask.flip(1), trie, FIRST, 2)
        long = torch.ones(1, 126, dtype=torch.int64)
        with pytest.raises(ValueError, match="the longest prompt has 126 tokens and an index 3, but the context holds 128"):
            beam_search(model, long, torch.ones_like(long), trie, FIRST, 2)
