"""A catalogue and a public that change: what is old stays to the bit, what is new has rows, ids and tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from transformers import AutoTokenizer

from modeling_cllm4rec.cllm4rec.catalogue_changes import RIDGES, append_rows, mean_word_rows, regress_rows
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation, CLLM4RecModel
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers, extended_catalogue

pytestmark = pytest.mark.parametrize("backbone", ["gpt2"], indirect=True)
NEW = [{"item_id": "new 1", "title": "a title of something"}, {"item_id": "new 2", "title": "of item 3"}]


@pytest.fixture
def model(saved: Path) -> CLLM4RecForRecommendation:
    """4 users, 12 items; to be changed."""
    return CLLM4RecForRecommendation.from_pretrained(saved)


def tables(model: CLLM4RecModel) -> dict[str, torch.Tensor]:
    return {
        f"{kind} {side}": table.weight.clone()
        for side in SIDES
        for kind, table in zip(("user", "item"), model.tables(side), strict=True)
    }


def scores(model: CLLM4RecForRecommendation, users: list[str]) -> dict[tuple[str, str], float]:
    found = model.recommend(users=users, k=6, candidates=[f"item {number}" for number in range(10)])
    return {(row["user"], row["item"]): row["score"] for row in found.to_pylist()}


@pytest.mark.parametrize("start", ["regression", "words"])
def test_new_items_come_last_and_old_rows_and_scores_stay(model, start):
    before, asked = tables(model), scores(model, ["ann", "🎸"])
    model.add_items(NEW, start=start)
    after = tables(model)
    for name, old in before.items():
        assert torch.equal(after[name][: len(old)], old)
        assert len(after[name]) == len(old) + (2 if "item" in name else 0)
    assert scores(model, ["ann", "🎸"]) == asked
    assert model.num_items == model.config.num_items == len(model.catalogue) == 14
    assert model.catalogue.titles([12, 13]) == ["a title of something", "of item 3"]
    ranked = model.recommend(users=["ann"], k=11).items("ann")
    assert {"new 1", "new 2"} <= set(ranked)
    assert model.recommend(histories=[["new 1", "item 2"]], k=2, candidates=["new 2", "item 1"]).table.num_rows == 2


def test_rows_of_words_are_mean_word_rows(model, saved):
    model.add_items(NEW, start="words")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    ids = tokenizer("of item 3", add_special_tokens=False)["input_ids"]
    expected = model.get_input_embeddings().weight[ids].mean(0)
    for side in SIDES:
        torch.testing.assert_close(model.tables(side)[1].weight[13], expected)


def test_rows_of_a_regression_are_those_of_the_formula(model):
    words = model.get_input_embeddings().weight.detach().numpy()
    old = mean_word_rows(model.catalogue.table, AutoTokenizer.from_pretrained(model.name_or_path), words, ["title"])
    new = mean_word_rows(pa.Table.from_pylist(NEW), AutoTokenizer.from_pretrained(model.name_or_path), words, ["title"])
    expected = {side: regress_rows(old, model.tables(side)[1].weight.detach().numpy(), new, 0.3) for side in SIDES}
    model.add_items(NEW, prediction_scale=0.3)
    for side in SIDES:
        assert np.array_equal(model.tables(side)[1].weight[12:].detach().numpy(), expected[side])
    assert not np.array_equal(expected["collaborative"], expected["content"])


def test_other_classes_grow_too(saved):
    model = CLLM4RecModel.from_pretrained(saved)
    model.add_items(pd.DataFrame(NEW))
    assert len(model.item_content.weight) == 14


def test_a_new_user_moves_item_tokens_and_changes_no_score(model):
    before, asked = tables(model), scores(model, ["ann", "🎸"])
    first_item = model.config.id_offset + model.config.num_users
    model.add_users({"zoe": ["item 1", "item 2"], "yan": ["item 9"]})
    after = tables(model)
    for name, old in before.items():
        assert torch.equal(after[name][: len(old)], old)
    for side in SIDES:
        users = model.tables(side)[0].weight
        torch.testing.assert_close(users[4:], before[f"user {side}"].mean(0).expand(2, -1))
    prompt = model.build_prompts(np.array([4]), [np.array([1, 2])])[0]
    assert model.config.id_offset + 4 in prompt and {first_item + 2 + 1, first_item + 2 + 2} <= set(prompt.tolist())
    assert scores(model, ["ann", "🎸"]) == asked
    assert model.users.history(4).tolist() == [1, 2] and model.users.history(0).tolist() == [0, 3, 5]
    assert "item 1" not in model.recommend(users=["zoe"], k=8).items("zoe")


def test_new_users_of_a_model_without_histories(model):
    model.users = model.users.without_histories()
    model.add_users({"zoe": ["item 1"]})
    assert not model.users.has_histories
    assert model.recommend(users=["zoe"], histories=[["item 1"]], k=2).table.num_rows == 2


def test_removed_items_are_gone(model, tmp_path):
    before, asked = tables(model), scores(model, ["ann"])
    model.remove_items(["item 3", "ä"])
    assert model.num_items == 10 and model.config.catalogue_fingerprint == model.catalogue.ids.fingerprint
    keep = [row for row in range(12) if row not in (3, 11)]
    for name, weight in tables(model).items():
        assert torch.equal(weight, before[name][keep] if "item" in name else before[name])
    assert [model.users.history(user).tolist() for user in range(4)] == [[0, 4], [], [2, 3, 4, 5, 6], []]
    everything = model.recommend(users=["ann"], k=8, exclude_seen=False).items("ann")
    assert not {"item 3", "ä"} & set(everything)
    with pytest.raises(ValueError, match=r"histories\[0\] is \['item 3'\]; allowed: the 10 item_ids that the model knows"):
        model.recommend(histories=[["item 3"]], k=1)
    same = model.recommend(users=["ann"], histories=[["item 0", "item 5"]], k=3, candidates=["item 1", "item 2", "item 4"])
    assert same.table.num_rows == 3 and asked
    model.save_pretrained(tmp_path)
    assert CLLM4RecForRecommendation.from_pretrained(tmp_path).num_items == 10
    model.add_items([{"item_id": "item 3", "title": "title of item 3, again"}])
    assert model.num_items == 11


def test_scores_do_not_know_the_items_that_went(model):
    history = [["item 0", "item 5"]]
    before = model.recommend(histories=history, k=9, exclude_seen=False, candidates=[f"item {n}" for n in range(9)]).to_pylist()
    model.remove_items(["item 9", "ä", "<item_0>"])
    after = model.recommend(histories=history, k=9, exclude_seen=False).to_pylist()
    assert {row["item"]: row["score"] for row in after} == pytest.approx({row["item"]: row["score"] for row in before}, abs=1e-6)


def test_nothing_new_changes_nothing(model):
    before = tables(model)
    model.add_items([])
    model.add_users({})
    assert all(torch.equal(weight, before[name]) for name, weight in tables(model).items())


def test_half_precision_rows_stay_half(saved):
    model = CLLM4RecForRecommendation.from_pretrained(saved, dtype=torch.bfloat16)
    model.item_content.requires_grad_(False)
    model.add_items(NEW)
    assert model.item_content.weight.dtype == torch.bfloat16 and not model.item_content.weight.requires_grad


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"id": "x", "title": "y"}], r"items has no column 'item_id', only \['id', 'title'\]"),
        ([{"item_id": "item 0", "title": "y"}], r"1 of the new item_id are known already: \['item 0'\]"),
        ([{"item_id": "x", "title": "y"}] * 2, r"item_id names some ids twice: \['x'\]"),
        ([{"item_id": 7, "title": "y"}], "the model's ids are strings, the new ones integers"),
        ([{"item_id": None, "title": "y"}, {"item_id": "x", "title": "y"}], "item_id has 1 empty ids"),
        ([{"item_id": "x", "title": "y"}, {"item_id": "z", "title": None}], r"1 of 2 new items have no text in .*: \['z'\]"),
        ([{"item_id": "z", "title": " -- "}], r"1 of 1 new items have no text in any of .*: \['z'\]"),
        ([{"item_id": "z", "brand": "only a brand"}], "nothing to fit it on; choose start='words'"),
        ([{"item_id": "z", "title": float("nan")}], "column 'title' has type double, in the catalogue"),
        ([{"item_id": "a", "title": "b"}, {"item_id": "z", "title": float("nan")}], "items: a column mixes types"),
    ],
)
def test_items_that_cannot_be_added(model, items, message):
    before = tables(model)
    with pytest.raises(ValueError, match=message):
        model.add_items(items)
    assert all(torch.equal(weight, before[name]) for name, weight in tables(model).items()) and model.num_items == 12


def test_missing_titles_of_a_frame(model):
    with pytest.raises(ValueError, match=r"no text in any of \['title'\]: \['z'\]; give them one"):
        model.add_items(pd.DataFrame({"item_id": ["y", "z"], "title": ["a lamp", float("nan")]}))


def test_words_need_a_text_column_of_texts(model):
    with pytest.raises(ValueError, match="column 'brand' has type int64; a text column holds strings or lists of strings"):
        model.add_items([{"item_id": "z", "title": "t", "brand": 3}], start="words")
    with pytest.raises(ValueError, match="start is 'text'; allowed are 'regression' and 'words'"):
        model.add_items(NEW, start="text")
    with pytest.raises(ValueError, match="prediction_scale is 1.5; it must lie between 0 and 1"):
        model.add_items(NEW, prediction_scale=1.5)
    with pytest.raises(ValueError, match="no item that the model has has a text: there is nothing to fit"):
        regress_rows(np.full((2, 3), np.nan), np.zeros((2, 1)), np.zeros((1, 3)))


def test_a_model_that_came_from_no_folder(backbone):
    model = CLLM4RecForRecommendation.from_backbone(backbone, users=["ann"], catalogue=["a", "b"])
    model.config.name_or_path = ""
    with pytest.raises(ValueError, match="came from 'no folder', where there is no tokenizer.json; pass tokenizer="):
        model.add_items(NEW, start="words")
    model.add_items(NEW, start="words", tokenizer=AutoTokenizer.from_pretrained(backbone))
    assert model.num_items == 4
    with pytest.raises(ValueError, match="there is nothing to fit"):
        CLLM4RecForRecommendation.from_backbone(backbone, users=["ann"], catalogue=["a", "b"]).add_items(NEW)


def test_without_external_ids_nothing_can_be_named(backbone):
    model = CLLM4RecForRecommendation.from_backbone(backbone, num_users=1, num_items=2)
    for change in (lambda: model.add_items(NEW), lambda: model.remove_items(["a"])):
        with pytest.raises(ValueError, match="this model has no catalogue"):
            change()
    with pytest.raises(ValueError, match="this model has no users: its users have no external ids"):
        model.add_users({"zoe": ["a"]})


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ({"ann": ["item 1"]}, r"1 of the new user_id are known already: \['ann'\]"),
        ({"zoe": []}, r"the histories of 1 users are empty: \['zoe'\]"),
        ({"zoe": ["nothing"]}, r"unknown item_id: \['nothing'\]"),
        ({3: ["item 1"]}, "user_id: the model's ids are strings, the new ones integers"),
        ([["item 1"]], "histories is a list; give a dict"),
    ],
)
def test_users_that_cannot_be_added(model, histories, message):
    with pytest.raises(ValueError, match=message):
        model.add_users(histories)
    assert model.config.num_users == len(model.user_content.weight) == 4


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["item 0", "what"], r"1 unknown item_id: \['what'\]; the model knows 12"),
        (["item 0", "item 0"], r"item_ids names some ids twice: \['item 0'\]"),
        ("item 0", "item_ids is the string 'item 0'; give a list"),
        ([f"item {number}" for number in range(10)] + ["<item_0>", "ä"], "nothing would be left to recommend"),
    ],
)
def test_items_that_cannot_be_removed(model, ids, message):
    with pytest.raises(ValueError, match=message):
        model.remove_items(ids)
    assert model.num_items == 12


@pytest.mark.parametrize("rows", [torch.zeros(1, 31), torch.full((1, 32), float("nan"))])
def test_rows_that_cannot_be_appended(model, rows):
    with pytest.raises(ValueError, match=r"new rows have shape .*; they need \(new, 32\) finite ones"):
        append_rows(model.item_content, rows)


def test_the_regression_is_ridge_regression(backbone):
    generator = np.random.default_rng(0)
    x, asked = generator.normal(size=(40, 5)), generator.normal(size=(3, 5))
    z = x @ generator.normal(size=(5, 2)) + generator.normal(size=(40, 2)) + 3
    centred = x - x.mean(0)
    scale = np.linalg.eigvalsh(centred.T @ centred).mean()
    ours = regress_rows(x, z, asked)
    candidates = [Ridge(alpha=ridge * scale).fit(x, z).predict(asked) for ridge in RIDGES]
    nearest = min(np.abs(ours - theirs).max() for theirs in candidates)
    assert nearest < 1e-5
    holes = np.vstack([x, np.full((2, 5), np.nan)])
    assert np.array_equal(regress_rows(holes, np.vstack([z, np.full((2, 2), 1e9)]), asked), ours)


@pytest.mark.parametrize("prediction_scale", [0.0, 0.5, 1.0])
def test_bold_rows_lie_as_far_out_as_trained_ones(backbone, prediction_scale):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3))
    z = np.hstack([x[:, :1], generator.normal(size=(60, 1))])
    distance = {one: np.square(regress_rows(x, z, x, one) - z.mean(0)).sum(1).mean() ** 0.5 for one in (0.0, prediction_scale)}
    ratio = np.square(z - z.mean(0)).sum(1).mean() ** 0.5 / distance[0.0]
    assert ratio > 1.2 and distance[prediction_scale] / distance[0.0] == pytest.approx(ratio**prediction_scale)


def test_what_a_column_does_not_say_counts_as_its_mean(backbone):
    x, z = np.array([[1.0, 5.0], [3.0, np.nan], [5.0, 7.0]]), np.array([[1.0], [3.0], [5.0]])
    filled, asked = np.where(np.isnan(x), 6.0, x), np.array([[2.0, np.nan]])
    assert np.array_equal(regress_rows(x, z, asked), regress_rows(filled, z, np.array([[2.0, 6.0]])))


def test_texts_that_say_nothing_give_the_mean_row(backbone):
    z = np.array([[1.0, 2.0], [3.0, 6.0]])
    assert regress_rows(np.zeros((2, 3)), z, np.ones((1, 3))).tolist() == [[2.0, 4.0]]


@given(st.permutations(range(6)), st.integers(1, 6))
def test_histories_follow_the_items(backbone, order, kept):
    items = np.array([0, 1, 2, 3, 4, 5, 2, 0], dtype=np.int32)
    users = KnownUsers(["a", "b", "c"], np.array([0, 6, 6, 8]), items)
    place = np.full(6, -1)
    place[order[:kept]] = np.arange(kept)
    after = users.renumbered(place)
    for user in range(3):
        assert after.history(user).tolist() == [place[item] for item in users.history(user) if place[item] >= 0]


def test_columns_of_both_sides_are_kept(backbone):
    old = Catalogue(pa.table({"item_id": [1, 2], "title": ["a", "b"]}))
    together, new = extended_catalogue(old, pa.table({"item_id": pa.array([7], pa.int32()), "price": [3.5]}))
    assert together.table.to_pylist()[1:] == [
        {"item_id": 2, "title": "b", "price": None},
        {"item_id": 7, "title": None, "price": 3.5},
    ]
    assert new["item_id"].type == old.ids.array.type
