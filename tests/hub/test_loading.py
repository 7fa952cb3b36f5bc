"""A recommender by name: what is no folder is refused quickly and in one line."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.hub import loading, model_names
from modeling_cllm4rec.hub.loading import load_recommender, load_tokenizer

Run = Callable[..., Any]
UNREACHED = {"HF_ENDPOINT": "http://127.0.0.1:9"}
"""Nobody listens there."""
RECOMMEND = """
import contextlib, io, json, time
from modeling_cllm4rec.commands.main import main

began, said = time.monotonic(), io.StringIO()
with contextlib.redirect_stderr(said):
    code = main(["recommend", "--model", arguments["model"], "--k", "2"])
lines = [line for line in said.getvalue().splitlines() if "%|" not in line]
print(json.dumps({"code": code, "seconds": time.monotonic() - began, "lines": lines}))
"""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(model_names, "get_hf_file_metadata", ask)
    monkeypatch.setattr(loading.AutoModel, "from_pretrained", ask)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["runs/beuaty", "./beauty", "/nowhere/beauty", "a/b/c", "../x", "~/runs/x"])
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "runs" / "beauty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    hint = r"did you mean 'beauty'\?" if name.startswith("runs") else "name the folder of a run, or a model on the Hub"
    with pytest.raises(FileNotFoundError, match=f"model: {name} is no folder with a model: .*; {hint}"):
        loading.load_recommender(name)


@pytest.mark.slow
def test_a_hub_that_is_not_reached_is_asked_once(run: Run) -> None:
    said = run(RECOMMEND, package=True, environment=UNREACHED, model="you/typo")
    assert said["code"] == 2 and said["seconds"] < 20
    (line,) = said["lines"]
    assert "you/typo is no folder with a model and could not be read from the Hub (" in line and "refused" in line


@pytest.mark.slow
def test_a_model_in_the_cache_needs_no_hub(
    run: Run, make_folder: Callable[[Path, Path], Path], tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    cached = tmp_path / "hub" / "models--you--mine"
    make_folder(tiny_backbones["gpt2"], cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    environment = {**UNREACHED, "HF_HUB_CACHE": str(tmp_path / "hub")}
    said = run(RECOMMEND, package=True, environment=environment, model="you/mine")
    (line,) = said["lines"]
    assert (
        said["code"] == 0 and said["seconds"] < 20 and re.fullmatch(r"[\d:]{8} you/mine: on cpu, float32, attention sdpa", line)
    )


@pytest.mark.parametrize("name", ["gpt2", "you/typo"])
def test_a_backbone_of_an_unreachable_hub_is_refused_after_one_request(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(url: str, timeout: float) -> None:
        asked.append((url, timeout))
        raise ConnectionError("connection\nrefused")

    monkeypatch.setattr(model_names, "get_hf_file_metadata", ask)
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", False)
    message = rf"backbone: {name} is no folder with a language model .* \(connection refused\); name a folder"
    with pytest.raises(MissingFileError, match=message):
        loading.check_on_hub(name, "backbone")
    assert [timeout for _, timeout in asked] == [model_names.PROBE_SECONDS]


def test_a_command_leaves_the_question_for_a_cached_name_to_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_names, "get_hf_file_metadata", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr(model_names, "try_to_load_from_cache", lambda *_: "config.json")
    model_names.check_name("you/mine")


def test_folders_paths_cached_and_offline_names_need_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_names, "get_hf_file_metadata", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", False)
    for name in (str(tmp_path), "./nowhere", "a/b/c"):
        loading.check_on_hub(name, "backbone")
    monkeypatch.setattr(model_names, "try_to_load_from_cache", lambda *_: "config.json")
    loading.check_on_hub("you/cached", "backbone")
    monkeypatch.setattr(model_names, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", True)
    loading.check_on_hub("you/typo", "backbone")


def test_a_name_that_the_hub_cannot_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--model", "a name"]) == 2
    assert "--model: a name is no folder with a model" in capsys.readouterr().err


@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "none"}'])
def test_a_folder_without_a_model(config, tmp_path):
    (tmp_path / "config.json").write_text(config or "{}")
    if config is None:
        (tmp_path / "config.json").unlink()
    with pytest.raises(
        InputError, match=f"start: {tmp_path} holds no model that can be loaded .*; name the folder of a finished run"
    ):
        load_recommender(tmp_path, "start")


def test_broken_files_of_a_model(tiny_backbones, tmp_path):
    folder = shutil.copytree(tiny_backbones["gpt2"], tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=f"model: the weights in {folder} cannot be read .*: a file is cut off"):
        load_recommender(folder)
    assert len(load_tokenizer(folder)) > 0
    (folder / "tokenizer.json").write_bytes(b"no JSON")
    with pytest.raises(
        InputError, match=f"start: the tokenizer in {folder} cannot be read .*; copy or download the folder again"
    ):
        load_tokenizer(folder, "start")
