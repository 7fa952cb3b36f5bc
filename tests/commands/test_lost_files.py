"""Commands on a model folder that has lost a file say which one, in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from modeling_cllm4rec.commands.main import main


@pytest.mark.parametrize("command", ["recommend", "evaluate"])
def test_a_model_without_catalogue(
    command: str, model: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "catalogue.parquet").unlink()
    more = {"recommend": ["--users", "1"], "evaluate": ["--data", str(data_folder), "--split", "validation", "--baselines"]}
    assert main([command, "--model", str(folder), "--device", "cpu", *more[command]]) == 2
    assert "model has no catalogue.parquet" in capsys.readouterr().err


def test_a_model_without_users_is_not_compared_with_data(
    model: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "users.parquet").unlink()
    assert main(["evaluate", "--model", str(folder), "--device", "cpu", "--data", str(data_folder), "--baselines"]) == 2
    assert "has no users.parquet, so its rows cannot be compared with" in capsys.readouterr().err
