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

import numpy as np
import pandas as pd
import pytest
import yaml
from accelerate.state import AcceleratorState
from pages import ROOT, blocks, flags_of, our_command, run_page, shell_commands
from scipy import sparse
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.commands.main import all_commands
from modeling_cllm4rec.corpora.splits import leave_one_out_split
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def frames(synthetic_dataset: SyntheticDataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return interactions and items of the synthetic data set with integer ids."""
    interactions = synthetic_dataset.interactions.to_pandas().drop(columns="review").drop_duplicates(["user_id", "item_id"])
    items = synthetic_dataset.items.to_pandas()
    items["categories"] = items["categories"].map("|".join)
    item_number = {name: number for number, name in enumerate(items["item_id"])}
    interactions["item_id"] = interactions["item_id"].map(item_number)
    interactions["user_id"] = pd.factorize(interactions["user_id"])[0]
    items["item_id"] = range(len(items))
    return interactions, items


def csv_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write the input files of the guide about CSV files."""
    names = {"user_id": "userId", "item_id": "movieId", "categories": "genres"}
    interactions.rename(columns=names).to_csv(folder / "ratings.csv", index=False)
    items.rename(columns=names)[["movieId", "title", "genres"]].to_csv(folder / "movies.csv", index=False)


def plain_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write the input files of the guides about backbones and splits."""
    interactions.to_csv(folder / "interactions.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)


def changing_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write the first interactions and items, the new items, and all interactions and items."""
    first = items[items["item_id"] < 36]
    plain_files(folder, interactions[interactions["item_id"] < 36], first)
    items[items["item_id"] >= 36].to_csv(folder / "new_items.csv", index=False)
    interactions.to_csv(folder / "interactions_now.csv", index=False)
    items.to_csv(folder / "items_now.csv", index=False)


def splits_of(interactions: pd.DataFrame) -> list[pd.DataFrame]:
    """Split interactions into train, validation and test by time."""
    codes = leave_one_out_split(interactions["user_id"].to_numpy(), interactions["timestamp"].to_numpy())
    return [interactions[codes == code] for code in range(3)]


def recbole_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write a RecBole data set, and one with a given split."""
    kinds = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
    header = {name: f"{name}:{kind}" for name, kind in kinds.items()}

    def write(frame: pd.DataFrame, name: str) -> None:
        path = folder / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.rename(columns=header).to_csv(path, sep="\t", index=False)

    write(interactions, "tiny/tiny.inter")
    write(items[["item_id", "title"]].rename(columns={"title": "title:token_seq"}), "tiny/tiny.item")
    for word, part in zip(("train", "valid", "test"), splits_of(interactions), strict=True):
        write(part, f"split/split.{word}.inter")


def cllm4rec_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write the matrices and reviews of a released CLLM4Rec data set, and titles."""
    released = folder / "released"
    (released / "user_item_texts").mkdir(parents=True)
    shape = (interactions["user_id"].max() + 1, len(items))
    parts = splits_of(interactions)
    for word, part in zip(("train", "val", "test"), parts, strict=True):
        matrix = sparse.csr_matrix((np.ones(len(part)), (part["user_id"], part["item_id"])), shape=shape)
        sparse.save_npz(released / f"{word}_matrix.npz", matrix)
    with open(released / "user_item_texts" / "review.jsonl", "w", encoding="utf-8") as file:
        for user, item in parts[0][["user_id", "item_id"]].itertuples(index=False):
            print(json.dumps([f"user_{user} wrote the following review for item_{item}:", "Good."]), file=file)
    items[["item_id", "title"]].to_csv(folder / "titles.csv", index=False)


def lcrec_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write a released LC-Rec data set with its semantic IDs."""
    released = folder / "released"
    released.mkdir()
    ordered = interactions.sort_values("timestamp", kind="stable")
    content = {
        "inter": {str(user): [int(item) for item in history] for user, history in ordered.groupby("user_id")["item_id"]},
        "item": {str(row.item_id): {"title": row.title, "description": row.description} for row in items.itertuples()},
        "index": {str(item): [f"<a_{item // 16}>", f"<b_{item % 16}>"] for item in items["item_id"]},
    }
    for kind, value in content.items():
        (released / f"Tiny.{kind}.json").write_text(json.dumps(value))


Files = Callable[[Path, pd.DataFrame, pd.DataFrame], None]
FILES: dict[str, Files] = {
    "from-csv-to-the-hub": csv_files,
    "own-backbone": plain_files,
    "own-split": plain_files,
    "changing-catalogue": changing_files,
    "from-recbole": recbole_files,
    "from-cllm4rec-files": cllm4rec_files,
    "from-lcrec-files": lcrec_files,
}
"""Guide -> function that writes its input files."""


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


@pytest.fixture
def own_modules() -> Iterator[None]:
    """Remove the modules that `trust_remote_code` imported."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


@pytest.mark.parametrize("guide", FILES)
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
    run_page(ROOT / "docs" / "guides" / f"{guide}.md")


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
    exec(compile(code.replace("epochs=5", "epochs=1"), page, "exec"), {})  # noqa: S102
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
            given = {word.split("=")[0] for word in ours[1:] if word.startswith("--")}
            wrong += [f"line {block.line}: {ours[0]} {flag}" for flag in given if flag.replace("-", "_") not in known]
    assert wrong == []


@functools.cache
def _flags(command: str, *kind: str) -> set[str]:
    return flags_of(command, *kind)


def _is_shell(code: str) -> bool:
    """Check that a block without a language has commands, not a drawing."""
    return any(line.startswith(("cllm4rec ", "python ", "accelerate ")) for line in code.splitlines())
