"""LC-Rec's folder alone is enough: moved, offline, in a fresh process that does not have the package."""

from __future__ import annotations

import ast
from pathlib import Path

import lcrec_models
import pytest

from modeling_cllm4rec.core.saved_folder import flat_code
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation

ROOT = Path(__file__).parents[2]
USE = """
import numpy as np
import pyarrow as pa
from transformers import AutoConfig, AutoModel, AutoTokenizer

results = {}
for name, folder in arguments["folders"].items():
    autos = (AutoConfig, AutoModel, AutoTokenizer)
    config, model, tokenizer = [auto.from_pretrained(folder, trust_remote_code=True) for auto in autos]
    answers = {
        "known": model.recommend(users=["ann"], k=3).to_pylist(),
        "met_never": model.recommend(histories=[["ä", "item 3"]], k=3, scoring="all").to_pylist(),
        "query": model.search(["a gentle cleanser"], k=3).to_pylist(),
        "token": tokenizer.convert_tokens_to_ids("<a_0>"),
    }
    model.add_items(pa.table({"item_id": ["new"], "title": ["new"]}), np.ones((1, model.indexer.config.input_dim), np.float32))
    answers["index of a new item"] = model.semantic_ids.semantic_id_text(model.num_items - 1)
    module = type(model).__module__.split(".")[0]
    results[name] = {**answers, "module": module, "config": type(config).__name__}
print(json.dumps(results))
"""


@pytest.mark.parametrize("package", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_moved_folder_in_a_fresh_process(package, tiny_backbones, run, tmp_path):
    folders, expected = {}, {}
    for name in ("gpt2", "llama"):
        model, tokenizer = lcrec_models.new_lcrec(tiny_backbones[name])
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        moved = (tmp_path / name).rename(tmp_path / f"moved {name}")
        here = LCRecForRecommendation.from_pretrained(moved)
        expected[name] = {
            "known": here.recommend(users=["ann"], k=3).to_pylist(),
            "met_never": here.recommend(histories=[["ä", "item 3"]], k=3, scoring="all").to_pylist(),
            "query": here.search(["a gentle cleanser"], k=3).to_pylist(),
            "token": here.config.first_index_token,
        }
        folders[name] = str(moved)
    code = "import modeling_cllm4rec\n" + USE.replace(", trust_remote_code=True", "") if package else USE
    results = run(code, package=package, folders=folders)
    for name, answers in expected.items():
        found = results[name]
        assert {key: found[key] for key in answers} == answers
        assert found["module"] == ("modeling_cllm4rec" if package else "transformers_modules")
        assert found["config"] == "LCRecConfig" and found["index of a new item"].startswith("<a_")


def test_the_flat_files_import_only_one_another():
    code = flat_code(LCRecForRecommendation)
    for file in code:
        for node in ast.walk(ast.parse(code[file])):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in code
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not {name.split(".")[0] for name in names} & {"modeling_cllm4rec"}
