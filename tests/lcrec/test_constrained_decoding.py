"""Trie, logits processor, beam search and exact scoring against dictionaries, plain passes and `generate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from modeling_cllm4rec.lcrec.beam_search import beam_search, check_tree_attention, score_all
from modeling_cllm4rec.lcrec.constrained_decoding import ItemTrie, TrieLogitsProcessor
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds

FIRST, LEVELS, CODES, ITEMS, VOCABULARY, CONTEXT = 20, 3, 4, 30, 40, 24  # tokens 32 to 39: padding of the vocabulary
END = 1
SHARED = {"vocab_size": VOCABULARY, "initializer_range": 0.4, "bos_token_id": END, "eos_token_id": END, "pad_token_id": 0}
ROTARY = {
    **SHARED,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
SHAPES: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(**SHARED, n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT),
    "llama": lambda: LlamaConfig(**ROTARY),
    "qwen2": lambda: Qwen2Config(**ROTARY, tie_word_embeddings=True),
    "bert": lambda: BertConfig(**{key: value for key, value in ROTARY.items() if key != "num_key_value_heads"}, is_decoder=True),
}
PROMPTS = [[3, 5, 7, 9, 11], [2, 19], [4, 4, 8, 25]]


def make_model(name: str, attention: str = "sdpa") -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(SHAPES[name](), attn_implementation=attention).eval()


@pytest.fixture(scope="module", params=[(name, attention) for name in SHAPES for attention in ("sdpa", "eager")], ids="-".join)
def model(request) -> PreTrainedModel:
    return make_model(*request.param)


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return make_model("gpt2")


def random_codes(items: int = ITEMS, levels: int = LEVELS, size: int = CODES, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed).permutation(size**levels)[:items]
    return np.stack([numbers // size**level % size for level in range(levels)], axis=1).astype(np.int32)


def padded(side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, PROMPTS))
    ids, mask = torch.zeros(len(PROMPTS), width, dtype=torch.int64), torch.zeros(len(PROMPTS), width, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        part = slice(0, len(prompt)) if side == "right" else slice(width - len(prompt), width)
        ids[row, part], mask[row, part] = torch.tensor(prompt), 1
    return ids, mask


@torch.no_grad()
def brute_force(model: PreTrainedModel, codes: np.ndarray) -> np.ndarray:
    """(B, J) ln p of every index, each by a pass of its own over a text without padding."""
    levels = codes.shape[1]
    tokens = torch.from_numpy(codes.astype(np.int64)) + FIRST + CODES * torch.arange(levels)
    rows = []
    for prompt in PROMPTS:
        ids = torch.cat([torch.tensor(prompt).expand(len(tokens), -1), tokens], dim=1)
        log_probs = model(input_ids=ids).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
        rows.append(log_probs.gather(2, tokens[..., None]).sum(dim=(1, 2)))
    return torch.stack(rows).numpy()


def ranked(scores: np.ndarray, unseen: np.ndarray | None = None) -> tuple[list[int], np.ndarray]:
    """Items of one row, best first, and their scores."""
    order = [int(item) for item in np.argsort(-scores, kind="stable") if unseen is None or unseen[item]]
    return order, scores[order]


def searched(model: PreTrainedModel, codes: np.ndarray, num_beams: int, **pruned: Any) -> tuple[np.ndarray, np.ndarray]:
    items, scores, _ = beam_search(model, *padded(), ItemTrie(codes, CODES), FIRST, num_beams, **pruned)
    assert items.shape == scores.shape == (len(PROMPTS), num_beams)
    assert items.dtype == torch.int64 and scores.dtype == torch.float32
    return items.numpy(), scores.numpy()


class TestItemTrie:
    def test_by_hand(self):
        trie = ItemTrie(np.array([[1, 0, 2], [0, 2, 2], [1, 0, 0], [1, 1, 1]]), codebook_size=3)
        assert trie.leaf_items.tolist() == [1, 2, 0, 3] and trie.item_leaves.tolist() == [2, 0, 1, 3]
        assert [keys.tolist() for keys in trie.keys] == [[0], [0, 1], [2, 3, 4], [2, 3, 5, 7]]
        assert [first.tolist() for first in trie.first_child] == [[0, 2], [0, 1, 3], [0, 1, 3, 4]]
        assert [first.tolist() for first in trie.first_leaf] == [[0, 4], [0, 1, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4]]
        owner, child = trie.children(1, torch.tensor([1, 0, 1]))
        assert owner.tolist() == [0, 0, 1, 2, 2] and child.tolist() == [1, 2, 0, 1, 2]
        assert trie.parents(2, torch.tensor([0, 1, 2])).tolist() == [0, 1, 1]
        assert trie.num_nodes(2) == 3

    def test_moves(self):
        trie = ItemTrie(random_codes(), CODES)
        moved = trie.to("meta")
        tensors = [*moved.keys, *moved.first_child, *moved.first_leaf, moved.leaf_items, moved.item_leaves]
        assert {tensor.device.type for tensor in tensors} == {"meta"} and trie.device.type == "cpu"
        assert trie.to("cpu") is trie

    @given(st.data(), st.integers(1, 4), st.integers(1, 5))
    def test_is_a_dictionary_of_prefixes(self, data, levels, size):
        number = data.draw(st.integers(1, min(20, size**levels)))
        codes = random_codes(number, levels, size, seed=data.draw(st.integers(0, 1000)))
        trie = ItemTrie(codes, size)
        children: dict[tuple[int, ...], set[int]] = {}
        for row in codes.tolist():
            for level in range(levels):
                children.setdefault(tuple(row[:level]), set()).add(row[level])
        found: list[tuple[int, ...]] = [()]
        for level in range(levels):
            assert trie.num_nodes(level) == len(found) == len(set(found))
            owner, child = trie.children(level, torch.arange(len(found)))
            of_children = trie.codes(level + 1, child)
            assert trie.child(level, owner, of_children).tolist() == child.tolist() == list(range(len(child)))
            assert torch.equal(trie.parents(level + 1, child), owner)
            for node, prefix in enumerate(found):
                assert of_children[owner == node].tolist() == sorted(children[prefix])
                for code in (-1, *range(size), size):
                    place = int(trie.child(level, torch.tensor([node]), torch.tensor([code])))
                    assert (place >= 0) == (code in children[prefix])
            found = [(*found[node], code) for node, code in zip(owner.tolist(), of_children.tolist(), strict=True)]
        assert found == sorted(map(tuple, codes.tolist()))
        assert [tuple(codes[item]) for item in trie.leaf_items] == found
        assert np.array_equal(trie.item_codes(torch.arange(number)), codes)

    @given(st.data())
    def test_counts_of_candidates_are_those_of_sets(self, data):
        codes = random_codes(12, seed=data.draw(st.integers(0, 100)))
        trie = ItemTrie(codes, CODES)
        some = st.lists(st.integers(0, 11), max_size=11)
        candidates = data.draw(st.one_of(st.none(), some.filter(bool)))
        kept = set(range(12)) if candidates is None else set(candidates)
        seen = [data.draw(some) for _ in range(3)]
        left = [kept - set(row) for row in seen]
        pruned = (np.cumsum([0, *map(len, seen)]), np.concatenate(seen).astype(np.int32))
        left_items = trie.candidates(3, pruned, candidates)
        assert left_items.rows_with_items().tolist() == [bool(items) for items in left]
        for level in range(LEVELS + 1):
            for node in range(trie.num_nodes(level)):
                first, last = trie.first_leaf[level][node : node + 2].tolist()
                below = set(trie.leaf_items[first:last].tolist())
                counts = left_items.count(level, torch.arange(3), torch.full((3,), node))
                assert counts.tolist() == [len(below & items) for items in left]

    def test_hundred_thousand_items(self):
        codes = random_codes(100_000, 4, 32)
        trie = ItemTrie(torch.from_numpy(codes), 32)
        sample = torch.arange(0, 100_000, 997)
        assert np.array_equal(trie.item_codes(sample), codes[sample])
        assert trie.num_nodes(4) == 100_000 and trie.num_nodes(1) == 32

    def test_more_indices_than_an_integer_can_number(self):
        codes = np.random.default_rng(0).integers(0, 2**20, size=(50, 6))
        codes[25:, :4] = codes[:25, :4]
        trie = ItemTrie(codes, 2**20)
        assert [tuple(codes[item]) for item in trie.leaf_items] == sorted(map(tuple, codes))

    def test_codes_that_collide(self):
        codes = random_codes()
        codes[[17, 21]] = codes[4]
        with pytest.raises(ValueError, match=r"codes collide: items 4 and \d+ share .*2 collisions.*index the catalogue again"):
            ItemTrie(codes, CODES)

    @pytest.mark.parametrize("wrong", [-1, CODES])
    def test_codes_outside_the_codebook(self, wrong):
        codes = random_codes()
        codes[5, 2] = wrong
        with pytest.raises(ValueError, match=rf"item 5 has the code {wrong} on level 2; .* codes lie in \[0, 4\)"):
            ItemTrie(codes, CODES)

    @pytest.mark.parametrize("codes", [np.zeros((0, 3), np.int32), np.zeros(3, np.int32), np.zeros((1, 3))])
    def test_what_is_no_matrix_of_codes(self, codes):
        with pytest.raises(ValueError, match=r"codes have shape .* expected \(items, levels\) integers"):
            ItemTrie(codes, CODES)

    def test_pruned_to_nothing(self):
        trie = ItemTrie(random_codes(), CODES)
        candidates = trie.candidates(3, (np.array([0, 1, 3, 3]), np.array([5, 5, 6])), candidates=[5, 6])
        assert candidates.rows_with_items().tolist() == [True, False, True]
        with pytest.raises(ValueError, match=r"candidates: row 1 \(1 of 3 rows\) has seen all candidates, and generate cannot"):
            TrieLogitsProcessor(trie, FIRST, prompt_length=1, candidates=candidates)
        with pytest.raises(ValueError, match="candidates are empty; give at least one item"):
            trie.candidates(2, candidates=[])

    def test_items_that_do_not_exist(self):
        trie = ItemTrie(random_codes(), CODES)
        with pytest.raises(ValueError, match="candidates hold item_index 30; items are 0 to 29"):
            trie.candidates(1, candidates=[3, 30])
        with pytest.raises(ValueError, match="seen items hold item_index -1"):
            trie.candidates(1, seen=([0, 1], [-1]))
        for indptr in ([0, 1], [0, 2, 1], [1, 1, 2], [0, 1, 1]):
            with pytest.raises(ValueError, match=r"indptr has \d entries .*; expected 3, ascending from 0 to the 2 items"):
                trie.candidates(2, seen=(indptr, [3, 4]))


class TestTrieLogitsProcessor:
    def test_by_hand(self):
        trie = ItemTrie(np.array([[1, 0, 2], [0, 2, 2], [1, 0, 0], [1, 1, 1]]), codebook_size=3)

        def tokens(*written: int, **more: Any) -> list[int]:
            rule = TrieLogitsProcessor(trie, first_index_token=2, prompt_length=2, **more)
            scores = rule(torch.tensor([[9, 9, *written]]), torch.arange(13.0)[None])
            finite = scores.isfinite().nonzero()[:, 1]
            assert scores[0, finite].tolist() == finite.tolist()
            return finite.tolist()

        assert tokens() == [2, 3]
        assert tokens(3) == [5, 6]
        assert tokens(3, 5) == [8, 10]
        assert tokens(2) == [7]
        assert tokens(2, 5) == []  # a foreign beam stays forbidden
        assert tokens(12) == tokens(0) == tokens(0, 7) == []
        assert tokens(3, 5, 8, end_token_id=1) == tokens(3, 5, 8, 1, 0, end_token_id=1) == [1]
        assert tokens(candidates=trie.candidates(1, candidates=[0, 2])) == [3]
        assert tokens(3, candidates=trie.candidates(1, ([0, 1], [3]))) == [5]

    def test_each_prompt_has_beams_of_its_own(self):
        trie = ItemTrie(np.array([[0], [1], [2]]), codebook_size=3)
        rule = TrieLogitsProcessor(trie, 0, prompt_length=1, candidates=trie.candidates(2, ([0, 1, 3], [0, 1, 2])))
        scores = rule(torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 3))
        assert scores.isfinite().tolist() == [[False, True, True]] * 2 + [[True, False, False]] * 2
        with pytest.raises(ValueError, match="got 3 rows for candidates of 2 prompts"):
            rule(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 3))

    def test_bad_input(self):
        trie = ItemTrie(random_codes(), CODES)
        ids = torch.zeros(1, 1 + LEVELS, dtype=torch.int64)
        with pytest.raises(ValueError, match="a semantic ID has 3 tokens and all are written: set max_new_tokens to 3"):
            TrieLogitsProcessor(trie, FIRST, prompt_length=1)(ids, torch.zeros(1, VOCABULARY))
        with pytest.raises(ValueError, match="first_index_token is 30: 3 levels of 4 codes take the tokens up to 41, and the mo"):
            TrieLogitsProcessor(trie, 30, prompt_length=1)(ids, torch.zeros(1, VOCABULARY))
        with pytest.raises(ValueError, match="prompt_length is -1"):
            TrieLogitsProcessor(trie, FIRST, prompt_length=-1)

    def test_greedy_writing_ends_with_the_end_token(self, gpt2):
        ids, mask = padded("left")
        codes = random_codes()
        rule = TrieLogitsProcessor(ItemTrie(codes, CODES), FIRST, ids.shape[1], end_token_id=END)
        written = gpt2.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=8, logits_processor=[rule])
        assert written[:, ids.shape[1] + LEVELS].tolist() == [END] * 3
        tokens = written[:, ids.shape[1] : ids.shape[1] + LEVELS].numpy() - FIRST - CODES * np.arange(LEVELS)
        assert all(row in codes.tolist() for row in tokens.tolist())


class TestBeamSearch:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_with_beams_for_all_it_is_brute_force(self, model, side):
        codes = random_codes()
        expected = brute_force(model, codes)
        items, scores, _ = beam_search(model, *padded(side), ItemTrie(codes, CODES), FIRST, ITEMS + 5)
        for row in range(len(PROMPTS)):
            order, values = ranked(expected[row])
            assert items[row].tolist() == order + [-1] * 5
            np.testing.assert_allclose(scores[row, :ITEMS], values, rtol=1e-4, atol=1e-4)
            assert (scores[row, ITEMS:] == -np.inf).all()

    @pytest.mark.parametrize("num_beams", [1, 7, ITEMS + 5])
    def test_the_codes_that_were_written_are_those_of_the_items(self, gpt2, num_beams):
        codes = random_codes()
        seen = (np.array([0, 2, 2, 2 + ITEMS]), np.array([1, 2, *range(ITEMS)]))
        found = beam_search(gpt2, *padded(), ItemTrie(codes, CODES), FIRST, num_beams, seen=seen)
        written = np.where(found.items[..., None] < 0, -1, codes[found.items])
        assert np.array_equal(found.codes, written) and found.codes.shape == (3, num_beams, LEVELS)
        assert np.array_equal(SemanticIds(codes, CODES).items_of(found.codes.numpy()), found.items)

    @pytest.mark.parametrize("num_beams", [1, 3, 7])
    def test_equals_generate(self, model, num_beams):
        codes = random_codes()
        ids, mask = padded("left")
        rule = TrieLogitsProcessor(ItemTrie(codes, CODES), FIRST, ids.shape[1])
        written = model.generate(
            ids,
            attention_mask=mask,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            do_sample=False,
            max_new_tokens=LEVELS,
            logits_processor=[rule],
            return_dict_in_generate=True,
            output_scores=True,
        )
        tokens = written.sequences[:, ids.shape[1] :].numpy() - FIRST - CODES * np.arange(LEVELS)
        index = {tuple(row): item for item, row in enumerate(codes.tolist())}
        expected = np.array([index[tuple(row)] for row in tokens.tolist()]).reshape(len(PROMPTS), num_beams)
        items, scores = searched(model, codes, num_beams)
        assert items.tolist() == expected.tolist()
        if num_beams > 1:  # `generate` divides by the number of tokens
            theirs = written.sequences_scores.view(len(PROMPTS), num_beams) * LEVELS
            np.testing.assert_allclose(scores, theirs, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("levels", [1, 2, 4])
    def test_other_depths(self, gpt2, levels):
        codes = random_codes(min(ITEMS, CODES**levels), levels)
        expected = brute_force(gpt2, codes)
        items, scores = searched(gpt2, codes, len(codes))
        assert items.tolist() == [ranked(row)[0] for row in expected]
        np.testing.assert_allclose(score_all(gpt2, *padded(), ItemTrie(codes, CODES), FIRST), expected, rtol=1e-4, atol=1e-4)

    @given(st.data())
    def test_pruned_by_seen_and_candidates(self, gpt2, data):
        codes = random_codes()
        expected = brute_force(gpt2, codes)
        some = st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=10)
        candidates = data.draw(st.one_of(st.none(), some.filter(lambda items: len(items) > 4)))
        seen = [data.draw(some.map(lambda items: items[:4])) for _ in PROMPTS]
        num_beams = data.draw(st.sampled_from([1, 4, ITEMS]))
        pruned = (np.cumsum([0, *map(len, seen)]), np.array([item for row in seen for item in row], dtype=np.int32))
        items, scores = searched(gpt2, codes, num_beams, seen=pruned, candidates=candidates)
        for row, has_seen in enumerate(seen):
            unseen = np.isin(np.arange(ITEMS), np.arange(ITEMS) if candidates is None else candidates)
            unseen[has_seen] = False
            order, values = ranked(expected[row], unseen)
            real = items[row][items[row] >= 0]
            assert len(set(real.tolist())) == len(real) == min(num_beams, len(order))  # no beam wasted, no item twice
            assert set(real.tolist()) <= set(order)
            np.testing.assert_allclose(scores[row, : len(real)], expected[row, real], rtol=1e-4, atol=1e-4)
            if num_beams == ITEMS:
                assert real.tolist() == order

    def test_a_seen_item_never_takes_a_beam(self, gpt2):
        codes = random_codes()
        best = [ranked(row)[0] for row in brute_force(gpt2, codes)]
        seen = (np.array([0, 8, 16, 24]), np.concatenate([order[:8] for order in best]))
        items, _ = searched(gpt2, codes, 5, seen=seen)
        assert (items >= 0).all()
        assert not any(set(row) & set(order[:8]) for row, order in zip(items.tolist(), best, strict=True))

    def test_equal_scores_go_by_item_index(self, gpt2):
        flat = make_model("gpt2")
        for parameter in flat.parameters():
            parameter.data.zero_()
        items, scores = searched(flat, random_codes(), ITEMS)
        assert items.tolist() == [list(range(ITEMS))] * 3
        np.testing.assert_allclose(scores, -LEVELS * np.log(VOCABULARY), rtol=1e-5)

    def test_a_batch_is_its_rows(self, model):
        trie = ItemTrie(random_codes(), CODES)
        items, scores = searched(model, random_codes(), 6)
        for row, prompt in enumerate(PROMPTS):
            alone = beam_search(model, torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.int64), trie, FIRST, 6)
            assert alone[0][0].tolist() == items[row].tolist()
            np.testing.assert_allclose(alone[1][0], scores[row], rtol=1e-4, atol=1e-4)

    def test_sampling_settings_of_the_model_do_not_leak_in(self, gpt2):
        model = make_model("gpt2")
        model.generation_config.update(do_sample=True, temperature=5.0, num_beams=2, length_penalty=3.0)
        ours, again, expected = (
            searched(model, random_codes(), 4),
            searched(model, random_codes(), 4),
            searched(make_model("gpt2"), random_codes(), 4),
        )
        for one, two, three in zip(ours, again, expected, strict=True):
            assert np.array_equal(one, two) and np.array_equal(one, three)


class TestScoring:
    @pytest.mark.parametrize("nodes_at_a_time", [1, 3, 1000])
    def test_all_items_equal_brute_force(self, model, nodes_at_a_time):
        codes = random_codes()
        scores = score_all(model, *padded(), ItemTrie(codes, CODES), FIRST, nodes_at_a_time=nodes_at_a_time)
        assert scores.shape == (len(PROMPTS), ITEMS) and scores.dtype == torch.float32
        np.testing.assert_allclose(scores, brute_force(model, codes), rtol=1e-4, atol=1e-4)

    def test_one_level(self, model):
        codes = random_codes(CODES, 1)
        scores = score_all(model, *padded(), ItemTrie(codes, CODES), FIRST)
        np.testing.assert_allclose(scores, brute_force(model, codes), rtol=1e-4, atol=1e-4)

    def test_what_few_beams_find_has_its_exact_score(self, model):
        items, scores = searched(model, random_codes(), 6)
        exact = score_all(model, *padded(), ItemTrie(random_codes(), CODES), FIRST)
        np.testing.assert_allclose(np.take_along_axis(exact.numpy(), items, 1), scores, rtol=1e-4, atol=1e-4)

    def test_logits_in_pieces_are_the_same(self, gpt2, monkeypatch):
        trie = ItemTrie(random_codes(), CODES)
        whole = score_all(gpt2, *padded(), trie, FIRST)
        monkeypatch.setattr("modeling_cllm4rec.lcrec.prompt_tree.LOGITS_AT_A_TIME", 2 * VOCABULARY)
        torch.testing.assert_close(score_all(gpt2, *padded(), trie, FIRST), whole)

    def test_half_precision_weights(self):
        model = make_model("llama").to(torch.bfloat16)
        codes = random_codes()
        scores = score_all(model, *padded(), ItemTrie(codes, CODES), FIRST)
        assert scores.dtype == torch.float32
        np.testing.assert_allclose(scores, brute_force(model.float(), codes), atol=0.5)


class TestBadInput:
    def search(self, model: PreTrainedModel, prompts: Any = None, mask: Any = None, num_beams: int = 2) -> Any:
        ids, right = padded()
        ids = ids if prompts is None else prompts
        return beam_search(model, ids, right if mask is None else mask, ItemTrie(random_codes(), CODES), FIRST, num_beams)

    @pytest.mark.parametrize("num_beams", [0, -3])
    def test_beams(self, gpt2, num_beams):
        with pytest.raises(ValueError, match=f"num_beams is {num_beams}; it must be 1 or more"):
            self.search(gpt2, num_beams=num_beams)

    def test_a_row_that_may_be_given_nothing(self, gpt2):
        trie = ItemTrie(random_codes(), CODES)
        whole = beam_search(gpt2, *padded(), trie, FIRST, 2, candidates=[1, 2])
        seen = (np.array([0, 0, 0, 2]), np.array([1, 2]))
        items, scores, _ = beam_search(gpt2, *padded(), trie, FIRST, 2, seen=seen, candidates=[1, 2])
        assert torch.equal(items[:2], whole[0][:2]) and torch.equal(scores[:2], whole[1][:2])
        assert items[2].tolist() == [-1, -1] and scores[2].tolist() == [-np.inf, -np.inf]
        everyone = (np.array([0, 2, 4, 6]), np.array([1, 2] * 3))
        items, scores, _ = beam_search(gpt2, *padded(), trie, FIRST, 2, seen=everyone, candidates=[1, 2])
        assert items.tolist() == [[-1, -1]] * 3 and scores.shape == (3, 2) and scores.isneginf().all()

    def test_a_prompt_that_leaves_no_room(self, model):
        fits = torch.full((1, CONTEXT - LEVELS), 3)
        assert (self.search(model, fits, torch.ones_like(fits))[0] >= 0).all()
        too_long = torch.full((1, CONTEXT - LEVELS + 1), 3)
        with pytest.raises(ValueError, match="row 0: the prompt takes 22 tokens and a semantic ID 3, but the context holds 24"):
            self.search(model, too_long, torch.ones_like(too_long))

    def test_prompts_that_are_empty_or_misshapen(self, gpt2):
        ids, mask = padded()
        with pytest.raises(ValueError, match="row 1: the prompt is empty"):
            self.search(gpt2, ids, mask * torch.tensor([[1], [0], [1]]))
        with pytest.raises(ValueError, match=r"input_ids have shape \(3, 5\) and attention_mask \(3, 4\)"):
            self.search(gpt2, ids, mask[:, :4])

    def test_index_tokens_beyond_the_vocabulary(self, gpt2):
        with pytest.raises(ValueError, match="first_index_token is 990: 3 levels of 4 codes take the tokens up to 1001"):
            score_all(gpt2, *padded(), ItemTrie(random_codes(), CODES), 990)

    def test_training_mode(self):
        with pytest.raises(ValueError, match=r"training mode, where dropout makes scores random; call \.eval\(\)"):
            self.search(make_model("gpt2").train())

    def test_pieces(self, gpt2):
        trie = ItemTrie(random_codes(), CODES)
        with pytest.raises(ValueError, match="nodes_at_a_time is 0"):
            score_all(gpt2, *padded(), trie, FIRST, nodes_at_a_time=0)

    def test_kinds_of_attention(self, gpt2):
        model = make_model("llama")
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match="attn_implementation is 'flash_attention_2', .* with one of eager, sdpa"):
            self.search(model)
        model = make_model("qwen2")
        model.config.layer_types = ["full_attention", "linear_attention"]
        with pytest.raises(ValueError, match="layers of linear_attention; beams can share a cache of attention layers only"):
            self.search(model)

    def test_a_sliding_window(self):
        for window in (8, 7):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(MistralConfig(**ROTARY, sliding_window=window)).eval()
            if window == 8:
                items, _ = searched(model, random_codes(), ITEMS)
                assert items.tolist() == [ranked(row)[0] for row in brute_force(model, random_codes())]
            else:
                with pytest.raises(ValueError, match="take 8 tokens, and the backbone's sliding window holds 7"):
                    self.search(model)


def test_the_probe_accepts_ordinary_models(model):
    check_tree_attention(model)


def test_the_probe_refuses_a_model_with_another_head():
    class Capped(type(make_model("gpt2"))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits.tanh()
            return outputs

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Capped(SHAPES["gpt2"]()).eval()
    with pytest.raises(ValueError, match="Capped scores a semantic ID .* nats apart when beams share one cache"):
        check_tree_attention(model)
