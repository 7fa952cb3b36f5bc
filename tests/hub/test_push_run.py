"""`cllm4rec push` sends the model of a run and nothing else, by the real client against a stand-in of the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard, constants
from transformers import AutoTokenizer

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.commands.push import main
from modeling_cllm4rec.core.errors import InputError, MissingFileError, RunError
from modeling_cllm4rec.core.saved_folder import flat_code
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.hub.model_card import make_card
from modeling_cllm4rec.hub.push import model_files, push_run
from modeling_cllm4rec.systems import SYSTEMS

RECORDS = ("README.md", "training.json", "data_card.md", "training_curves.png", "evaluation-test-given-train.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenization_cllm4rec.py")
MODEL = ("config.json", "generation_config.json", "model.safetensors", "catalogue.parquet", "users.parquet", "requirements.txt")
PUSHED = {*RECORDS, *TOKENIZER, *MODEL, *flat_code(CLLM4RecForRecommendation)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Return a stand-in of the Hub, which the client in this process talks to."""
    with HubStandIn() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        yield hub


@pytest.fixture(scope="module")
def run_folder(tiny_backbones: dict[str, Path], make_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run, with all that is around it: read it, do not write into it."""
    folder: Path = make_folder(tiny_backbones["gpt2"], tmp_path_factory.mktemp("runs") / "mine")
    protocol = Protocol("local", "random split", "test", "train", "train", items=6, users=2, excluded_users=0)
    report = EvaluationReport(protocol, {"recall@20": 0.25}, {}, 1.0, 0, 0)
    report.save(folder / "evaluation-test-given-train.json")
    (folder / "evaluation-test-given-train.parquet").write_bytes(b"values per user")
    info = {"statistics": {"users": 2}, "protocol": {"split": "random"}}
    (folder / "README.md").write_text(make_card("mine", SYSTEMS["cllm4rec"], {}, info, [report]), encoding="utf-8")
    (folder / "training.json").write_text("{}")
    (folder / "data_card.md").write_text("---\npretty_name: local\n---\n")
    (folder / "training_curves.png").write_bytes(b"a picture")
    (folder / "notes of ours.txt").write_text("secret")
    (folder / "own.py").write_text("print('of no model')")
    for name in ("checkpoints/finetune/model.safetensors", "corpus/texts.arrow", "data/train.parquet", "pretrained/config.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"12345")
    return folder


def test_the_model_and_nothing_else(run_folder: Path, hub: HubStandIn) -> None:
    push = push_run(run_folder, "someone/mine", dataset="someone/data")
    files = hub.files("someone/mine")
    assert set(files) - {".gitattributes"} == PUSHED | {".eval_results/someone--data.yaml"} == set(push.files)
    assert {path: len(content) for path, content in files.items() if path in push.files} == push.files
    assert hub.repositories["someone/mine"].private and push.commit is not None and push.private
    assert files["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()
    left = push.left_out
    assert left["checkpoints/"] == "5 bytes, not part of the model" and left["corpus/"] and left["data/"] and left["pretrained/"]
    assert left["evaluation-test-given-train.parquet"] == "values of each user" and left["notes of ours.txt"] and left["own.py"]
    assert left["histories of users.parquet"] == "pass include_histories=True to push them"
    card = ModelCard(files["README.md"].decode())
    assert card.data.datasets == ["someone/data"] and 'name = "someone/mine"  #' in card.text
    (result,) = yaml.safe_load(files[".eval_results/someone--data.yaml"])
    assert result["dataset"]["task_id"] == "test_recall_20" and result["source"]["url"] == f"{hub.url}/someone/mine"


def test_histories_only_where_they_are_asked_for(run_folder: Path, hub: HubStandIn, tmp_path: Path) -> None:
    push_run(run_folder, "without")
    push = push_run(run_folder, "with", include_histories=True)
    assert "histories of users.parquet" not in push.left_out
    for name, columns in (("without", ["user_id"]), ("with", ["user_id", "history"])):
        (tmp_path / name).write_bytes(hub.files(f"someone/{name}")["users.parquet"])
        assert pq.read_table(tmp_path / name).column_names == columns
    assert 'name = "someone/without"  #' in hub.files("someone/without")["README.md"].decode()
    push_run(run_folder, "someone/open", private=False)
    before = dict(hub.repositories["someone/open"].branches)
    with pytest.raises(InputError, match="repo_id: someone/open is public, and the commit holds the histories of 2 users"):
        push_run(run_folder, "someone/open", include_histories=True)
    assert hub.repositories["someone/open"].branches == before


def test_python_and_the_shell_push_the_same(run_folder: Path, hub: HubStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_folder), "--to", "someone/shell"]) == 0
    printed = capsys.readouterr().out
    assert "left out: checkpoints/ (5 bytes, not part of the model)" in printed
    assert "left out: histories of users.parquet (pass --include-histories to push them)" in printed
    assert f"someone/shell, private if it is new: {hub.url}/someone/shell/commit/" in printed
    model = CLLM4RecForRecommendation.from_pretrained(run_folder)
    model.push_to_hub("someone/python", tokenizer=AutoTokenizer.from_pretrained(run_folder))
    shell, python = hub.files("someone/shell"), hub.files("someone/python")
    assert set(shell) - set(python) == {"training.json", "evaluation-test-given-train.json"} and not set(python) - set(shell)
    differing = {name for name in python if python[name] != shell[name]}
    assert differing == {"README.md", "tokenizer_config.json"}  # another name; what a loaded tokenizer knows of its folder


def test_a_dry_run_sends_and_writes_nothing(run_folder: Path, hub: HubStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    assert main([str(run_folder), "--to", "someone/mine", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("someone/mine, private if it is new: nothing was uploaded (dry run)\n")
    size = (run_folder / "model.safetensors").stat().st_size
    assert f"{size:>14,} bytes  model.safetensors\n" in printed and f" bytes in {len(PUSHED)} files\n" in printed
    assert main([str(run_folder), "--to", "someone/mine", "--dry-run", "--public", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["files"]) == PUSHED and found["private"] is False and found["commit"] is None
    assert hub.requests == [] and {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before


def test_every_error_names_the_field(
    run_folder: Path, hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MissingFileError, match=r"run: there is no folder .*/min; did you mean 'mine'\?"):
        push_run(run_folder.parent / "min", "someone/mine")
    (tmp_path / "run" / "pretrained").mkdir(parents=True)
    (tmp_path / "run" / "pretrained" / "config.json").write_text("{}")
    with pytest.raises(MissingFileError, match=r"run: .* holds no finished model .*finish it, or push .*/run/pretrained"):
        push_run(tmp_path / "run", "someone/mine")
    with pytest.raises(InputError, match="run: .* holds a model of the type None, not one of cllm4rec, lcrec"):
        push_run(tmp_path / "run" / "pretrained", "someone/mine")
    with pytest.raises(InputError, match=r"repo_id is 'a b', which is no name on the Hub .*write OWNER/NAME"):
        push_run(run_folder, "a b")
    with pytest.raises(InputError, match="dataset is 'data'; write OWNER/NAME"):
        push_run(run_folder, "someone/mine", dataset="data")
    with pytest.raises(RunError, match=r"repo_id: nothing was pushed to someone/mine \(.*401.*`hf auth login`, or set HF_TOKEN"):
        push_run(run_folder, "someone/mine", token="wrong")
    assert main([str(run_folder), "--to", "a b"]) == 2
    assert "--to is 'a b', which is no name on the Hub" in capsys.readouterr().err
    assert hub.repositories == {}


def test_a_damaged_folder_is_not_pushed(run_folder: Path, hub: HubStandIn, tmp_path: Path) -> None:
    for name in model_files(run_folder):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="run: the tokenizer in .* cannot be read"):
        push_run(tmp_path, "someone/mine")
    (tmp_path / "model.safetensors").write_bytes((run_folder / "model.safetensors").read_bytes()[:-40])
    with pytest.raises(InputError, match="the weights in .* cannot be read"):
        push_run(tmp_path, "someone/mine")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["catalogue.parquet", "modeling_cllm4rec.py", "catalogue.py"])
def test_a_run_that_lost_a_file_is_not_pushed(name: str, run_folder: Path, hub: HubStandIn, tmp_path: Path) -> None:
    for file in model_files(run_folder):
        (tmp_path / file).write_bytes((run_folder / file).read_bytes())
    (tmp_path / name).unlink()
    with pytest.raises(MissingFileError, match=rf"run: .* has no {name}, which .* again"):
        push_run(tmp_path, "someone/mine")
    assert hub.requests == []


def test_the_tokenizer_of_another_model_is_not_pushed(run_folder: Path, hub: HubStandIn, tmp_path: Path) -> None:
    for name in model_files(run_folder):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "num_items": 7}))
    with pytest.raises(InputError, match="num_items of the tokenizer is 7, that of the model 6: it is not the tokenizer of this"):
        push_run(tmp_path, "someone/mine")
    assert hub.requests == []
