"""`handler.py` of a folder, loaded by its path as Inference Endpoints do, in a process without the package."""

from __future__ import annotations

import configparser
from pathlib import Path

import lcrec_models
from packaging.requirements import Requirement

from modeling_cllm4rec.core.handler import EndpointHandler

ROOT = Path(__file__).parents[2]
USE = """
import importlib.util

results = {}
for name, (folder, questions) in arguments["asked"].items():
    spec = importlib.util.spec_from_file_location("handler", f"{folder}/handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(folder)
    answers = [handler({"inputs": question}) for question in questions]
    try:
        handler({"inputs": {"histories": [["no such item"]], "k": 1}})
    except ValueError as error:
        answers.append(str(error))
    results[name] = answers, type(handler.model).__module__.split(".")[0]
print(json.dumps(results))
"""


def test_a_moved_folder_answers(tiny_backbones, make_folder, run, tmp_path):
    model, tokenizer = lcrec_models.new_lcrec(tiny_backbones["gpt2"])
    model.save_pretrained(tmp_path / "lcrec")
    tokenizer.save_pretrained(tmp_path / "lcrec")
    make_folder(tiny_backbones["gpt2"], tmp_path / "cllm4rec")
    asked = {
        "cllm4rec": [{"users": [1, 7], "k": 3}, {"histories": [["ä", "B00 1"]], "k": 2}],
        "lcrec": [{"users": ["ann"], "k": 3}, {"query": "a gentle cleanser", "k": 2, "num_beams": 4}],
    }
    folders = {name: str((tmp_path / name).rename(tmp_path / f"moved {name}")) for name in asked}
    expected = {}
    for name, questions in asked.items():
        here = EndpointHandler(folders[name])
        expected[name] = [here({"inputs": question}) for question in questions]
        for question, got in zip(questions, expected[name], strict=True):
            assert {len(result["items"]) for result in got["results"]} == {question["k"]}
    found = run(USE, asked={name: (folders[name], questions) for name, questions in asked.items()})
    for name, (answers, module) in found.items():
        assert answers[:-1] == expected[name] and module == "transformers_modules"
        assert "unknown" in answers[-1] and answers[-1].startswith("histories[0]: got")


def test_a_folder_says_what_its_code_requires(tiny_backbones, make_folder, tmp_path):
    lines = (make_folder(tiny_backbones["gpt2"], tmp_path / "mine") / "requirements.txt").read_text(encoding="utf-8").splitlines()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    ours = {one.name: one.specifier for one in map(Requirement, setup["options"]["install_requires"].split("\n")[1:])}
    assert {one.name: one.specifier for one in map(Requirement, lines)}.items() <= ours.items()
    assert {"torch", "transformers", "pyarrow"} <= {Requirement(line).name for line in lines}


def test_it_imports_none_of_the_other_files():
    source = (ROOT / "modeling_cllm4rec" / "core" / "handler.py").read_text(encoding="utf-8")
    assert "from ." not in source and "modeling_cllm4rec" not in source and "tokenization" not in source
