"""The script `training_speed.py` and the released scheme that it times."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import catalogue_growth
import numpy as np
import pytest
import released_scheme
import torch
import training_speed as speed


def flags_for(data_folder: Path, backbone: Path, *more: str) -> argparse.Namespace:
    arguments = ["--data", str(data_folder), "--backbone", str(backbone), "--batch-size", "4", "--max-text-tokens", "12"]
    return speed.parser().parse_args([*arguments, *more])


@pytest.fixture
def setup(data_folder: Path, tiny_backbone: Path, tmp_path: Path) -> Any:
    made = speed.make_setup(flags_for(data_folder, tiny_backbone), tmp_path)
    made.pretraining.model.eval()
    return made


@pytest.mark.slow
def test_one_run(data_folder: Path, tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["--data", str(data_folder), "--backbone", str(tiny_backbones["gpt2"]), "--output", str(tmp_path)]
    sizes = ["--steps", "2", "--batch-size", "4", "--repeats", "2", "--item-counts", "200", "--max-text-tokens", "12"]
    assert speed.main([*arguments, *sizes]) == 0
    report = json.loads((tmp_path / "speed.json").read_text())
    assert report["documents"]["collaborative"] == report["documents"]["recommendation"] == 60
    assert list(report["training"]) == [*speed.KINDS, "pretraining", "finetuning", "both"]
    for group in report["training"].values():
        assert tuple(group) == speed.SCHEMES
        assert group["released"]["ratio"] == 1
        for row in group.values():
            assert row["documents_per_second"] > 0
            assert row["least_ratio"] <= row["ratio"] <= row["most_ratio"]
    for losses in report["losses"].values():
        assert list(losses) == ["ours", *speed.RELEASED_SCHEMES]
        assert list(losses.values()) == pytest.approx([losses["ours"]] * len(losses), rel=1e-3)
    assert [row["task"] for row in report["catalogue"]] == list(catalogue_growth.TASKS)
    table = (tmp_path / "speed.md").read_text()
    assert all(f"| {name} | " in table for name in speed.SCHEMES)
    assert "| training step, sampled loss | 200 | " in table


def test_two_passes_give_the_states_of_one(setup: Any) -> None:
    released, one_pass = setup.released["released"], setup.released["+ one pass"]
    generator = np.random.default_rng(0)
    texts = [generator.integers(20, 200, size=9) for _ in range(3)]
    for prompt_lengths in ([5, 5, 5], [3, 5, 1]):  # unpadded prompts, then padded ones
        pairs = [(text[:length], text[length:9]) for text, length in zip(texts, prompt_lengths, strict=True)]
        (two, main), (one, same) = released.states(pairs, "content"), one_pass.states(pairs, "content")
        assert main.equal(same)
        assert torch.allclose(two[main >= 0], one[main >= 0], atol=1e-4)
    whole = setup.pretraining.model.hidden_states(torch.from_numpy(np.stack(texts)), None, "content")
    fives = released.states([(text[:5], text[5:]) for text in texts], "content")[0]
    assert torch.allclose(fives, whole[:, 4:8], atol=1e-4)


def test_all_schemes_compute_one_loss(setup: Any) -> None:
    losses = speed.compare_losses(setup, batch_size=7)
    assert list(losses) == ["collaborative", "content", "recommendation"]
    for values in losses.values():
        assert list(values.values()) == pytest.approx([values["ours"]] * 5, rel=1e-5)


def test_another_loss_is_not_timed(setup: Any) -> None:
    setup.released["+ one pass"].lambda_c = 2.0
    with pytest.raises(RuntimeError, match=r"the collaborative loss of one batch is .* in our scheme and .* in '\+ one pass'"):
        speed.compare_losses(setup, batch_size=4)


def test_text_documents_are_ours(setup: Any) -> None:
    texts = setup.pretraining.texts
    rows, prompt_lengths = texts.rows(np.arange(len(texts)))
    tokenized = setup.released["+ tokenized once"].tokenized
    assert [len(prompt) for prompt, _ in tokenized] == prompt_lengths.tolist()
    assert all(np.array_equal(np.concatenate(pair), row) for pair, row in zip(tokenized, rows, strict=True))


@pytest.mark.parametrize(
    ("kind", "side"),
    [("collaborative", "collaborative"), ("recommendation", "collaborative"), ("content", "content")],
)
def test_training_moves_one_side_only(
    data_folder: Path, tiny_backbones: dict[str, Path], tmp_path: Path, kind: str, side: str
) -> None:
    arguments = flags_for(data_folder, tiny_backbones["llama"])
    setup = speed.make_setup(arguments, tmp_path)
    model = setup.pretraining.model
    moving = {id(table.weight) for table in model.tables(side)}
    ours = speed.our_pass(setup, arguments, speed.TrainingOptions(None, None))
    documents = setup.documents[kind][-6:]  # of the texts, reviews: they have a user and an item
    for train in (lambda: setup.released["released"].train(kind, documents, 4), lambda: ours(kind, documents)):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        train()
        for parameter, old in zip(model.parameters(), before, strict=True):
            assert parameter.equal(old) == (id(parameter) not in moving)


def test_histories_that_do_not_fit(setup: Any) -> None:
    stage = setup.pretraining
    stage.model.config.text_config.max_position_embeddings = 12
    with pytest.raises(ValueError, match="the longest history has .* the backbone's context holds 12 tokens"):
        tokenizer = stage.texts.tokenizer
        released_scheme.ReleasedScheme(stage.model, tokenizer, stage.data, speed.Prompts(), stage.histories)


def test_batches_are_spread_over_the_file() -> None:
    documents = np.arange(100, 110)
    assert speed.some_batches(documents, 2, 3).tolist() == [100, 101, 104, 105, 108, 109]
    assert speed.some_batches(documents, 4, 3).tolist() == documents.tolist()
    assert speed.some_batches(documents, 4, 0).tolist() == documents.tolist()


def test_summary_by_hand() -> None:
    rates = {
        "collaborative": {"released": [10.0, 10.0, 10.0], "ours, fp32": [20.0, 30.0, 40.0]},
        "content": {"released": [1.0, 1.0, 1.0], "ours, fp32": [5.0, 5.0, 5.0]},
        "recommendation": {"released": [10.0, 10.0, 10.0], "ours, fp32": [10.0, 10.0, 20.0]},
    }
    summary = speed.summarize(rates, {"collaborative": 60, "content": 90, "recommendation": 60})
    assert summary["collaborative"]["ours, fp32"] == {
        "documents_per_second": 30.0,
        "ratio": 3.0,
        "least_ratio": 2.0,
        "most_ratio": 4.0,
    }
    assert summary["pretraining"]["released"]["documents_per_second"] == pytest.approx(150 / (6 + 90))
    assert summary["pretraining"]["ours, fp32"]["ratio"] == pytest.approx(96 / (2 + 18))
    assert summary["finetuning"]["ours, fp32"]["ratio"] == 1.0
    assert summary["both"]["released"]["documents_per_second"] == pytest.approx(210 / 102)


@pytest.mark.parametrize("task", ["score", "exact", "chunked", "sampled"])
def test_growth_measures(task: str) -> None:
    row = catalogue_growth.measure(task, num_items=150, batch=4, width=8, repeats=2, seed=0)
    assert row["task"] == task
    assert row["table_bytes"] == 150 * 8 * 4
    assert row["items_per_second"] == pytest.approx(4 * 150 / row["seconds"])
    assert row["peak_bytes"] >= row["bytes_before"] > 50e6


@pytest.mark.slow
def test_memory_is_that_of_the_process_alone() -> None:
    """A parent of half a gigabyte does not count, a table of 120 MB does."""
    held = np.ones(64 * 2**20)
    small, large = (speed.measure_task("score", size, 1)["peak_bytes"] for size in (200, 80000))
    assert len(held) == 64 * 2**20
    assert small < 500e6
    assert large - small > 120e6


def test_a_task_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="(?s)nonsense over 10 items ended with code 2: .*invalid choice: 'nonsense'"):
        speed.measure_task("nonsense", 10, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "-1"], "--steps is -1; it must be 0 or more"),
        (["--batch-size", "0"], "--batch-size is 0; it must be 1 or more"),
        (["--item-counts", "--data", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert speed.main([*arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training_speed.py: error: ")]
    assert len(error) == 1
    assert message in error[0]
