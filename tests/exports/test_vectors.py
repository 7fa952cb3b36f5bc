"""Vectors: their dot products are the model's scores; the files hold them; the index finds what is nearest."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lcrec_models import new_lcrec
from safetensors.numpy import load_file
from transformers import AutoModel

from modeling_cllm4rec.core.catalogue import KnownUsers
from modeling_cllm4rec.core.similar_items import unit_vectors
from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.exports.command import main
from modeling_cllm4rec.exports.nearest_items import build_index, measure_recall, recall_of
from modeling_cllm4rec.exports.vectors import encode_histories, encode_users, export_vectors

WITH_AN_EMPTY_HISTORY = KnownUsers(["ann", "bob", "eve"], np.array([0, 2, 2, 3]), np.array([0, 3, 7], np.int32))


def read(path, name):
    """Ids and vectors of a Parquet file, which its safetensors file must agree with."""
    table = pq.read_table(path / f"{name}.parquet")
    found = np.stack(table["vector"].to_numpy())
    np.testing.assert_array_equal(load_file(path / f"{name}.safetensors")[name], found)
    return table, found


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "vectors"
    return folder, export_vectors(
        AutoModel.from_pretrained(model_folder), folder, queries=12, batch_size=7, with_index=find_spec("usearch") is not None
    )


def test_dot_products_are_the_models_scores(exported, model):
    folder, about = exported
    items_table, items = read(folder, "item_vectors")
    users_table, users = read(folder, "user_vectors")
    assert items_table["item_id"].to_pylist() == list(range(1000, 1040)) and items_table["title"][3].as_py() == "title 3"
    assert users_table["user_id"].to_pylist() == [f"user {i}" for i in range(20)]
    known = model.users
    scores = model.score_histories(np.arange(20), Histories(known.indptr, known.items))
    np.testing.assert_allclose(users @ items.T, scores, atol=1e-4)
    assert (about["items"], about["users"], about["width"]) == (40, 20, 32)
    assert json.loads((folder / "vectors.json").read_text()) == about


def test_the_query_encoder_is_a_model_of_its_own_without_histories(exported, model):
    encoder = AutoModel.from_pretrained(exported[0] / "query_encoder")
    assert encoder.users.items is None
    history = model.catalogue.ids.indices_of([1004, 1007])
    queries = encode_histories(encoder, None, [history])
    best = int(np.argsort(-(queries @ read(exported[0], "item_vectors")[1].T)[0])[0])
    (row,) = model.recommend(histories=[[1004, 1007]], k=1, exclude_seen=False).to_pylist()
    assert row["item"] == 1000 + best


def test_batches_of_like_lengths_change_nothing(model):
    users = np.arange(20)
    alone = np.concatenate([encode_histories(model, users[i : i + 1], [model.users.history(i)]) for i in users])
    np.testing.assert_allclose(encode_users(model, users, batch_size=6), alone, atol=1e-5)


def test_an_index_finds_the_nearest(exported):
    usearch = pytest.importorskip("usearch.index", reason="needs the extra vectors")
    folder, about = exported
    assert about["recall"]["recall"] == 1.0 and (about["recall"]["k"], about["recall"]["queries"]) == (10, 12)
    items, users = read(folder, "item_vectors")[1], read(folder, "user_vectors")[1]
    index = usearch.Index.restore(str(folder / "items.usearch"))
    found = index.search(users, 3)
    np.testing.assert_array_equal(np.asarray(found.keys), np.argsort(-(users @ items.T), axis=1)[:, :3])


def test_recall_of_a_large_index_is_high_and_measured():
    pytest.importorskip("usearch", reason="needs the extra vectors")
    rng = np.random.default_rng(0)
    items, users = rng.normal(size=(2000, 16)).astype(np.float32), rng.normal(size=(50, 16)).astype(np.float32)
    found = measure_recall(build_index(items), items, users, 10)
    assert found.recall > 0.95 and (found.k, found.queries) == (10, 50)
    assert found.exact_ms > 0 and found.approximate_ms > 0


def test_lcrec_with_an_item_head_scores_by_vectors(tiny_backbones, tmp_path):
    lcrec, tokenizer = new_lcrec(tiny_backbones["llama"], item_head=True, users=WITH_AN_EMPTY_HISTORY)
    about = export_vectors(lcrec, tmp_path / "out", with_index=find_spec("usearch") is not None, k=5)
    assert (about["items"], about["users"], about["score"]) == (12, 2, "dot product")
    users_table, users = read(tmp_path / "out", "user_vectors")
    assert users_table["user_id"].to_pylist() == ["ann", "eve"]  # a user without history has no prompt
    scores = users @ read(tmp_path / "out", "item_vectors")[1].T
    expected = lcrec.head_scores(lcrec.build_prompts(None, [np.array([0, 3]), np.array([7])])).numpy()
    np.testing.assert_allclose(scores - scores.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-4)
    encoder = AutoModel.from_pretrained(tmp_path / "out" / "query_encoder")
    np.testing.assert_allclose(encode_histories(encoder, None, [np.array([7])])[0], users[1], atol=1e-5)


def test_lcrec_without_an_item_head_has_vectors_of_items_alone(tiny_backbones, tmp_path, capsys):
    lcrec, tokenizer = new_lcrec(tiny_backbones["gpt2"])
    lcrec.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    flags = ["vectors", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--k", "3"]
    assert main([*flags] if find_spec("usearch") else [*flags, "--no-index"]) == 0
    assert "it encodes no queries: the cosine of two item vectors" in capsys.readouterr().out
    items = unit_vectors(read(tmp_path / "out", "item_vectors")[1])
    similar = lcrec.similar_items(["item 4"], k=1).to_pylist()[0]
    best = np.argsort(-(items @ items[4]))[1]
    assert similar["item"] == lcrec.catalogue.ids.ids_of([best])[0]
    assert not (tmp_path / "out" / "query_encoder").exists() and not (tmp_path / "out" / "user_vectors.parquet").exists()
    about = json.loads((tmp_path / "out" / "vectors.json").read_text())
    assert about["score"] == "cosine" and (about["recall"] is None or about["recall"]["recall"] == 1.0)
    with pytest.raises(NotImplementedError, match="LCRecForRecommendation does not score by vectors"):
        super(type(lcrec), lcrec).query_vectors([])


FOUR = st.sets(st.integers(0, 9), min_size=4, max_size=4)


@given(st.lists(st.tuples(FOUR, FOUR)))
def test_recall_is_the_mean_share_found(rows):
    if rows:
        exact, found = (np.array([sorted(row[side]) for row in rows]) for side in (0, 1))
        assert recall_of(exact, found) == pytest.approx(np.mean([len(one & other) / 4 for one, other in rows]))


def test_users_and_index_can_be_left_out(model, tmp_path):
    about = export_vectors(model, tmp_path / "without", include_users=False, with_index=False)
    assert (about["users"], about["index"], about["recall"]) == (0, None, None)
    assert {path.name for path in (tmp_path / "without").iterdir()} == {
        "item_vectors.parquet",
        "item_vectors.safetensors",
        "query_encoder",
        "vectors.json",
    }


def test_a_model_that_keeps_no_histories_has_an_index_and_no_recall(model, tmp_path, capsys):
    pytest.importorskip("usearch", reason="needs the extra vectors")
    model.save_pretrained(tmp_path / "model", include_histories=False)
    assert main(["vectors", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]) == 0
    assert "its recall is unknown because the model has no histories" in capsys.readouterr().out
    model.users = None
    with pytest.raises(ValueError, match="encode_users: this model has no users; pass histories to encode_histories"):
        encode_users(model, np.array([0]), 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 0}, "k is 0; it must be 1 or more, up to the 40 items"),
        ({"k": 41}, "k is 41"),
        ({"queries": 0}, "queries is 0"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
    ],
)
def test_settings_out_of_range(model, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        export_vectors(model, tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()


def test_the_command_prints_recall(model_folder, tmp_path, capsys):
    pytest.importorskip("usearch", reason="needs the extra vectors")
    flags = ["vectors", "--model", str(model_folder), "--queries", "5", "--k", "4"]
    assert main([*flags, "--without-users", "--output", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "40 item vectors and 0 user vectors of width 32" in out
    assert "index: recall@4 1.0000 of the exact answer on 5 queries" in out
    assert main([*flags, "--output", str(tmp_path / "a")]) == 2
    assert "exists and is not empty; choose a new or empty folder" in capsys.readouterr().err
    assert main([*flags, "--json", "--no-index", "--output", str(tmp_path / "c")]) == 0
    assert json.loads(capsys.readouterr().out)["index"] is None


def test_without_usearch(model, model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch", None)
    with pytest.raises(ImportError, match=r'needs usearch.*; run: pip install "cllm4rec\[vectors\]", or pass with_index=False'):
        export_vectors(model, tmp_path / "x")
    assert main(["vectors", "--model", str(model_folder), "--output", str(tmp_path / "x")]) == 1
    assert 'run: pip install "cllm4rec[vectors]", or pass --no-index' in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert export_vectors(model, tmp_path / "x", with_index=False)["index"] is None
