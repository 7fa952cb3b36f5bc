"""Models over two processes by the plans that transformers reads: the answers of one process, half of the layers on each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from distributed_models import answers
from lcrec_models import new_lcrec
from transformers import LlamaConfig

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.parallel_plans import check_heads

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "tests" / "helpers" / "distributed_models.py"
PROMPTS: dict[str, Any] = {"recommendation_prompts": {"known": [[1, 2], "user", [3], "items"], "anonymous": [[1, 2, 3], "items"]}}


def new_cllm4rec(backbone: Path) -> CLLM4RecForRecommendation:
    """Return a model of 12 items."""
    items = [f"B{number}" for number in range(12)]
    model: CLLM4RecForRecommendation = CLLM4RecForRecommendation.from_backbone(backbone, num_users=5, catalogue=items, **PROMPTS)
    return model.eval()


def test_two_processes_share_a_model(tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    """Tensor parallelism of both systems (forward passes, beam search, gradients), and FSDP2 of a backbone without a plan."""
    models = {
        "cllm4rec": new_cllm4rec(tiny_backbones["llama"]),
        "lcrec": new_lcrec(tiny_backbones["llama"])[0],
        "gpt2": new_cllm4rec(tiny_backbones["gpt2"]),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    cases = [
        *({"folder": str(tmp_path / name), "tp_size": 2} for name in ("cllm4rec", "lcrec", "gpt2")),
        *({"folder": str(tmp_path / name), "fsdp_size": 2} for name in ("cllm4rec", "lcrec", "gpt2")),
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = [*words, str(tmp_path / "cases.json"), str(tmp_path)]
    ended = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-6000:]
    assert "match nothing" not in ended.stderr  # transformers warns of rules without a module
    expected = {name: answers(model) for name, model in models.items()}
    for number in range(2):
        seen = json.loads((tmp_path / f"{number}.json").read_text())
        assert "tp_size is 2, but transformers has no plan of tensor parallelism for the backbone (gpt2)" in seen[2]["error"]
        for case, found in zip(cases, seen, strict=True):
            if "error" in found:
                continue
            name = Path(str(case["folder"])).name
            assert found["loss"] == pytest.approx(expected[name]["loss"], rel=1e-5)
            if "fsdp_size" in case:
                assert found["refused"].startswith("this model was loaded with fsdp_size, so its weights are there within model(")
            else:
                assert found["items"] == expected[name]["items"]
                assert found["scores"] == pytest.approx(expected[name]["scores"], rel=1e-4, abs=1e-5)
            layers = {name: shape for name, shape in found["shapes"].items() if ".0." in name and len(shape[0]) == 2}
            assert layers and all(sum(part) < sum(whole) for whole, part in layers.values())


def test_layers_of_any_backbone_are_in_the_plan(tiny_backbones: dict[str, Path]) -> None:
    plans = {name: new_cllm4rec(tiny_backbones[name]).fsdp_plan for name in ("gpt2", "llama")}
    assert plans["gpt2"] == {"backbone.transformer.h.*": "free_full_weight"}
    assert plans["llama"] == {
        "backbone.model.embed_tokens": "free_full_weight",
        "backbone.model.layers.*": "free_full_weight",
        "backbone.model.norm": "keep_full_weight",
        "backbone.lm_head": "keep_full_weight",
    }


def test_heads_that_cannot_be_shared_out() -> None:
    check_heads(LlamaConfig(num_attention_heads=8, num_key_value_heads=4), 4)
    with pytest.raises(InputError, match="tp_size is 2, but the backbone's num_attention_heads is 3: .* one of 1, 3, or shard"):
        check_heads(LlamaConfig(num_attention_heads=3, num_key_value_heads=3, hidden_size=48), 2)
    with pytest.raises(InputError, match="tp_size is 4, but the backbone's num_key_value_heads is 2: .* one of 1, 2, or shard"):
        check_heads(LlamaConfig(num_attention_heads=8, num_key_value_heads=2), 4)
