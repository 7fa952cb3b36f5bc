"""ONNX: the graph and its folder alone give the model's recommendations."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.exports import scoring_graph
from modeling_cllm4rec.exports.command import main
from modeling_cllm4rec.exports.scoring_graph import ScoringForward, compare, export_onnx, random_prompts

ALL_NEEDED = [pytest.importorskip(name, reason="needs the extra onnx") for name in scoring_graph.NEEDED]
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
    assert check["shapes"][0] == [1, 1] and check["shapes"][-1] == [2, model.config.prompt_limit]


def test_a_graph_of_other_weights_is_found_out(exported, model):
    with torch.no_grad():
        model.item_collaborative.weight *= 1.01
    with pytest.raises(RuntimeError, match="onnxruntime's scores differ from torch's by .*, more than 0.0001; do not use"):
        compare(model, exported / "model.onnx")


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_what_is_traced_is_the_forward_pass(make_model, name):
    model = CLLM4RecForRecommendation.from_pretrained(make_model(name)).eval()
    ids, mask = random_prompts(model, 4, 11)
    with torch.no_grad():
        for one, its in ((ids, mask), (ids.flip(1), mask.flip(1))):
            torch.testing.assert_close(ScoringForward(model)(one, its), model(one, its).logits, atol=1e-5, rtol=1e-5)
    assert mask.sum(1).tolist() == [11, 10, 9, 8] and int(ids.max()) >= model.config.id_offset


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-tied", "qwen2"])
def test_other_backbones(make_model, name, tmp_path):
    model = CLLM4RecForRecommendation.from_pretrained(make_model(name))
    assert export_onnx(model, tmp_path / "onnx")["check"]["largest_difference"] <= 1e-4


def test_without_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring_graph, "NEEDED", ("no_such_module",))
    with pytest.raises(
        ImportError,
        match=re.escape('export onnx needs no-such-module, which is not installed; run: pip install "cllm4rec[onnx]"'),
    ):
        export_onnx(model, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
