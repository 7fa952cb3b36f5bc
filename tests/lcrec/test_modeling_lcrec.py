"""LC-Rec: what it recommends against brute force, its folder, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import lcrec_models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lcrec_models import CODES, HISTORIES, ITEMS, LEVELS, USERS
from transformers import AutoConfig, AutoModel, AutoTokenizer

from modeling_cllm4rec.core.saved_folder import flat_code
from modeling_cllm4rec.core.top_items import PADDING
from modeling_cllm4rec.evaluation.evaluator import select_users
from modeling_cllm4rec.evaluation.ranking import histories_from_lists
from modeling_cllm4rec.lcrec.configuration_lcrec import LCRecConfig
from modeling_cllm4rec.lcrec.constrained_decoding import TrieLogitsProcessor
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.prompts import semantic_id_tokens
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.lcrec.token_rows import start_semantic_id_rows

BACKBONES = ["gpt2", "gpt2-untied", "llama", "llama-tied", "qwen2"]


@pytest.fixture(params=BACKBONES)
def backbone(request, tiny_backbones) -> Path:
    return tiny_backbones[request.param]


@pytest.fixture
def model(backbone) -> LCRecForRecommendation:
    return lcrec_models.new_lcrec(backbone)[0]


@pytest.fixture
def gpt2(tiny_backbones) -> LCRecForRecommendation:
    return lcrec_models.new_lcrec(tiny_backbones["gpt2"])[0]


def brute_force(model: LCRecForRecommendation, history: list[int], template: int = 0) -> np.ndarray:
    """(J,) ln p of every item's index, each by a pass of its own."""
    prompt = torch.from_numpy(model.build_prompts(None, [np.array(history)], template)[0])
    scores = []
    for tokens in semantic_id_tokens(model.semantic_ids.codes, model.config.first_index_token, CODES):
        ids = torch.cat([prompt, torch.from_numpy(tokens)])[None]
        with torch.no_grad():
            logits = model(ids).logits[0].log_softmax(-1)
        places = torch.arange(len(prompt) - 1, len(prompt) - 1 + LEVELS)
        scores.append(float(logits[places, torch.from_numpy(tokens)].sum()))
    return np.array(scores)


def test_recommendations_equal_brute_force(model):
    for scoring in ({"scoring": "all"}, {"num_beams": 12}, {"num_beams": [5, 12]}):
        table = model.recommend(histories=[[ITEMS[item] for item in history] for history in HISTORIES], k=5, **scoring)
        for number, history in enumerate(HISTORIES):
            expected = brute_force(model, history)
            expected[history] = -np.inf
            best = np.argsort(-expected, kind="stable")[:5]
            rows = [row for row in table.to_pylist() if row["user"] == number]
            assert [row["item"] for row in rows] == [ITEMS[item] for item in best]
            np.testing.assert_allclose([row["score"] for row in rows], expected[best], rtol=1e-4, atol=1e-4)


def test_known_users_are_their_histories(gpt2):
    by_user = gpt2.recommend(users=USERS, k=3).to_pandas()
    by_history = gpt2.recommend(histories=[[ITEMS[item] for item in history] for history in HISTORIES], k=3).to_pandas()
    assert by_user["item"].tolist() == by_history["item"].tolist()
    assert by_user["user"].tolist() == [user for user in USERS for _ in range(3)]


@pytest.mark.parametrize("scoring", ["beam", "all"])
def test_an_empty_history_has_no_list_and_changes_no_other(gpt2, scoring):
    """A search has no prompt without items; scored for a sum, all items are alike."""
    users, with_gaps = np.array([2, 0, 1, 2]), histories_from_lists([[], HISTORIES[0], [], HISTORIES[2]])
    others = select_users(with_gaps, np.array([1, 3]))
    ranked = gpt2.rank_histories(users, with_gaps, with_gaps, 4, scoring=scoring)
    assert (ranked[[0, 2]] == PADDING).all()
    assert np.array_equal(ranked[[1, 3]], gpt2.rank_histories(users[[1, 3]], others, others, 4, scoring=scoring))
    scores = gpt2.score_histories(None, with_gaps)
    assert not scores[[0, 2]].any() and np.array_equal(scores[[1, 3]], gpt2.score_histories(None, others))
    nobody = select_users(with_gaps, np.array([0, 2]))
    assert (gpt2.rank_histories(None, nobody, None, 2, scoring=scoring) == PADDING).all()
    assert not gpt2.score_histories(None, nobody).any()


def test_candidates_and_seen_items(gpt2):
    some = [ITEMS[item] for item in (0, 3, 7, 9)]
    assert set(gpt2.recommend(users=["ann"], k=4, candidates=some).to_pandas()["item"]) == {ITEMS[7], ITEMS[9]}
    assert set(gpt2.recommend(users=["ann"], k=4, candidates=some, exclude_seen=False).to_pandas()["item"]) == set(some)


@pytest.mark.parametrize("scoring", ["beam", "all"])
def test_who_has_seen_all_candidates_gets_no_rows(gpt2, scoring):
    table = gpt2.recommend(users=["user 1", "ann"], k=1, candidates=["ä"], scoring=scoring).table
    assert table["user"].to_pylist() == ["ann"] and table["item"].to_pylist() == ["ä"]
    assert gpt2.recommend(users=["user 1"], k=1, candidates=["ä"], scoring=scoring).table.equals(table.slice(0, 0))
    some = gpt2.recommend(users=["🎸"], k=4, candidates=["item 2", "item 3", "ä", "item 0"], scoring=scoring)
    assert set(some.items("🎸")) == {"ä", "item 0"}


def test_users_without_a_history_are_left_out_when_asked(gpt2):
    gpt2.remove_items(["ä"])
    table = gpt2.recommend(users=USERS, k=2, on_unknown="skip").table
    assert table["user"].to_pylist() == ["ann"] * 2 + ["🎸"] * 2
    request = {"users": ["nobody", *USERS], "histories": [["ä"], ["ä"], ["item 2"], ["item 1", "ä"]], "on_unknown": "skip"}
    assert gpt2.recommend(**request, k=1).table["user"].to_pylist() == ["user 1", "🎸"]


def test_templates_differ(gpt2):
    scores = [gpt2.score_prompts(gpt2.build_prompts(None, [np.array([1, 2])], template)) for template in (0, 1)]
    assert not torch.allclose(*scores)
    np.testing.assert_allclose(scores[1][0], brute_force(gpt2, [1, 2], 1), rtol=1e-4, atol=1e-4)


def test_the_language_model_inside_generates_real_items(backbone):
    model, tokenizer = lcrec_models.new_lcrec(backbone)
    prompts = model.build_prompts(None, [np.array([0, 3, 5])])
    ids = torch.from_numpy(prompts[0])[None]
    rules = TrieLogitsProcessor(model.trie, model.config.first_index_token, prompt_length=ids.shape[1])
    written = model.backbone.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=LEVELS,
        do_sample=False,
        logits_processor=[rules],
        pad_token_id=0,
    )
    words = {"".join(tokenizer.convert_ids_to_tokens(row[ids.shape[1] :].tolist())) for row in written}
    assert len(words) == 4
    assert words <= {model.semantic_ids.semantic_id_text(item) for item in range(12)}


def test_a_query_finds_items(backbone, tmp_path):
    model, tokenizer = lcrec_models.new_lcrec(backbone)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = LCRecForRecommendation.from_pretrained(tmp_path)
    alone = loaded.search(["a gentle cleanser", "staples"], k=3)
    assert len(alone) == 6 and set(alone.to_pandas()["item"]) <= set(ITEMS)
    after = loaded.search(["a gentle cleanser"], k=12, histories=[["ä", "item 3"]], num_beams=12)
    assert len(after) == 10 and not {"ä", "item 3"} & set(after.to_pandas()["item"])


def test_queries_are_searched_for_in_batches(tiny_backbones, tmp_path, monkeypatch):
    model, tokenizer = lcrec_models.new_lcrec(tiny_backbones["gpt2"], max_history=2)
    model.tokenizer = tokenizer
    queries = ["a gentle cleanser", "staples", "tea", "a lamp for the night", "soap"]
    request = {"queries": queries, "histories": [["ä", "item 3", "item 5"]] * 5, "k": 3}
    whole = model.search(**request).table
    sizes, best_items = [], model.best_items

    def counted(prompts, *rest, **search):
        sizes.append(len(prompts))
        return best_items(prompts, *rest, **search)

    monkeypatch.setattr(model, "best_items", counted)
    parts = model.search(**request, batch_size=2).table
    assert sizes == [2, 2, 1]
    assert parts.drop(["score"]).equals(whole.drop(["score"])) and parts.schema == whole.schema
    np.testing.assert_allclose(parts["score"], whole["score"], rtol=1e-4, atol=1e-4)
    assert not {"ä", "item 3", "item 5"} & set(whole["item"].to_pylist())  # seen, though only the last two are read
    nothing = model.search([], k=3).table
    assert nothing.num_rows == 0 and nothing.schema == whole.schema


def test_unknown_items_of_a_search_can_be_skipped(tiny_backbones):
    model, model.tokenizer = lcrec_models.new_lcrec(tiny_backbones["gpt2"])
    request = {"queries": ["soap"], "k": 1, "histories": [["x", "item 1"]], "candidates": ["ä", "item 1", "y"]}
    with pytest.raises(ValueError, match=r"candidates is \['y'\]; allowed: the 12 item_ids"):
        model.search(**request)
    assert model.search(**request, on_unknown="skip").items(0) == ["ä"]
    batch = model.search(["soap", "tea", "soap"], 1, [["item 1"], ["x"], ["item 1"]], on_unknown="skip").table
    assert batch["user"].to_pylist() == [0, 2]


def test_the_last_items_of_a_long_history_are_read(tiny_backbones):
    model, _ = lcrec_models.new_lcrec(tiny_backbones["gpt2"], max_history=2)
    long, short = model.build_prompts(None, [np.array([5, 6, 7, 8]), np.array([7, 8])])
    assert long.tolist() == short.tolist()


@pytest.mark.parametrize("backbone", ["gpt2", "llama"], indirect=True)
def test_round_trip(backbone, tmp_path):
    model, tokenizer = lcrec_models.new_lcrec(backbone)
    before = model.recommend(users=USERS, k=5).to_pylist()
    model.save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "moved")
    loaded = AutoModel.from_pretrained(tmp_path / "moved")
    assert type(loaded) is LCRecForRecommendation and type(AutoConfig.from_pretrained(tmp_path / "moved")) is LCRecConfig
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    assert loaded.recommend(users=USERS, k=5).to_pylist() == before
    assert np.array_equal(loaded.semantic_ids.codes, model.semantic_ids.codes)
    assert np.array_equal(loaded.indexer.codebook_array, model.indexer.codebook_array)
    words = AutoTokenizer.from_pretrained(tmp_path / "moved")
    assert words.convert_tokens_to_ids("<a_0>") == model.config.first_index_token
    assert words("<a_0>", split_special_tokens=True, add_special_tokens=False)["input_ids"] != [model.config.first_index_token]


def test_queries_with_semantic_ids_are_read_as_words(backbone, tmp_path):
    """A query cannot name an item by its tokens, nor end the prompt."""
    model, tokenizer = lcrec_models.new_lcrec(backbone)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = LCRecForRecommendation.from_pretrained(tmp_path)
    query = f"<a_0><b_1> or {tokenizer.eos_token}"
    words = tokenizer(query, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    text = loaded.build_query_prompts([query])[0].tolist()
    assert max(text) < model.config.first_index_token and tokenizer.eos_token_id not in text[1:]
    assert any(text[place : place + len(words)] == words for place in range(len(text)))
    assert len(loaded.search([query], k=2)) == 2


def test_start_rows_are_means_of_the_bearers_words(backbone):
    model, _ = lcrec_models.new_lcrec(backbone)
    first, codes = model.config.first_index_token, model.semantic_ids.codes
    before = [weight.detach().clone() for weight in model.id_parameters]
    tokens = [np.array([item % 3, 4 + item % 2]) if item else np.zeros(0, np.int64) for item in range(12)]
    start_semantic_id_rows(model, tokens, noise=0.0)
    for weight, old in zip(model.id_parameters, before, strict=True):
        assert torch.equal(weight[:first], old[:first])
        for level in range(LEVELS):
            for code in range(CODES):
                bearers = [item for item in range(1, 12) if codes[item, level] == code]
                row = weight[first + level * CODES + code]
                if bearers:
                    expected = torch.stack([old[torch.from_numpy(tokens[item])].mean(0) for item in bearers]).mean(0)
                    torch.testing.assert_close(row, expected)
                else:
                    assert torch.equal(row, old[first + level * CODES + code])


class TestBadInput:
    def test_k_and_beams(self, gpt2):
        with pytest.raises(ValueError, match="k is 6; allowed: 1 to 5, the number of beams of the search; give num_beams=6"):
            gpt2.recommend(users=["ann"], k=6)
        with pytest.raises(ValueError, match="num_beams is 0; allowed: a whole number of 1 or more"):
            gpt2.recommend(users=["ann"], k=1, num_beams=0)
        with pytest.raises(ValueError, match="num_beams is 7; allowed: none with scoring='all', which has no beams"):
            gpt2.recommend(users=["ann"], k=1, scoring="all", num_beams=7)
        with pytest.raises(
            ValueError, match="k is 6; allowed: 1 to 5, .* of the search of the last of 2 levels; give num_beams=6"
        ):
            gpt2.recommend(users=["ann"], k=6, num_beams=[9, 5])
        with pytest.raises(ValueError, match=r"num_beams is \[5\]; allowed: a whole number, or a list of 2, one for each level"):
            gpt2.recommend(users=["ann"], k=1, num_beams=[5])
        with pytest.raises(ValueError, match=r"num_beams\[1\] is 0; allowed: a whole number of 1 or more"):
            gpt2.recommend(users=["ann"], k=1, num_beams=[5, 0])
        with pytest.raises(ValueError, match="scoring is 'sample'; allowed: 'beam', 'all' and 'head'"):
            gpt2.recommend(users=["ann"], k=1, scoring="sample")

    def test_no_candidates(self, gpt2):
        with pytest.raises(ValueError, match="candidates are empty; give at least one item"):
            gpt2.best_items(gpt2.build_prompts(None, [np.array([1])]), None, 1, np.zeros(0, np.int64))

    def test_users_without_a_history_are_named_before_any_work(self, gpt2, monkeypatch):
        gpt2.remove_items(["ä"])
        monkeypatch.setattr(gpt2, "build_prompts", lambda *_: pytest.fail("work was begun"))
        message = r"users is \['user 1'\]; allowed: users whose history .* of 1 users are empty .* or pass on_unknown='skip'"
        with pytest.raises(ValueError, match=message):
            gpt2.recommend(users=USERS, k=1, batch_size=1)
        with pytest.raises(ValueError, match=r"histories\[1\] is \[\]; allowed: a history with at least one known item"):
            gpt2.recommend(users=["ann", "user 1"], histories=[["item 1"], []], k=1)
        with pytest.raises(ValueError, match=r"histories\[1\] is \[\]; allowed"):
            gpt2.recommend(histories=[["item 1"], []], k=1, batch_size=1)
        gpt2.users = gpt2.users.without_histories()
        with pytest.raises(ValueError, match="users together with histories; this model keeps no histories; also give histories"):
            gpt2.recommend(users=["ann"], k=1)

    def test_empty_histories_and_queries(self, gpt2):
        with pytest.raises(ValueError, match=r"histories\[0\] is \[\]; allowed"):
            gpt2.recommend(histories=[[]], k=1)
        for query in ("", "  ", None):
            with pytest.raises(
                ValueError, match=r"queries\[0\] is .*; allowed: a text with words; say in words what is looked for"
            ):
                gpt2.search([query], k=1)
        with pytest.raises(ValueError, match="queries is 'soap'; allowed: a list of texts"):
            gpt2.search("soap")
        with pytest.raises(ValueError, match="allowed: a list of 1, one for each of the queries"):
            gpt2.search(["soap"], k=1, histories=[["ä"], ["ä"]])
        with pytest.raises(ValueError, match=r"histories\[1\] is \[\]; allowed: a history with at least one known item"):
            gpt2.search(["soap", "tea"], k=1, histories=[["ä"], []])
        with pytest.raises(ValueError, match="batch_size is 0; allowed: a whole number of 1 or more"):
            gpt2.search(["soap"], k=1, batch_size=0)
        with pytest.raises(ValueError, match="came from no folder, so it has no tokenizer to read queries with; save both"):
            gpt2.search(["soap"], k=1)
        with pytest.raises(ValueError, match="the history of user index 2 is empty"):
            gpt2.build_prompts(np.array([1, 2]), [np.array([1]), np.array([], np.int64)])

    def test_an_index_of_another_catalogue(self, tiny_backbones):
        with pytest.raises(ValueError, match="the index names 3 items and the catalogue has 12"):
            lcrec_models.new_lcrec(tiny_backbones["gpt2"], semantic_ids=SemanticIds(np.array([[0, 0], [0, 1], [1, 0]]), CODES))

    def test_index_tokens_amid_the_words(self, tiny_backbones):
        with pytest.raises(ValueError, match="first_index_token is 3, but the backbone has"):
            lcrec_models.new_lcrec(tiny_backbones["gpt2"], first_index_token=3)

    def test_unknown_field(self, tiny_backbones):
        with pytest.raises(ValueError, match=r"unknown field 'search_beam'; did you mean 'search_beams'"):
            lcrec_models.new_lcrec(tiny_backbones["gpt2"], search_beam=3)

    def test_config_whose_tokens_do_not_fit(self):
        with pytest.raises(ValueError, match="first_index_token is 10: 2 levels of 4 codes end at token 17, but the language"):
            LCRecConfig({"model_type": "gpt2", "vocab_size": 12}, num_levels=2, codebook_size=4, first_index_token=10)

    def test_a_catalogue_whose_codes_collide(self, gpt2, tmp_path):
        gpt2.save_pretrained(tmp_path)
        table = pq.read_table(tmp_path / "catalogue.parquet")
        codes = table["codes"].to_pylist()
        codes[3] = codes[5]
        column = pa.array(codes, pa.list_(pa.int32()))
        pq.write_table(table.set_column(table.column_names.index("codes"), "codes", column), tmp_path / "catalogue.parquet")
        with pytest.raises(ValueError, match="(?i)collide|share|alike|same"):
            LCRecForRecommendation.from_pretrained(tmp_path)

    def test_queries_without_the_task(self, gpt2):
        gpt2.config.query_prompts = None
        with pytest.raises(ValueError, match="this model reads no queries; .* an LC-Rec model aligned with the task itemsearch"):
            gpt2.search(["soap"])


def test_the_folder_holds_its_code(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_lcrec.LCRecForRecommendation"
    code = flat_code(type(gpt2))
    assert {file: (tmp_path / file).read_bytes() for file in code} == code
    assert (tmp_path / "rqvae" / "config.json").is_file()
