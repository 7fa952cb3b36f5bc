"""LC-Rec's commands, end to end on the tiny world: index, align, evaluate, recommend, search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation

Mains = dict[str, Callable[..., int]]


@pytest.fixture(scope="module")
def run(mains: Mains, data_folder: Path, tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run, with its semantic IDs next to it."""
    folder = tmp_path_factory.mktemp("runs")
    index = {
        "data": str(data_folder),
        "encoder": str(tiny_backbones["gpt2"]),
        "num_levels": 2,
        "codebook_size": 8,
        "hidden_dims": [16],
        "latent_dim": 4,
        "num_train_epochs": 5,
        "warmup_epochs": 1,
        "learning_rate": "1e-3",
        "output": str(folder / "index"),
    }
    (folder / "index.yaml").write_text(yaml.safe_dump(index))
    assert mains["index_items"]("--config", folder / "index.yaml") == 0
    model = {
        "data": str(data_folder),
        "index": str(folder / "index"),
        "backbone": str(tiny_backbones["gpt2"]),
        "tasks": ["seqrec", "itemsearch=0.2"],
        "num_train_epochs": 1,
        "max_text_tokens": 8,
        "num_beams": 12,
        "output": str(folder / "lcrec"),
    }
    (folder / "align.yaml").write_text(yaml.safe_dump(model))
    assert mains["align"]("--config", folder / "align.yaml") == 0
    return folder / "lcrec"


def test_folder_and_card(run: Path) -> None:
    files = {path.name for path in run.iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "catalogue.parquet", "users.parquet", "rqvae"}
    card = (run / "README.md").read_text()
    assert "An LC-Rec recommender" in card and "Intentions and preferences were written by: " in card and "lc-rec" in card
    assert "\ncllm4rec index-items --data " in card and "\ncllm4rec align --data " in card
    record = json.loads((run / "training.json").read_text())
    assert list(record) == ["index-items", "align"]
    assert [sorted(epoch) for epoch in record["index-items"]["history"]] == [["epoch", "train/loss"]] * 5
    config = json.loads((run / "config.json").read_text())
    assert config["item_encoder"]["pooling"] == "separate" and config["item_encoder"]["encoder"] == "gpt2"  # no path
    assert len(config["recommendation_prompts"]) == 17 and len(config["query_prompts"]["alone"]) == 5


def test_evaluate(mains: Mains, run: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ("--model", run, "--data", data_folder, "--output", tmp_path)
    assert mains["eval"](*shared, "--split", "test") == 0  # given train and validation, as in the paper
    printed = capsys.readouterr().out
    assert "| LC-Rec |" in printed and "hit_rate@10" in printed and "constrained search with 12 beams, template 0" in printed
    report = json.loads((tmp_path / "evaluation-test-given-train-validation.json").read_text())
    assert set(report["metrics"]) == {"hit_rate@1", "hit_rate@5", "hit_rate@10", "ndcg@5", "ndcg@10"}
    assert report["illegal_items"] == 0 and "template 0; illegal items 0." in printed
    assert mains["eval"](*shared, "--templates", "all", "--max-users", "7", "--num-beams", "10", "--baselines") == 0
    printed = capsys.readouterr().out
    assert "mean over 17 templates" in printed and "7 users (a random sample of" in printed
    assert mains["eval"](*shared, "--scoring", "all", "--max-users", "7") == 0
    assert "all indices scored" in capsys.readouterr().out
    assert {path.stem.removeprefix("evaluation-test-given-") for path in tmp_path.glob("*.json")} == {
        "train-validation",
        "train-validation-7-users-10-beams-templates-all",
        "train-validation-7-users-all-scored",
    }
    assert mains["eval"](*shared, "--split", "validation", "--max-users", "7") == 0
    assert any(path.name.startswith("evaluation-validation-given-train-7-users") for path in tmp_path.glob("*.json"))


def test_recommend(mains: Mains, run: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = RecommendationData.load(data_folder)
    items = data.items["item_id"].to_pylist()
    pq.write_table(pa.table({"history": [items[:3], items[5:6]]}), tmp_path / "users.parquet")
    shared = ("--model", run, "--k", "4")
    assert mains["recommend"](*shared, "--histories", tmp_path / "users.parquet", "--output", tmp_path / "recs.parquet") == 0
    table = pq.read_table(tmp_path / "recs.parquet").to_pandas()
    assert table["user"].tolist() == [0] * 4 + [1] * 4 and set(table["item"]) <= set(items)
    capsys.readouterr()
    assert mains["recommend"](*shared, "--query", "something for a quiet evening", "--num-beams", "20") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    some = ("--query", "tea", "--candidates", items[0], "nowhere", "--on-unknown", "skip")
    assert mains["recommend"]("--model", run, "--k", "1", *some) == 0
    assert capsys.readouterr().out.split("\t")[2] == items[0]
    assert mains["recommend"](*shared, "--users", str(data.users["user_id"][0].as_py()), "--scoring", "all") == 0
    exact = capsys.readouterr().out
    assert mains["recommend"](*shared, "--users", str(data.users["user_id"][0].as_py()), "--num-beams", "40") == 0
    assert [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()] == [
        line.split("\t")[2] for line in exact.splitlines()
    ]


def test_recommend_to_everyone_when_a_history_is_gone(
    mains: Mains, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LCRecForRecommendation.from_pretrained(run)
    assert model.catalogue is not None and model.users is not None
    first, *others = model.users.ids.array.to_pylist()
    model.remove_items(model.catalogue.ids.ids_of(np.unique(model.users.history(0))))
    model.save_pretrained(tmp_path / "model")
    gone = [user for number, user in enumerate([first, *others]) if not len(model.users.history(number))]
    command = ("--model", tmp_path / "model", "--k", "2", "--output", tmp_path / "everyone.parquet")
    assert mains["recommend"](*command) == 2
    assert f"--users is [{first!r}" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "everyone.parquet").exists()
    assert mains["recommend"](*command, "--on-unknown", "skip") == 0
    found = pq.read_table(tmp_path / "everyone.parquet")["user"].to_pylist()
    assert found == [user for user in [first, *others] if user not in gone for _ in range(2)]


def test_one_line_for_bad_input(
    mains: Mains, run: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (
            mains["recommend"],
            ("--model", run, "--k", "13"),
            "--k is 13; allowed: 1 to 12, the number of beams of the search; give --num-beams 13",
        ),
        (mains["recommend"], ("--model", run, "--query", " "), r"queries[0] is ' '; allowed: a text with words"),
        (mains["recommend"], ("--model", run, "--query", "tea", "--include-seen"), "--include-seen: a query is asked without a"),
        (
            mains["recommend"],
            ("--model", run, "--query", "tea", "--batch-size", "0"),
            "--batch-size is 0; allowed: a whole number of 1 or more",
        ),
        (mains["recommend"], ("--model", run, "--query", "tea", "--num-beams", "5", "--scoring", "all"), "has no beams"),
        (mains["eval"], ("--model", run, "--data", data_folder, "--templates", "99"), "the model has templates 0 to 16"),
        (mains["align"], ("--config", run.parent / "align.yaml"), "holds a run already; pass "),
        (mains["index_items"], ("--config", run.parent / "index.yaml"), "holds an index already; set resume"),
        (mains["index_items"], ("--data", data_folder), "output is not set; name a folder"),
    ]
    for command, flags, message in cases:
        assert command(*flags) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error


def test_new_items_are_recommended_without_training(run: Path, tmp_path: Path) -> None:
    model = LCRecForRecommendation.from_pretrained(run)
    assert model.indexer is not None and model.catalogue is not None
    before, width = model.num_items, model.indexer.config.input_dim
    new = pa.table({"item_id": pa.array(["brand new"], model.catalogue.ids.array.type)})
    model.add_items(new, np.random.default_rng(0).normal(size=(1, width)).astype(np.float32))
    assert model.num_items == before + 1
    known = model.catalogue.ids.ids_of([0])
    found = model.recommend(histories=[known], k=before, num_beams=before + 1).to_pandas()["item"].tolist()
    assert "brand new" in found and len(set(found)) == before
