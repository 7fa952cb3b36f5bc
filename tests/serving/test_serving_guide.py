"""The guide about serving, block by block: its commands and its Python run unchanged."""

from __future__ import annotations

import json
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments
from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.serving.command import parser
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line) for language, code in BLOCKS if language == "bash" for line in code.splitlines()]


@pytest.fixture(scope="module")
def folder(tiny_backbones, tmp_path_factory) -> Path:
    """Return a folder with `runs/mine`: user ann, items B1 to B30."""
    folder = tmp_path_factory.mktemp("guide")
    items = [f"B{number}" for number in range(1, 31)]
    model = CLLM4RecForRecommendation.from_backbone(
        tiny_backbones["gpt2"],
        users=KnownUsers(["ann"], np.array([0, 2]), np.array([0, 3], np.int32)),
        catalogue=Catalogue(pa.table({"item_id": items, "title": [f"Soap {name}" for name in items]})),
        initializer_range=0.5,
    )
    tokenizer = CLLM4RecTokenizer.from_backbone(tiny_backbones["gpt2"], num_users=1, num_items=30)
    model.config.recommendation_prompts = recommendation_segments(Prompts(), tokenizer)
    model.save_pretrained(folder / "runs" / "mine")
    tokenizer.save_pretrained(folder / "runs" / "mine")
    return folder


def test_what_is_asked_by_curl(folder, start):
    asked = [words for words in COMMANDS if words[0] == "curl"]
    asked = [words for words in asked if "authorization:" not in " ".join(words)]
    assert len(asked) == 5
    with start(load_recommender(folder / "runs" / "mine")) as server:
        for words in asked:
            address = next(word for word in words if word.startswith("localhost:8000"))
            body = words[words.index("--json") + 1].encode() if "--json" in words else None
            status, answer = server.ask("POST" if body else "GET", address.removeprefix("localhost:8000"), body)
            assert status == 200, answer
            if body:
                wanted = json.loads(body)
                assert [len(result["items"]) for result in answer["results"]] == [wanted["k"]] * len(answer["results"])


def test_the_server_has_the_flags():
    words, guarded = [words for words in COMMANDS if words[:2] == ["cllm4rec", "serve"]]
    assert parser().parse_args(guarded[2:]).api_key_file == "api-key.txt"
    given = parser().parse_args([*words[2:], "--wait-ms", "5", "--no-batching", "--queue", "300", "--host", "0.0.0.0"])
    assert (given.model, given.port) == ("runs/mine", 8000)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("vectors", "usearch"), ("handler", "importlib.util"), pytest.param("onnx", "onnxruntime", marks=pytest.mark.slow)],
)
def test_exports_and_what_is_done_with_them(folder, monkeypatch, capsys, kind, words):
    for needed in {"vectors": ["usearch"], "onnx": ["onnx", "onnxscript", "onnxruntime"], "handler": []}[kind]:
        pytest.importorskip(needed, reason=f"needs the extra {kind}")
    monkeypatch.chdir(folder)
    for command in COMMANDS:
        if command[:3] == ["cllm4rec", "export", kind] and "runs/mine" in command:  # tests/exports has those of an LC-Rec
            assert main(command[1:]) == 0
    (code,) = [code for language, code in BLOCKS if language == "python" and words in code]
    capsys.readouterr()
    exec(compile(code, "serving.md", "exec"), {})  # noqa: S102
    assert "B" in capsys.readouterr().out


def test_the_extras_exist():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    named = set(re.findall(r"'\.\[(\w+)\]'", GUIDE))
    assert named == {"serve", "vectors", "onnx"} and named <= set(setup["options.extras_require"])
