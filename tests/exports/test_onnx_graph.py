"""ONNX: the graph and its folder alone give the model's recommendations."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lcrec_models import ITEMS, new_lcrec
from safetensors.numpy import load_file

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.exports import onnx_graph
from modeling_cllm4rec.exports.command import main
from modeling_cllm4rec.exports.onnx_graph import TOLERANCE, ItemScores, NextTokenScores, compare, export_onnx, random_prompts
from modeling_cllm4rec.exports.onnx_weights import reduce_weights
from modeling_cllm4rec.exports.reference_decoder import onnx_graph as onnx_graph_of
from modeling_cllm4rec.exports.reference_decoder import prompt_of, search

ALL_NEEDED = [pytest.importorskip(name, reason="needs the extra onnx") for name in onnx_graph.NEEDED]
onnxruntime = ALL_NEEDED[-1]


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    assert main(["onnx", "--model", str(model_folder), "--output", str(folder), "--json"]) == 0
    return folder


def test_the_folder_alone_recommends_as_the_model_does(exported, model):
    about = json.loads((exported / "model.json").read_text())
    items = pq.read_table(exported / "catalogue.parquet")["item_id"].to_pylist()
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    history = [1004, 1007, 1031]
    tokens = [about["first_item_token"] + items.index(item) for item in history]
    pieces = about["recommendation_prompts"]["anonymous"]
    prompt = np.array([[token for piece in pieces for token in (tokens if piece == "items" else piece)]])
    (scores,) = session.run(None, {"input_ids": prompt, "attention_mask": np.ones_like(prompt)})
    expected = model.recommend(histories=[history], k=40, exclude_seen=False).to_pylist()
    assert [items[j] for j in np.argsort(-scores[0], kind="stable")] == [row["item"] for row in expected]
    np.testing.assert_allclose(np.sort(scores[0])[::-1], [row["score"] for row in expected], atol=1e-4)


def test_what_was_compared_is_written(exported, model):
    check = json.loads((exported / "model.json").read_text())["check"]
    assert check["largest_difference"] <= check["tolerance"] == 1e-4
    assert check["top_10_overlap"] == 1.0 and check["prompts"] == 20  # stored histories
    assert check["shapes"][0] == [1, 1] and check["shapes"][-1] == [2, model.config.prompt_limit]


def test_a_graph_of_other_weights_is_found_out(exported, model):
    with torch.no_grad():
        model.item_collaborative.weight *= 1.01
    with pytest.raises(RuntimeError, match="onnxruntime's scores differ from torch's by .*, more than 0.0001; do not use"):
        compare(model, exported / "model.onnx", TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_what_is_traced_is_the_forward_pass(make_model, name):
    model = CLLM4RecForRecommendation.from_pretrained(make_model(name)).eval()
    ids, mask = random_prompts(model, 4, 11)
    with torch.no_grad():
        for one, its in ((ids, mask), (ids.flip(1), mask.flip(1))):
            torch.testing.assert_close(ItemScores(model)(one, its)[0], model(one, its).logits, atol=1e-5, rtol=1e-5)
    assert mask.sum(1).tolist() == [11, 10, 9, 8] and int(ids.max()) >= model.config.id_offset


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-tied", "qwen2"])
def test_other_backbones(make_model, name, tmp_path):
    model = CLLM4RecForRecommendation.from_pretrained(make_model(name))
    assert export_onnx(model, tmp_path / "onnx")["check"]["largest_difference"] <= 1e-4


def test_without_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "NEEDED", ("no_such_module",))
    with pytest.raises(
        ImportError,
        match=re.escape('export onnx needs no-such-module, which is not installed; run: pip install "cllm4rec[onnx]"'),
    ):
        export_onnx(model, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(("dtype", "share", "largest"), [("bfloat16", 0.6, 0.5), ("int8", 0.45, 4.0)])
def test_weights_in_fewer_bits_are_smaller_and_score_nearly_the_same(exported, model, tmp_path, dtype, share, largest):
    shutil.copytree(exported, tmp_path / dtype)
    reduce_weights(tmp_path / dtype / "model.onnx", dtype)
    assert {path.name for path in (tmp_path / dtype).iterdir()} == {path.name for path in exported.iterdir()}
    before, after = ((folder / "model.onnx.data").stat().st_size for folder in (exported, tmp_path / dtype))
    assert after < share * before
    check = compare(model, tmp_path / dtype / "model.onnx", None)
    assert 0 < check["largest_difference"] < largest and check["top_10_overlap"] > 0.5 and check["prompts"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_command_prints_the_cost_of_fewer_bits(model_folder, tmp_path, capsys, dtype):
    assert main(["onnx", "--model", str(model_folder), "--dtype", dtype, "--output", str(tmp_path / "out")]) == 0
    assert "of torch's ten best are among its own, on 20 prompts" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["dtype"] == dtype and about["check"]["tolerance"] is None


def test_an_unknown_type_of_weights(model, tmp_path):
    with pytest.raises(ValueError, match="dtype is 'float8'; it must be one of float32, bfloat16, int8"):
        export_onnx(model, tmp_path / "onnx", "float8")


@pytest.mark.slow
@pytest.mark.parametrize(("head", "inputs"), [(True, True), (True, False), (False, False)])
def test_the_decoder_searches_with_lcrecs_graph(tiny_backbones, tmp_path, head, inputs):
    lcrec, tokenizer = new_lcrec(tiny_backbones["llama"], item_head=head, item_inputs=inputs)
    about = export_onnx(lcrec, tmp_path / "onnx")
    assert about["outputs"] == ("index_log_probs", "item_log_probs")[: 1 + head]
    assert about["check"]["largest_difference"] <= 1e-4 and about["check"]["prompts"] == 3
    about_ids = json.loads((tmp_path / "onnx" / "semantic_ids.json").read_text())
    trie = load_file(tmp_path / "onnx" / "semantic_id_trie.safetensors")
    log_probs = onnx_graph_of(tmp_path / "onnx")
    for history in ([0, 3, 5], [11]):
        given = [ITEMS[item] for item in history]
        expected = lcrec.recommend(histories=[given], k=5, scoring="beam").to_pylist()
        found = search(log_probs, trie, about_ids["first_token"], prompt_of(about_ids, history), 5, history)[:5]
        assert [ITEMS[item] for _, item in found] == [row["item"] for row in expected]
        np.testing.assert_allclose([score for score, _ in found], [row["score"] for row in expected], atol=1e-4)
    if head:
        session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
        prompt = np.array([prompt_of(about_ids, [0, 3, 5])])
        (scores,) = session.run(["item_log_probs"], {"input_ids": prompt, "attention_mask": np.ones_like(prompt)})
        expected = lcrec.recommend(histories=[[ITEMS[0], ITEMS[3], ITEMS[5]]], k=12, scoring="head", exclude_seen=False)
        assert [ITEMS[item] for item in np.argsort(-scores[0], kind="stable")] == [row["item"] for row in expected.to_pylist()]


@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "qwen2"])
def test_what_is_traced_of_lcrec_is_its_forward_pass(tiny_backbones, name, inputs):
    lcrec, _ = new_lcrec(tiny_backbones[name], item_head=True, item_inputs=inputs)
    traced = NextTokenScores(lcrec).eval()
    ids, mask = random_prompts(lcrec, 4, 11)
    with torch.no_grad():
        for one, its in ((ids, mask), (ids.flip(1), mask.flip(1))):
            for found, expected in zip(traced(one, its), traced.expected(one, its), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
