"""`cllm4rec similar-items`: what it prints, what it writes, and wrong flags."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lcrec_models import new_lcrec

from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.hub.loading import load_recommender


@pytest.fixture(scope="module")
def folder(tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("similar") / "lcrec"
    new_lcrec(tiny_backbones["gpt2"])[0].save_pretrained(folder)
    return folder


def run(folder: Path, *words: str) -> int:
    return main(["similar-items", "--model", str(folder), "--device", "cpu", *words])


def test_it_prints_columns_and_json_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = load_recommender(folder, device="cpu").similar_items(["item 0"], 2).to_pylist()
    assert run(folder, "--items", "item 0", "--k", "2") == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], int(line[1]), line[2]) for line in lines] == [
        ("item 0", rank + 1, expected[rank]["item"]) for rank in (0, 1)
    ]
    assert all(line[4].startswith("title ") for line in lines)
    assert run(folder, "--items", "item 0", "--k", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["item"] == expected[0]["item"]


def test_it_writes_a_table_of_the_whole_catalogue(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "--k", "3", "--output", str(tmp_path / "new" / "similar.parquet")) == 0
    table = pq.read_table(tmp_path / "new" / "similar.parquet")
    assert table.num_rows == 12 * 3 and table.column_names == ["target_item", "item", "rank", "score"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--items", "nothing"], "--items is ['nothing']; allowed: the 12 item_ids that the model knows"),
        (["--k", "0"], "--k is 0; allowed: a whole number from 1 to 12"),
        (["--items", "nothing", "item 0", "--candidates", "none"], "--items is ['nothing']"),
        (["--batch-size", "0"], "--batch-size is 0"),
    ],
)
def test_wrong_flags(folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("cllm4rec similar-items: error: ") and message in error
