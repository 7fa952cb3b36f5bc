"""The command `recipes/benchmark.py`: what it passes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """Return the recipe's module."""
    sys.path.insert(0, str(RECIPES))
    import benchmark

    yield benchmark
    sys.path.remove(str(RECIPES))


def test_all_commands_are_there(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"benchmark.py {name} " in printed for name in ("quality", "ablation", "report"))


def test_quality_has_a_default_recipe(benchmark: Any) -> None:
    asked = benchmark.parser().parse_args(["quality", "--data", "d", "--models", "ease"])
    assert asked.config == benchmark.DEFAULT_CONFIG and asked.config.is_file()
    from modeling_cllm4rec.benchmark.command import command_line

    wanted = "python recipes/benchmark.py quality --data d --output reports/again"
    assert command_line(asked) == wanted


def test_bad_input_is_one_line(benchmark: Any, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quality", "--data", data_folder, "--models", "eas", "--output", tmp_path / "r", "--metrics", "recall@5"]
    assert benchmark.main([*map(str, words), "--no-plots"]) == 2
    assert "benchmark.py: error: models: there is no 'eas'; did you mean " in capsys.readouterr().err
