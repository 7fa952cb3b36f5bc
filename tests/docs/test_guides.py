"""Every block of the guides runs, and every command and flag in the documentation exists."""

from __future__ import annotations

import functools
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from accelerate.state import AcceleratorState
from guide_files import FILES, frames_of
from pages import ROOT, blocks, flags_of, our_command, run_page, shell_commands
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.commands.main import all_commands
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset
from modeling_cllm4rec.training.argument_names import HONOURED

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def frames(synthetic_dataset: SyntheticDataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return interactions and items of the synthetic data set with integer ids."""
    return frames_of(synthetic_dataset)


@pytest.fixture
def hub_in_this_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `push_to_hub` save to a folder with the name of the repository. tests/hub tests real pushes."""
    for kind in (CLLM4RecForRecommendation, PreTrainedTokenizerBase):
        monkeypatch.setattr(kind, "push_to_hub", _saving(kind))


def _saving(kind: Any) -> Callable[..., None]:
    signature = inspect.signature(kind.push_to_hub)

    @functools.wraps(kind.push_to_hub)
    def save(self: Any, repo_id: str, **settings: Any) -> None:
        signature.bind(self, repo_id, **settings)
        kept = {name: value for name, value in settings.items() if name == "include_histories"}
        self.save_pretrained(repo_id, **kept)

    return save


BENCHMARKS = ("choose-a-system", "add-a-baseline")
"""Guides that start a process for each model of a benchmark, which takes 20 seconds."""


@pytest.fixture
def own_modules() -> Iterator[None]:
    """Remove the modules that `trust_remote_code` imported."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


@pytest.mark.parametrize("guide", [pytest.param(name, marks=pytest.mark.slow) if name in BENCHMARKS else name for name in FILES])
@pytest.mark.usefixtures("hub_in_this_folder", "own_modules")
def test_a_guide_runs(
    guide: str,
    frames: tuple[pd.DataFrame, pd.DataFrame],
    tiny_backbones: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tiny_backbones["gpt2"], tmp_path / "gpt2")
    FILES[guide](tmp_path, *frames)
    monkeypatch.chdir(tmp_path)
    (page,) = (ROOT / "docs").rglob(f"{guide}.md")
    run_page(page)


@pytest.mark.parametrize(("page", "code_lines", "tables"), [("README.md", 8, 2), ("docs/own-data.md", 5, 1)])
@pytest.mark.usefixtures("own_modules")
def test_own_data_in_a_few_lines(
    page: str,
    code_lines: int,
    tables: int,
    frames: tuple[pd.DataFrame, pd.DataFrame],
    tiny_backbones: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = [block.code for block in blocks(ROOT / page) if "train_recommender" in block.code]
    shutil.copytree(tiny_backbones["gpt2"], tmp_path / "gpt2")
    interactions, items = frames
    interactions.to_csv(tmp_path / "ratings.csv", index=False)
    items.to_csv(tmp_path / "items.csv", index=False)
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    exec(compile(code.replace("num_train_epochs=5", "num_train_epochs=1"), page, "exec"), {})  # noqa: S102
    assert len(capsys.readouterr().out.splitlines()) == tables * (1 + 5)
    assert len([line for line in code.splitlines() if line]) == code_lines


def test_every_page_is_in_the_navigation_and_on_the_first_page() -> None:
    navigation = json.dumps(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    first = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    places = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]]
    assert [place for place in places if f'"{place}"' not in navigation] == []
    assert [place for place in places if f"({place})" not in first and place != "index.md"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_exist(page: Path) -> None:
    wrong = []
    for block in blocks(page):
        if block.language not in ("", "bash"):
            continue
        for words in shell_commands(block.code) if _is_shell(block.code) else ():
            ours = our_command(words)
            if ours is None:
                continue
            if ours[0] not in all_commands():
                wrong.append(f"line {block.line}: there is no command {ours[0]}")
                continue
            kind = ours[1:2] if ours[0] in ("export", "benchmark") else []
            known = {flag.replace("-", "_") for flag in _flags(ours[0], *kind)}
            if "__trainer" in known:  # a stage, which passes on what transformers has
                known |= {f"__{name}" for name in HONOURED}
            given = {word.split("=")[0] for word in ours[1:] if word.startswith("--")}
            wrong += [f"line {block.line}: {ours[0]} {flag}" for flag in given if flag.replace("-", "_") not in known]
    assert wrong == []


@functools.cache
def _flags(command: str, *kind: str) -> set[str]:
    return flags_of(command, *kind)


def _is_shell(code: str) -> bool:
    """Check that a block without a language has commands, not a drawing."""
    return any(line.startswith(("cllm4rec ", "python ", "accelerate ")) for line in code.splitlines())
