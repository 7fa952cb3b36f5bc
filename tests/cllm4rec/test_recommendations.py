"""`recommend`: external ids in and out, against brute force, and every question that it must refuse."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.core.catalogue import Catalogue
from modeling_cllm4rec.corpora.data_folder import Histories

USERS = ["ann", "user 1", "🎸", "dora"]
ITEMS = [f"item {number}" for number in range(10)] + ["<item_0>", "ä"]
HISTORIES = {"ann": [0, 3, 5], "user 1": [11], "🎸": [2, 3, 4, 5, 6, 7], "dora": []}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SCHEMA = {"user": pa.string(), "item": pa.string(), "rank": pa.int32(), "score": pa.float32()}
gpt2_only = pytest.mark.parametrize("backbone", ["gpt2"], indirect=True)


@torch.no_grad()
def brute_force(model, tokenizer, user: str | None, history: list[int], allowed: list[int], k: int) -> list[dict]:
    """One user: the prompt as text, one forward pass without padding, one score after the other, sorted."""
    who = "Someone" if user is None else f"<user_{USERS.index(user)}>"
    text = f"{who} chose:{''.join(f' <item_{item}>' for item in history)}. Next:"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    hidden = model.hidden_states(torch.tensor([ids]), None, "collaborative")[0, -1]
    scores = {item: float(hidden @ model.item_collaborative.weight[item]) for item in allowed if item not in history}
    best = sorted(scores, key=lambda item: (-scores[item], item))[:k]
    return [{"item": ITEMS[item], "rank": rank, "score": scores[item]} for rank, item in enumerate(best, 1)]


def check(rows: list[dict], expected: list[dict], user) -> None:
    assert [(row["user"], row["item"], row["rank"]) for row in rows] == [(user, row["item"], row["rank"]) for row in expected]
    np.testing.assert_allclose([row["score"] for row in rows], [row["score"] for row in expected], rtol=1e-4, atol=1e-4)


def test_equals_brute_force_for_users_histories_and_both(recommender, tokenizer):
    everything = list(range(len(ITEMS)))
    known = recommender.recommend(users=USERS, k=4)
    assert dict(zip(known.table.column_names, known.table.schema.types, strict=True)) == SCHEMA
    given_histories = [[1, 2], [3], [8, 9, 10, 11], [0]]
    named = [[ITEMS[item] for item in history] for history in given_histories]
    both = recommender.recommend(users=USERS, histories=named, k=4)
    anonymous = recommender.recommend(histories=named, k=4)
    for number, user in enumerate(USERS):
        rows = known.to_pylist()[4 * number : 4 * number + 4]
        check(rows, brute_force(recommender, tokenizer, user, HISTORIES[user], everything, 4), user)
        rows = both.to_pylist()[4 * number : 4 * number + 4]
        check(rows, brute_force(recommender, tokenizer, user, given_histories[number], everything, 4), user)
        rows = anonymous.to_pylist()[4 * number : 4 * number + 4]
        check(rows, brute_force(recommender, tokenizer, None, given_histories[number], everything, 4), number)


def test_the_batch_size_changes_no_rank(recommender):
    question = {"users": USERS * 3, "k": 5}
    whole = recommender.recommend(**question).table
    for batch_size in (1, 5):
        parts = list(recommender.iter_recommendations(**question, batch_size=batch_size))
        assert len(parts) == -(-12 // batch_size)
        table = pa.concat_tables(parts)
        assert table.drop(["score"]).equals(whole.drop(["score"]))
        np.testing.assert_allclose(table["score"], whole["score"], rtol=1e-4, atol=1e-4)
        assert table.schema == whole.schema


@gpt2_only
def test_repeated_calls_give_the_same_and_change_nothing(saved):
    model = CLLM4RecForRecommendation.from_pretrained(saved)
    first = model.recommend(users=USERS, k=5).table
    for seed in range(2):
        torch.manual_seed(seed)
        assert model.recommend(users=USERS, k=5).table.equals(first)
        model.train()  # with dropout; scoring switches it off, and on again
    assert model.recommend(users=USERS, k=5).table.equals(first)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


@gpt2_only
def test_seen_items_are_left_out_unless_asked_for(recommender):
    everything = recommender.recommend(users=["ann"], k=12, exclude_seen=False).items("ann")
    assert sorted(everything) == sorted(ITEMS)
    unseen = recommender.recommend(users=["ann"], k=12).items("ann")
    assert unseen == [item for item in everything if item not in {"item 0", "item 3", "item 5"}]
    # The given history counts, not the stored one:
    given_one = recommender.recommend(users=["ann"], histories=[["item 7"]], k=12).items("ann")
    assert sorted(given_one) == sorted(set(ITEMS) - {"item 7"})


@gpt2_only
def test_candidates(recommender):
    whole = recommender.recommend(users=["ann", "dora"], k=12, exclude_seen=False)
    wanted = ["ä", "item 3", "item 9", "item 3", "item 0"]  # in any order, some twice
    chosen = recommender.recommend(users=["ann", "dora"], k=4, exclude_seen=False, candidates=wanted)
    unseen = recommender.recommend(users=["ann", "dora"], k=4, candidates=wanted)
    for user in ("ann", "dora"):
        assert chosen.items(user) == [item for item in whole.items(user) if item in wanted]
        seen = {ITEMS[item] for item in HISTORIES[user]}
        assert unseen.items(user) == [item for item in chosen.items(user) if item not in seen]
    assert chosen.to_pylist()[1]["score"] in {row["score"] for row in whole.to_pylist()}


@gpt2_only
def test_who_has_seen_all_candidates_gets_no_rows(recommender):
    with pytest.warns(UserWarning, match=r"no item is left to recommend to 1 of the users, who have seen all 2.*: \['ann'\]"):
        table = recommender.recommend(users=["user 1", "ann"], k=1, candidates=["item 0", "item 3"]).table
    assert table["user"].to_pylist() == ["user 1"]
    assert table.schema == recommender.recommend(users=["ann"], k=1).table.schema


@gpt2_only
@torch.no_grad()
def test_equal_scores_rank_by_item_index(saved):
    model = CLLM4RecForRecommendation.from_pretrained(saved)
    model.item_collaborative.weight[:] = model.item_collaborative.weight[0].clone()
    assert model.recommend(users=["dora"], k=5).items("dora") == ITEMS[:5]
    assert model.recommend(users=["dora"], k=2, candidates=["ä", "item 9", "item 4"]).items("dora") == ["item 4", "item 9"]
    assert model.recommend(users=["ann"], k=3).items("ann") == ["item 1", "item 2", "item 4"]


@gpt2_only
def test_users_in_any_order_and_any_container(recommender):
    expected = recommender.recommend(users=["🎸", "ann", "🎸"], k=2).table
    assert expected["user"].to_pylist() == ["🎸", "🎸", "ann", "ann", "🎸", "🎸"]
    for users in (("🎸", "ann", "🎸"), np.array(["🎸", "ann", "🎸"]), pa.array(["🎸", "ann", "🎸"]).to_pylist()):
        assert recommender.recommend(users=users, k=2).table.equals(expected)


@gpt2_only
def test_integer_ids_come_back_as_integers(backbone, recommender):
    model = CLLM4RecForRecommendation.from_backbone(backbone, users=[900, -5], catalogue=[30, 10, 20])
    model.config.recommendation_prompts = recommender.config.recommendation_prompts
    table = model.recommend(users=[-5, 900], histories=[[30], [10, 20]], k=1).table
    assert table.schema.types == [pa.int64(), pa.int64(), pa.int32(), pa.float32()]
    assert table["user"].to_pylist() == [-5, 900]
    assert table["item"][1].as_py() == 30
    assert model.recommend(users=np.array([-5]), histories=[np.array([30])], k=1).items(-5) == table["item"].to_pylist()[:1]
    for wrong in ({"users": ["900"], "histories": [[30]]}, {"histories": [["30"]]}):
        with pytest.raises(ValueError, match=r"is \['(900|30)'\]; allowed: whole numbers"):
            model.recommend(**wrong, k=1)


@gpt2_only
@pytest.mark.parametrize("question", [{"users": []}, {"histories": []}, {"users": [], "histories": []}])
def test_nobody_gets_an_empty_table(recommender, question):
    table = recommender.recommend(**question, k=3).table
    assert table.num_rows == 0
    filled = {"users": ["ann"]} if "users" in question else {"histories": [["ä"]]}
    assert table.schema == recommender.recommend(**filled, k=3).table.schema


# ---- Long histories ----


@gpt2_only
@settings(max_examples=10)
@given(st.lists(st.integers(0, 11), min_size=100, max_size=400))
def test_of_a_history_longer_than_the_context_the_last_items_count(recommender, history):
    words = {
        name: sum(1 if piece == "user" else len(piece) for piece in pieces if piece != "items")
        for name, pieces in recommender.config.recommendation_prompts.items()
    }
    for users, name in ((np.array([1]), "known"), (None, "anonymous")):
        (prompt,) = recommender.build_prompts(users, [np.array(history)])
        room = 128 - words[name]
        assert len(prompt) == min(128, words[name] + len(history))
        closing = recommender.config.recommendation_prompts[name][-1]
        assert prompt[-len(closing) :].tolist() == closing
        items = (prompt[: -len(closing)][-min(room, len(history)) :] - recommender.config.id_offset - 4).tolist()
        assert items == history[-room:]


@gpt2_only
def test_recommendations_from_a_long_history(recommender):
    long = [ITEMS[number % 11] for number in range(500)]
    words = sum(len(piece) for piece in recommender.config.recommendation_prompts["anonymous"] if piece != "items")
    cut = long[-(128 - words) :]
    first = recommender.recommend(histories=[long], k=5, exclude_seen=False).table
    assert first.equals(recommender.recommend(histories=[cut], k=5, exclude_seen=False).table)
    # What does not fit is not read, but seen it is:
    with pytest.warns(UserWarning, match=r"seen all 12 to choose from: \[0\]"):
        assert recommender.recommend(histories=[["ä", *long]], k=1).table.num_rows == 0
    assert recommender.recommend(histories=[long], k=5).items(0) == ["ä"]


@gpt2_only
def test_a_shorter_limit_of_the_configuration(saved):
    model = CLLM4RecForRecommendation.from_pretrained(saved)
    words = sum(len(piece) for piece in model.config.recommendation_prompts["anonymous"] if piece != "items")
    model.config.max_history_tokens = words + 2
    question = {"k": 3, "exclude_seen": False}
    cut = model.recommend(histories=[["item 1", "item 2", "item 3"]], **question).table
    assert cut.equals(model.recommend(histories=[["item 2", "item 3"]], **question).table)
    model.config.max_history_tokens = words
    with pytest.raises(ValueError, match=f"own words take {words} tokens and the context holds {words}: no item"):
        model.recommend(histories=[["item 1"]], k=1)


# ---- score_histories, what evaluation asks ----


@gpt2_only
def test_scores_of_histories(recommender):
    histories = Histories(np.array([0, 3, 4, 10, 10]), np.array([0, 3, 5, 11, 2, 3, 4, 5, 6, 7], np.int32))
    scores = recommender.score_histories(np.arange(4), histories)
    assert scores.shape == (4, 12)
    assert scores.dtype == np.float32
    table = recommender.recommend(users=USERS, k=12, exclude_seen=False).table
    for number in range(4):
        rows = table.slice(12 * number, 12).to_pylist()
        np.testing.assert_allclose(
            [scores[number, ITEMS.index(row["item"])] for row in rows], [row["score"] for row in rows], **CLOSE
        )
    mixed = recommender.score_histories(np.array([-1, 1, -1, 3]), histories)  # -1: a user without an ID token
    anonymous = recommender.score_histories(None, Histories(histories.indptr[:4], histories.items))
    np.testing.assert_allclose(mixed[[0, 2]], anonymous[[0, 2]], **CLOSE)
    np.testing.assert_allclose(mixed[[1, 3]], scores[[1, 3]], **CLOSE)


# ---- Questions that are refused ----


@gpt2_only
@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({}, "users is None; allowed: users, histories, or both"),
        ({"users": "ann"}, r"users is 'ann'; allowed: a list of ids; put it in \[ \]"),
        ({"users": 3}, r"users is 3; allowed: a list of ids"),
        ({"histories": "ä"}, r"histories is 'ä'; allowed: a list of ids"),
        ({"histories": ["ä", "item 1"]}, r"histories\[0\] is 'ä'; allowed: a list of ids"),
        ({"histories": [["ä"], 7]}, r"histories\[1\] is 7; allowed: a list of ids"),
        ({"users": ["ann"], "candidates": "ä"}, r"candidates is 'ä'; allowed: a list of ids"),
        ({"users": ["ann"], "histories": [["ä"], ["ä"]]}, "allowed: a list of 1, one for each of the users"),
        ({"users": ["ann"], "k": 0}, "k is 0; allowed: a whole number from 1 to 12, the items to choose from"),
        ({"users": ["ann"], "k": -2}, "k is -2; allowed: a whole number from 1 to 12"),
        ({"users": ["ann"], "k": 13}, "k is 13; allowed: a whole number from 1 to 12"),
        ({"users": ["ann"], "k": 3, "candidates": ["ä", "item 1", "ä"]}, "k is 3; allowed: a whole number from 1 to 2"),
        ({"users": ["ann"], "k": 1, "candidates": []}, r"candidates is \[\]; allowed: at least one known item id"),
        ({"users": ["ann"], "batch_size": 0}, "batch_size is 0; allowed: a whole number of 1 or more"),
        (
            {"users": ["ann", "eve", "zoe"]},
            r"users is \['eve', 'zoe'\]; allowed: the 4 user_ids.* 2 in all, or pass on_unknown='skip'",
        ),
        ({"users": [0]}, r"users is \[0\]; allowed: strings; the user_ids of this model"),
        ({"histories": [["ä"], ["item 1", "item 77"]]}, r"histories\[1\] is \['item 77'\]; allowed: the 12 item_ids"),
        ({"users": ["ann"], "candidates": ["ä", "x"], "k": 1}, r"candidates is \['x'\]; allowed: the 12 item_ids"),
        ({"users": ["ann"], "on_unknown": "ignore"}, "on_unknown is 'ignore'; allowed: 'raise' and 'skip'"),
        ({"histories": [["ä"], []]}, r"histories\[1\] is \[\]; allowed: a history with at least one known item; give it an item"),
    ],
)
def test_questions_that_are_refused(recommender, question, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(**question)


@gpt2_only
def test_unknown_ids_are_skipped_when_asked(recommender):
    table = recommender.recommend(users=["eve", "ann", "zoe", "🎸"], k=2, on_unknown="skip").table
    assert table.equals(recommender.recommend(users=["ann", "🎸"], k=2).table)
    histories = [["item 1"], ["item 2", "x", "item 3"]]
    both = recommender.recommend(users=["eve", "ann"], histories=histories, k=2, on_unknown="skip").table
    assert both.equals(recommender.recommend(users=["ann"], histories=[["item 2", "item 3"]], k=2).table)
    chosen = recommender.recommend(users=["ann"], candidates=["x", "ä"], k=1, on_unknown="skip")
    assert chosen.items("ann") == ["ä"]
    assert len(recommender.recommend(users=["eve"], k=2, on_unknown="skip")) == 0
    unseen = recommender.recommend(histories=[["item 1"], ["x"], [], ["item 2"]], k=2, on_unknown="skip").table
    assert unseen["user"].to_pylist() == [0, 0, 3, 3]  # a batch goes on without users whose items are all unknown
    alone = recommender.recommend(histories=[["item 1"], ["item 2"]], k=2).table
    assert unseen.drop(["user"]).equals(alone.drop(["user"]))


@gpt2_only
def test_a_known_user_needs_no_history(recommender):
    assert len(recommender.recommend(users=["dora"], k=12)) == 12
    assert recommender.recommend(users=["dora"], histories=[[]], k=3).table.equals(
        recommender.recommend(users=["dora"], k=3).table
    )


@gpt2_only
def test_models_that_lack_a_part(backbone, recommender):
    model = CLLM4RecForRecommendation.from_backbone(backbone, num_users=1, num_items=2)
    with pytest.raises(ValueError, match=r"this model has no catalogue \(catalogue.parquet\), so it cannot name items"):
        model.recommend(histories=[["a"]], k=1)
    model.catalogue = Catalogue(["a", "b"])
    with pytest.raises(ValueError, match="this model knows no users; give histories instead"):
        model.recommend(users=["ann"], k=1)
    with pytest.raises(ValueError, match="this model has no recommendation prompt yet: finetune it, or set"):
        model.recommend(histories=[["a"]], k=1)
    model.config.recommendation_prompts = recommender.config.recommendation_prompts
    assert model.recommend(histories=[["a"]], k=1).items(0) == ["b"]


@gpt2_only
@torch.no_grad()
def test_broken_weights_are_not_ranked_with(saved):
    model = CLLM4RecForRecommendation.from_pretrained(saved)
    model.item_collaborative.weight[3, 0] = float("nan")
    with pytest.raises(ValueError, match="scores hold NaN: the model's weights or inputs are broken"):
        model.recommend(users=["dora"], k=1)


@gpt2_only
def test_a_prompt_limit_beyond_the_context_is_refused(recommender: CLLM4RecForRecommendation) -> None:
    before = recommender.config.max_history_tokens
    recommender.config.max_history_tokens = recommender.config.context_length + 1
    try:
        with pytest.raises(ValueError, match=r"max_history_tokens is \d+; the backbone's context allows 1 to \d+"):
            recommender.recommend(users=recommender.users.ids.ids_of([0]), k=1)
    finally:
        recommender.config.max_history_tokens = before
