"""The guide to a nightly update, block by block, against a server that goes on: update, compare, promote, go back."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from guide_files import changing_files, frames_of
from pages import ROOT, blocks, run_command, shell_commands

pytest.importorskip("prometheus_client", reason="needs the extra serve")

from modeling_cllm4rec.hub.loading import load_recommender

PAGE = ROOT / "docs" / "guides" / "nightly-update.md"


def test_the_guide_runs(start, synthetic_dataset, tiny_backbones, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_backbones["gpt2"], tmp_path / "gpt2")
    changing_files(tmp_path, *frames_of(synthetic_dataset))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    served: list[dict] = []

    def run(block, server=None):
        if block.language == "python":
            AcceleratorState._reset_state(reset_partial_state=True)
            exec(compile(block.code, f"{PAGE.name}:{block.line}", "exec"), names)  # noqa: S102
            return
        for words in shell_commands(block.code):
            if words[0] != "curl":
                run_command(words, f"{PAGE.name}:{block.line}")
                continue
            address = next(word for word in words if word.startswith("localhost:8000")).removeprefix("localhost:8000")
            given = words[words.index("-H") + 1] if "-H" in words else ""
            headers = {"authorization": given.partition(": ")[2].replace("$(cat api-key.txt)", key)} if given else {}
            body = words[words.index("--json") + 1].encode() if "--json" in words else None
            status, answer = server.ask("POST" if body else "GET", address, body, headers)
            assert status == 200, answer
            served.append(answer["model"])

    first, *rest = [block for block in blocks(PAGE) if block.run]
    run(first)
    key = Path("api-key.txt").read_text().strip()
    with start(
        load_recommender("models/current", device="cpu"), lambda name: load_recommender(name, device="cpu"), api_key=key
    ) as server:
        served.append(server.health()["model"])
        for block in rest:
            run(block, server)
        history = {"histories": [[0, 1]], "k": 3}
        assert server.ask("POST", "/recommend", history, {"authorization": f"Bearer {key}"})[0] == 200
    folders = [Path(model["folder"]).name for model in served]
    assert folders == ["first", "tonight", "tonight", "first"]
    assert (served[0]["items"], served[1]["items"]) == (36, 40) and served[0]["revision"] == served[3]["revision"]
    assert re.match(r"recall@20 of \d+ users: [+-]", capsys.readouterr().out.splitlines()[-1])
    assert isinstance(bool(names["promote"]), bool)
    assert json.dumps(served)
