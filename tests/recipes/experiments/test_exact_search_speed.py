"""The script `exact_search_speed.py`."""

from __future__ import annotations

import json
from pathlib import Path

import exact_search_speed
import lcrec_models
import numpy as np
import pytest


def test_one_run(tiny_backbones: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = lcrec_models.new_lcrec(tiny_backbones["gpt2"])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--items", "10", "20", "--users", "2", "--output", str(tmp_path / "out.json")]
    assert exact_search_speed.main(flags) == 0
    assert "| 20 | 5 | " in capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["items"] for row in rows] == [10, 20] and all(row["same_lists"] == 1 for row in rows)
    assert exact_search_speed.main([*flags[:2], "--items", "26"]) == 2
    assert "items is 26; 2 levels of 5 codes tell 25 apart" in capsys.readouterr().err


def test_codes_are_all_different() -> None:
    codes = exact_search_speed.codes_of_size(np.array([[0, 1], [4, 4]]), 5, 25, seed=0)
    assert codes[:2].tolist() == [[0, 1], [4, 4]] and len(np.unique(codes, axis=0)) == 25
