"""Data folders on the Hub: `push_to_hub`, `cllm4rec data push` and `hf:OWNER/NAME`, by the real client against a stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_stand_in import HubStandIn

from modeling_cllm4rec.commands.data import main
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.data_folder import FILES, RecommendationData
from modeling_cllm4rec.corpora.hub_folders import download, upload

TRIP = """
from modeling_cllm4rec.core.errors import RunError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.commands.data import main
import datasets

data = RecommendationData.load(arguments["folder"])
commit = data.push_to_hub("someone/some-data", message="The data")
assert main(["push", arguments["folder"], "--to", "someone/public-data", "--public", "--benchmark"]) == 0
try:
    data.push_to_hub("someone/refused", token="wrong")
except RunError as error:
    refused = str(error)
back = RecommendationData.load("hf:someone/some-data")
assert back.interactions.equals(data.interactions) and back.items.equals(data.items) and back.info == data.info
old = RecommendationData.load(f"hf://datasets/someone/some-data@{commit.rsplit('/', 1)[1]}")
loaded = datasets.load_dataset("someone/some-data")
assert (back.name, back.revision) == ("someone/some-data", commit.rsplit("/", 1)[1])
print(json.dumps([commit, refused, {name: part.num_rows for name, part in loaded.items()}, str(old.folder)]))
"""


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


def test_there_and_back(run: Any, hub: HubStandIn, data_folder: Path, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    commit, refused, rows, old = run(TRIP, package=True, environment=environment, folder=str(data_folder))
    repository, public = hub.repositories["datasets/someone/some-data"], hub.repositories["datasets/someone/public-data"]
    assert repository.private and not public.private
    assert set(hub.files("datasets/someone/some-data")) == {*FILES, ".gitattributes"}
    assert commit.rsplit("/", 1)[1] in repository.states and "The data" in repository.messages.values() and str(tmp_path) in old
    assert "nothing was pushed to someone/refused" in refused and "hf auth login" in refused
    benchmark = yaml.safe_load(hub.files("datasets/someone/public-data")["eval.yaml"])
    assert list(benchmark) == ["name", "description", "evaluation_framework", "tasks"]
    assert {"id": "test_recall_20", "config": "interactions", "split": "test"} in benchmark["tasks"]
    statistics = RecommendationData.load(data_folder).info["statistics"]
    assert rows == {name: statistics[name] for name in ("train", "validation", "test")}
    card = hub.files("datasets/someone/some-data")["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["configs"][0]["config_name"] == "interactions"


def test_dry_run(data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(data_folder), "--to", "you/mine", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "train.parquet" in printed and printed.endswith("you/mine, private if it is new: nothing was uploaded (dry run)\n")
    assert main(["push", str(data_folder), "--to", "you/mine", "--dry-run", "--public", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["files"]) == set(FILES) and found["private"] is False and found["commit"] is None


def test_bad_names(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "hf:you/mine", "--to", "you/mine"]) == 2
    assert "hf:you/mine is on the Hub already" in capsys.readouterr().err
    assert main(["push", str(tmp_path / "none"), "--to", "you/mine"]) == 2
    assert "there is no such data folder" in capsys.readouterr().err
    with pytest.raises(InputError, match="'hf:a/b/c/d' is no name of the Hub .*write hf:OWNER/NAME"):
        download("hf:a/b/c/d")
    with pytest.raises(InputError, match="repo_id is 'a b', which is no name on the Hub"):
        upload(data_folder, FILES, "a b", private=True)
    with pytest.raises(MissingFileError, match="hf:you/mine cannot be read from the Hub"):
        download("hf:you/mine")
