"""Both stages on the tiny world: what should change changed, what should not did not; the best epoch; other clothes."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from modeling_cllm4rec.cllm4rec import objectives
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import FinetuningStage, finetune
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.pretraining import PretrainingStage, new_model, pretrain
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.language_model import pretrained_backbone
from modeling_cllm4rec.core.losses import multinomial_nll
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.history_order import UnorderedHistoriesWarning
from modeling_cllm4rec.corpora.text_vectors import text_vectors, whitened_rows
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.stages import Objective, Part, Step, StepOutput, part_loss

Weights = dict[str, torch.Tensor]
Read = Callable[[Path | str], Weights]
MakePretrain = Callable[..., PretrainArguments]
MakeFinetune = Callable[..., FinetuneArguments]
REPOSITORY = Path(__file__).parents[2]


def backbone_of(weights: Weights) -> Weights:
    return {name.removeprefix("backbone."): one for name, one in weights.items() if name.startswith("backbone.")}


def moved_rows(weights: Weights, start: Weights, table: str) -> list[int]:
    return (weights[f"{table}.weight"] != start[f"{table}.weight"]).any(1).nonzero().flatten().tolist()


def assert_close(ours: Weights, theirs: Weights, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def with_silent_users(data: RecommendationData, count: int, folder: Path) -> RecommendationData:
    """Return the same data with no biography and no review of the first users."""
    texts = data.users["biography"].to_pylist()
    users = data.users.set_column(1, "biography", pa.array([None] * count + texts[count:], pa.large_string()))
    silent = pc.less(data.interactions["user_index"], count)
    reviews = pc.if_else(silent, pa.scalar(None, pa.large_string()), data.interactions["review"])
    place = data.interactions.column_names.index("review")
    interactions = data.interactions.set_column(place, "review", reviews)
    return dataclasses.replace(data, users=users, interactions=interactions).save(folder)


# ---- what changes and what does not ----


@pytest.mark.parametrize("backbone", ["gpt2", "llama-tied"])
def test_frozen_pretraining_moves_the_rows_that_occur_and_nothing_else(
    backbone: str,
    pretrain_arguments: MakePretrain,
    tiny_backbones: dict[str, Path],
    data: RecommendationData,
    tmp_path: Path,
    read_weights: Read,
) -> None:
    data = with_silent_users(data, 5, tmp_path / "data")
    arguments = pretrain_arguments(
        data=str(data.folder),
        backbone=str(tiny_backbones[backbone]),
        content_share=1.0,
        text_validation_share=0.0,
        lambda_c=0.0,
    )
    model, _ = new_model(data, arguments)
    start = {name: one.clone() for name, one in model.state_dict().items()}
    _, progress = pretrain(arguments)
    weights = read_weights(arguments.run_folder / "pretrained")
    original: Any = AutoModelForCausalLM.from_pretrained(tiny_backbones[backbone])
    saved = backbone_of(weights)
    assert len(saved) > 15
    assert all(torch.equal(original.state_dict()[name], one) for name, one in saved.items())

    assert progress.best_epoch == 1
    histories, reviews = data.histories("train"), data.reviews()
    readers = np.flatnonzero(np.diff(histories.indptr)).tolist()
    biographies = [user for user, text in enumerate(data.users["biography"].to_pylist()) if text]
    writers = sorted({*reviews["user_index"].to_pylist(), *biographies})
    assert writers == list(range(5, data.num_users))
    assert moved_rows(weights, start, "user_collaborative") == readers
    assert moved_rows(weights, start, "item_collaborative") == list(range(data.num_items))  # the head predicts over all
    assert moved_rows(weights, start, "user_content") == writers
    assert moved_rows(weights, start, "item_content") == list(range(data.num_items))  # all have a title


def test_a_warm_up_moves_content_rows_only(
    pretrain_arguments: MakePretrain, data: RecommendationData, read_weights: Read
) -> None:
    arguments = pretrain_arguments(stop_after_steps=9, lr_scheduler_type="constant", warmup_steps=0.0)  # the warm-up has 17 steps
    model, _ = new_model(data, arguments)
    start = {name: one.clone() for name, one in model.state_dict().items()}
    trained, progress = pretrain(arguments)
    assert (progress.epoch, progress.step, progress.finished) == (0, 9, False)
    weights = dict(trained.state_dict())
    assert moved_rows(weights, start, "user_collaborative") == moved_rows(weights, start, "item_collaborative") == []
    assert moved_rows(weights, start, "item_content") and moved_rows(weights, start, "user_content")
    assert not (arguments.run_folder / "pretrained").exists()


def test_item_rows_start_from_the_words_of_their_texts(pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    model, tokenizer = new_model(data, pretrain_arguments())
    words = model.get_input_embeddings().weight  # type: ignore[union-attr]
    title, brand, categories = (data.items[name][3].as_py() for name in ("title", "brand", "categories"))
    text = " ".join([title, brand, ", ".join(dict.fromkeys(categories)) if isinstance(categories, list) else categories])
    expected = words[tokenizer(text, add_special_tokens=False)["input_ids"]].mean(0)
    drawn, _ = new_model(data, pretrain_arguments(init_ids="random"))
    for side in SIDES:
        users, items = model.tables(side)
        torch.testing.assert_close(items.weight[3], expected)
        assert torch.equal(users.weight, drawn.tables(side)[0].weight)  # users' rows are drawn either way
    for table in (*drawn.tables("content"), *drawn.tables("collaborative")):
        assert table.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(drawn.item_content.weight, drawn.item_collaborative.weight)


def test_item_rows_start_from_whitened_text_vectors(pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    """Rows of items with a text are the whitened vectors, as large as word rows; the others are random and as large."""
    titles = pa.array([None if item == 0 else data.items["title"][item].as_py() for item in range(data.num_items)])
    items = data.items.select(["item_id"]).append_column("title", titles)
    part = dataclasses.replace(data, items=items)
    model, _ = new_model(part, pretrain_arguments(init_ids="text_vectors"))
    expected = whitened_rows(text_vectors(part, fields=["title"]), model.config.hidden_size, pretrain_arguments().seed)
    known = expected.any(axis=1)
    size = float(model.get_input_embeddings().weight.detach().std())  # type: ignore[union-attr]
    for side in SIDES:
        rows = model.tables(side)[1].weight.detach().numpy()
        scale = rows[known] / np.where(expected[known], expected[known], np.nan)
        np.testing.assert_allclose(scale[~np.isnan(scale)], np.nanmean(scale), rtol=1e-4)
        assert np.sqrt(np.square(rows[known]).mean()) == pytest.approx(size, rel=1e-4)
        assert rows[~known].std() == pytest.approx(size, rel=0.3)
    assert not known[0] and known.sum() > 10


def test_text_vectors_read_the_training_reviews_where_there_are_no_texts(
    pretrain_arguments: MakePretrain, data: RecommendationData, caplog: pytest.LogCaptureFixture
) -> None:
    bare = dataclasses.replace(data, items=data.items.select(["item_id"]))
    with caplog.at_level(logging.INFO):
        new_model(bare, pretrain_arguments(init_ids="text_vectors"))
    assert "texts of items: review;" in caplog.text


def test_pretraining_without_epochs_writes_the_new_model(
    pretrain_arguments: MakePretrain, data: RecommendationData, read_weights: Read
) -> None:
    arguments = pretrain_arguments(num_train_epochs=0, warmup_epochs=0)
    pretrain(arguments)
    model, _ = new_model(data, arguments)
    written = read_weights(arguments.run_folder / "pretrained")
    for name, weight in model.state_dict().items():
        if name in written:
            torch.testing.assert_close(written[name], weight)
    assert not list(arguments.run_folder.glob("checkpoints/*/step-*"))


def test_text_rows_without_texts(pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    with pytest.raises(ValueError, match=r"init_ids is 'text', but no item has any of \['colour'\]; use init_ids: random"):
        new_model(data, pretrain_arguments(init_columns=["colour"]))


def test_lora_leaves_the_base_weights_and_is_merged_at_the_end(
    pretrain_arguments: MakePretrain, tiny_backbones: dict[str, Path], read_weights: Read
) -> None:
    original: Any = AutoModelForCausalLM.from_pretrained(tiny_backbones["gpt2"])
    model, _ = pretrain(pretrain_arguments(tune="lora", stop_after_steps=20))
    weights = {name.replace(".base_layer", ""): one for name, one in model.backbone.state_dict().items()}
    assert all(torch.equal(weights[name], one) for name, one in original.state_dict().items())
    assert any(".lora_B." in name and one.any() for name, one in weights.items())

    arguments = pretrain_arguments(tune="lora", resume=True)
    model, progress = pretrain(arguments)
    assert progress.finished
    saved = backbone_of(read_weights(arguments.run_folder / "pretrained"))
    assert saved.keys() <= original.state_dict().keys()
    changed = {name for name, one in saved.items() if not torch.equal(original.state_dict()[name], one)}
    assert changed == {name for name in saved if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))}
    assert_reloads_equal(model, arguments.run_folder / "pretrained")


@torch.no_grad()
def assert_reloads_equal(model: CLLM4RecForRecommendation, folder: Path) -> None:
    ids = torch.tensor([[3, 5, model.config.id_offset, model.config.id_offset + model.config.num_users]])
    again = CLLM4RecForRecommendation.from_pretrained(folder)
    assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)


def test_full_tuning_moves_the_backbone(finetune_arguments: MakeFinetune, pretrained: Path, read_weights: Read) -> None:
    arguments = finetune_arguments(tune="full", num_train_epochs=1)
    model, _ = finetune(arguments)
    saved, start = (backbone_of(read_weights(folder)) for folder in (arguments.run_folder, pretrained))
    still = [name for name, one in saved.items() if torch.equal(one, start[name])]
    assert still == []
    assert_reloads_equal(model, arguments.run_folder)


@pytest.mark.parametrize("content_every", [0, 1])
def test_finetuning_moves_content_rows_with_content_steps_only(
    content_every: int, finetune_arguments: MakeFinetune, pretrained: Path, read_weights: Read
) -> None:
    arguments = finetune_arguments(content_every=content_every)
    finetune(arguments)
    weights, start = read_weights(arguments.run_folder), read_weights(pretrained)
    assert all(torch.equal(one, backbone_of(start)[name]) for name, one in backbone_of(weights).items())
    for table in ("user_collaborative", "item_collaborative"):
        assert moved_rows(weights, start, table)
    for table in ("user_content", "item_content"):
        assert bool(moved_rows(weights, start, table)) == bool(content_every)


def test_without_anything_to_train_on_nothing_moves(
    finetune_arguments: MakeFinetune, pretrained: Path, read_weights: Read, assert_same_bits: Callable[..., None]
) -> None:
    arguments = finetune_arguments(learning_rate=0.0)
    finetune(arguments)
    assert_same_bits(read_weights(arguments.run_folder), read_weights(pretrained))


# ---- the same training in other clothes ----


def run_finetune(arguments: FinetuneArguments, read: Read) -> tuple[Weights, list[dict[str, Any]]]:
    _, progress = finetune(arguments)
    return read(arguments.run_folder), without_times(progress)


def without_times(progress: Progress) -> list[dict[str, Any]]:
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in progress.history]


def test_accumulation_is_a_larger_batch_in_finetuning(
    finetune_arguments: MakeFinetune, still_pretrained: Path, tmp_path: Path, read_weights: Read
) -> None:
    clothes = [{"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}]
    results = [
        run_finetune(
            finetune_arguments(
                start=str(still_pretrained),
                output=str(tmp_path / str(number)),
                learning_rate=1e-3,
                num_train_epochs=2,
                tune="full",
                content_every=3,
                **one,
            ),
            read_weights,
        )
        for number, one in enumerate(clothes)
    ]
    assert_close(results[0][0], results[1][0], 1e-5)
    assert [epoch["step"] for epoch in results[0][1]] == [epoch["step"] for epoch in results[1][1]]


@pytest.mark.parametrize("item_loss", ["exact", "sampled"])
def test_accumulation_is_a_larger_batch_in_pretraining(
    item_loss: str, pretrain_arguments: MakePretrain, still_backbone: Path, tmp_path: Path, read_weights: Read
) -> None:
    weights, histories = [], []
    for number, one in enumerate(
        [{"per_device_train_batch_size": 32}, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}]
    ):
        arguments = pretrain_arguments(
            backbone=str(still_backbone), output=str(tmp_path / str(number)), learning_rate=1e-3, item_loss=item_loss, **one
        )
        _, progress = pretrain(arguments)
        weights.append(read_weights(arguments.run_folder / "pretrained"))
        histories.append(without_times(progress))
    assert_close(weights[0], weights[1], 1e-5)
    for one, other in zip(*histories, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


TWO_PROCESSES = """
import json, os, sys
import torch
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.cllm4rec.pretraining import pretrain

torch.set_num_threads(1)
for stage, kind in ((pretrain, PretrainArguments), (finetune, FinetuneArguments)):
    _, progress = stage(kind(**json.loads(sys.argv[1])[stage.__name__]))
    assert torch.distributed.is_initialized() and torch.distributed.get_world_size() == 2
    assert progress.finished
    line = f"world size {torch.distributed.get_world_size()} rank {torch.distributed.get_rank()}"
    os.write(1, (line + chr(10)).encode())  # at once: two processes write to one pipe
"""


@pytest.mark.slow
@pytest.mark.parametrize("item_loss", ["exact", "sampled"])
def test_two_processes_are_a_larger_batch(
    item_loss: str,
    pretrain_arguments: MakePretrain,
    finetune_arguments: MakeFinetune,
    still_backbone: Path,
    tmp_path: Path,
    read_weights: Read,
) -> None:
    """Both stages by torchrun on two processes, at half the batch size; 60 users in batches of 8 leave odd parts."""
    weights: list[tuple[Weights, Weights]] = []
    for number, size in enumerate((8, 4)):
        run = tmp_path / str(number)
        first = pretrain_arguments(
            backbone=str(still_backbone),
            output=str(run),
            learning_rate=1e-3,
            per_device_train_batch_size=size,
            item_loss=item_loss,
        )
        second = finetune_arguments(
            start=str(run / "pretrained"),
            output=str(run),
            learning_rate=1e-3,
            per_device_train_batch_size=size,
            item_loss=item_loss,
            tune="full",
            content_every=4,
            num_train_epochs=2,
        )
        if size == 8:
            pretrain(first)
            finetune(second)
        else:
            script = tmp_path / "two.py"
            script.write_text(TWO_PROCESSES)
            values = {"pretrain": dataclasses.asdict(first), "finetune": dataclasses.asdict(second)}
            ended = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), json.dumps(values)],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert ended.returncode == 0, ended.stderr[-3000:]
            assert sorted(line for line in ended.stdout.splitlines() if line.startswith("world size")) == [
                "world size 2 rank 0",
                "world size 2 rank 0",
                "world size 2 rank 1",
                "world size 2 rank 1",
            ]
        weights.append((read_weights(run / "pretrained"), read_weights(run)))
    for one, two in zip(*weights, strict=True):
        assert_close(one, two, 1e-5)


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
@pytest.mark.parametrize("tune", ["frozen", "full"])
def test_gradient_checkpointing_computes_the_same(
    backbone: str,
    tune: str,
    pretrain_arguments: MakePretrain,
    tiny_backbones: dict[str, Path],
    tmp_path: Path,
    read_weights: Read,
) -> None:
    """With dropout on: the second computation draws the same numbers."""
    results = []
    for switched in (False, True):
        arguments = pretrain_arguments(
            backbone=str(tiny_backbones[backbone]),
            output=str(tmp_path / str(switched)),
            tune=tune,
            gradient_checkpointing=switched,
            warmup_epochs=0,
        )
        model, _ = pretrain(arguments)
        assert any(getattr(part, "gradient_checkpointing", False) for part in model.backbone.modules()) == switched
        results.append(read_weights(arguments.run_folder / "pretrained"))
    assert_close(*results, 1e-6)


def test_the_chunked_item_loss_trains_the_same(
    finetune_arguments: MakeFinetune, tmp_path: Path, read_weights: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "multinomial_nll", functools.partial(multinomial_nll, chunk_size=7))  # 40 items
    runs = [finetune_arguments(item_loss=one, output=str(tmp_path / one)) for one in ("exact", "chunked")]
    exact, chunked = (run_finetune(arguments, read_weights)[0] for arguments in runs)
    assert_close(exact, chunked, 1e-5)


def test_the_sampled_item_loss_trains(
    pretrain_arguments: MakePretrain,
    finetune_arguments: MakeFinetune,
    data: RecommendationData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objectives, "multinomial_nll", functools.partial(multinomial_nll, num_samples=20))
    monkeypatch.setattr(PretrainingStage, "validate", lambda self, epoch: {})  # keeps the last epoch
    arguments = pretrain_arguments(item_loss="sampled", warmup_epochs=0, num_train_epochs=16, lambda_c=0.0, learning_rate=0.03)
    model, progress = pretrain(arguments)
    assert progress.best_epoch == -1
    assert item_nll(arguments, model, data) < item_nll(arguments, new_model(data, arguments)[0], data) - 0.1
    _, progress = finetune(finetune_arguments(item_loss="sampled", output=str(tmp_path / "finetune")))
    assert progress.finished


def test_bf16_trains_float32_weights(finetune_arguments: MakeFinetune, read_weights: Read) -> None:
    arguments = finetune_arguments(bf16=True, num_train_epochs=1)
    _, progress = finetune(arguments)
    assert progress.finished
    assert {one.dtype for one in read_weights(arguments.run_folder).values()} == {torch.float32}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rates_rise_and_fall(schedule: str, finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 steps, a quarter of them warm-up: 0, 1/3, 2/3, then 1 and down (or not)."""
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def listen(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", listen)
    finetune(finetune_arguments(lr_scheduler_type=schedule, warmup_steps=0.25, learning_rate=0.3))
    assert rates[:4] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    left = np.arange(9) / 9
    falling = {"constant": np.ones(9), "linear": 1 - left, "cosine": (1 + np.cos(np.pi * left)) / 2}[schedule]
    assert rates[3:] == pytest.approx(0.3 * falling)


@torch.no_grad()
def item_nll(arguments: PretrainArguments, model: CLLM4RecForRecommendation, data: RecommendationData) -> float:
    """Nats of an item of the train histories, in the order of the data."""
    tokenizer = new_model(data, arguments)[1]
    with pytest.warns(UnorderedHistoriesWarning, match="CLLM4Rec reads it with reorder=False; reorder=True draws new orders"):
        stage = PretrainingStage(model.eval(), tokenizer, data, dataclasses.replace(arguments, reorder=False, item_loss="exact"))
    users = stage.histories.users
    output = part_loss(stage, Step("collaborative", users), epoch=1)
    return float(output.nll / output.tokens)


# ---- the best epoch ----


def script_validation(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[Weights]:
    """Let the n-th validation of finetuning give values[n]; what is returned collects the weights at those moments."""
    seen: list[Weights] = []

    def validate(self: FinetuningStage, epoch: int) -> dict[str, float]:
        seen.append({name: one.clone() for name, one in self.model.state_dict().items()})
        return {"selection": values[epoch]}

    monkeypatch.setattr(FinetuningStage, "validate", validate)
    return seen


def assert_saved(folder: Path, weights: Weights, read: Read) -> None:
    saved = read(folder)
    assert all(torch.equal(one, weights[name]) for name, one in saved.items())


def test_the_best_epoch_is_kept(finetune_arguments: MakeFinetune, read_weights: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = script_validation(monkeypatch, [1.0, 3.0, 2.0, 2.5])
    arguments = finetune_arguments(num_train_epochs=4, tune="full")
    model, progress = finetune(arguments)
    assert (progress.epoch, progress.best_epoch, progress.best) == (4, 1, 3.0)
    assert_saved(arguments.run_folder, seen[1], read_weights)
    assert torch.equal(model.item_collaborative.weight, seen[1]["item_collaborative.weight"])
    assert not torch.equal(seen[1]["item_collaborative.weight"], seen[3]["item_collaborative.weight"])


def test_patience_stops_early_and_of_equal_epochs_the_first_is_kept(
    finetune_arguments: MakeFinetune, read_weights: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = script_validation(monkeypatch, [1.0, 3.0, 2.0, 3.0, 9.0])
    arguments = finetune_arguments(num_train_epochs=5, early_stopping_patience=2)
    _, progress = finetune(arguments)
    assert (progress.epoch, progress.best_epoch, progress.finished) == (4, 1, True)
    assert_saved(arguments.run_folder, seen[1], read_weights)
    again, resumed = finetune(finetune_arguments(num_train_epochs=5, early_stopping_patience=2, resume=True))
    assert resumed.epoch == 4  # an early end is an end
    assert len(seen) == 4
    assert torch.equal(again.item_collaborative.weight, seen[1]["item_collaborative.weight"])


def test_validation_by_the_real_metrics_chooses(finetune_arguments: MakeFinetune) -> None:
    _, progress = finetune(finetune_arguments(num_train_epochs=4))
    values = [epoch["selection"] for epoch in progress.history]
    assert progress.best_epoch == int(np.argmax(values))
    for epoch in progress.history:  # ndcg@100 is left out: the catalogue has 40 items
        assert epoch["selection"] == pytest.approx(epoch["validation/recall@20"] + epoch["validation/recall@40"])


def test_eval_every_validates_seldom_and_at_the_end(finetune_arguments: MakeFinetune) -> None:
    _, progress = finetune(finetune_arguments(num_train_epochs=5, eval_every=2))
    assert ["selection" in epoch for epoch in progress.history] == [False, True, False, True, True]


def test_pretraining_learns_words(pretrain_arguments: MakePretrain) -> None:
    _, progress = pretrain(
        pretrain_arguments(
            num_train_epochs=2, warmup_epochs=0, tune="full", backbone_learning_rate=1e-3, per_device_train_batch_size=16
        )
    )
    words = [epoch["validation/word_nll"] for epoch in progress.history]
    assert words[-1] < words[0] - 0.05


# ---- what goes wrong ----


def test_a_tokenizer_that_cannot_have_id_tokens_names_the_backbone(
    data: RecommendationData, tiny_backbones: dict[str, Path], pretrain_arguments: MakePretrain, tmp_path: Path
) -> None:
    backbone = shutil.copytree(tiny_backbones["gpt2"], tmp_path / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.add_tokens(["<user_3>"])
    tokenizer.save_pretrained(backbone)
    message = f"backbone: {backbone} has a tokenizer that cannot be used: .* already has the token '<user_3>'"
    with pytest.raises(InputError, match=message):
        new_model(data, pretrain_arguments(backbone=str(backbone)))
    (backbone / "tokenizer.json").write_bytes(b"no JSON")
    with pytest.raises(InputError, match=f"backbone: the tokenizer in {backbone} cannot be read .*; copy it again"):
        new_model(data, pretrain_arguments(backbone=str(backbone)))
    for file in backbone.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(MissingFileError, match=f"backbone: {backbone} has no tokenizer; save it with the model's weights"):
        new_model(data, pretrain_arguments(backbone=str(backbone)))


def test_a_backbone_with_broken_files_or_of_another_kind(tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    backbone = shutil.copytree(tiny_backbones["gpt2"], tmp_path / "backbone")
    (backbone / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=f"backbone: the weights in {backbone} cannot be read .*; copy the folder again"):
        pretrained_backbone(backbone, torch.float32)
    (backbone / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=f"backbone: {backbone} is no folder with a language model"):
        pretrained_backbone(backbone, torch.float32)
    for content, message in (
        ('{"model_type": "none"}', "is no causal language model that transformers can load"),
        ('{"model_type": "vit"}', "holds a vit, which is no causal language model"),
    ):
        (backbone / "config.json").write_text(content)
        with pytest.raises(InputError, match=f"backbone: {backbone} {message}"):
            pretrained_backbone(backbone, torch.float32)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_no_number_ends_the_run_before_it_spoils_the_weights(
    broken: str, finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[PreTrainedModel, Weights]] = []

    whole = FinetuningStage.objective

    def objective(self: FinetuningStage, part: Part) -> Objective:
        right = whole(self, part)

        def spoiled(model: CLLM4RecForRecommendation, **inputs: Any) -> StepOutput:
            output = right(model, **inputs)
            held.append((self.model, {name: one.clone() for name, one in self.model.state_dict().items()}))
            assert output.loss is not None and output.nll is not None
            nll = output.nll * float("nan") if broken == "loss" else output.nll
            return StepOutput(output.loss * float("nan"), nll, output.tokens)

        return spoiled if part.epoch == 1 else right

    monkeypatch.setattr(FinetuningStage, "objective", objective)
    arguments = finetune_arguments()
    with pytest.raises(FloatingPointError, match="finetune: at step 5 the loss is .* norm nan; .*last checkpoint is good"):
        finetune(arguments)
    ((model, before),) = held
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    monkeypatch.undo()
    _, progress = finetune(finetune_arguments(resume=True))
    assert progress.finished


def test_a_learning_rate_beyond_all_bounds(finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(FloatingPointError, match="lower learning_rate, or set max_grad_norm"):
        finetune(finetune_arguments(learning_rate=1e30, warmup_steps=0.0, max_grad_norm=0.0))


def test_finetuning_without_a_pretrained_model(finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(FileNotFoundError, match="start: there is no folder .*nowhere; run `cllm4rec pretrain` first"):
        finetune(finetune_arguments(start="nowhere"))


def test_finetuning_from_a_folder_without_a_model(finetune_arguments: MakeFinetune, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"start: .* holds no model \(no config.json\)"):
        finetune(finetune_arguments(start=str(tmp_path)))


def test_pretraining_from_a_folder_that_is_no_language_model(pretrain_arguments: MakePretrain, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="backbone: .* is no causal language model that transformers can load"):
        pretrain(pretrain_arguments(backbone=str(tmp_path)))


def other_ids(data: RecommendationData, folder: Path, table: str) -> Path:
    """Return the same interactions with the first two users or items swapped."""
    rows = getattr(data, table)
    order = [1, 0, *range(2, rows.num_rows)]
    dataclasses.replace(data, **{table: rows.take(order)}).save(folder)
    return folder


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("items", "start: .* is a checkpoint of another catalogue than .*other: its item ids or their order differ"),
        ("users", "start: .* is a checkpoint of other users than .*other: its user ids or their order differ"),
    ],
)
def test_a_checkpoint_of_another_catalogue_or_other_users(
    table: str, message: str, finetune_arguments: MakeFinetune, data: RecommendationData, tmp_path: Path
) -> None:
    folder = other_ids(data, tmp_path / "other", table)
    with pytest.raises(ValueError, match=message):
        finetune(finetune_arguments(data=str(folder)))


def test_a_text_beyond_the_context_names_the_argument(pretrain_arguments: MakePretrain) -> None:
    with pytest.raises(ValueError, match="text documents are longer than the backbone's context of 128 tokens"):
        pretrain(pretrain_arguments(max_text_tokens=None, prompts={"biography": "{user} " + "word " * 140}))


def test_a_recipe_without_epochs_reads_no_text(pretrain_arguments: MakePretrain) -> None:
    long = {"biography": "{user} " + "word " * 140}
    _, progress = pretrain(pretrain_arguments(max_text_tokens=None, prompts=long, num_train_epochs=0, warmup_epochs=0))
    assert progress.finished


def test_content_steps_need_texts(finetune_arguments: MakeFinetune, data: RecommendationData, tmp_path: Path) -> None:
    bare = dataclasses.replace(
        data,
        users=data.users.select(["user_id"]),
        items=data.items.select(["item_id"]),
        interactions=data.interactions.drop_columns(["review"]),
    )
    bare.save(tmp_path / "bare")
    with pytest.raises(ValueError, match="content_every is set, but the data has no texts; set content_every: 0"):
        finetune(finetune_arguments(data=str(tmp_path / "bare"), content_every=2))


def test_pretraining_without_texts_trains_the_collaborative_side(
    pretrain_arguments: MakePretrain, data: RecommendationData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = dataclasses.replace(
        data,
        users=data.users.select(["user_id"]),
        items=data.items.select(["item_id"]),
        interactions=data.interactions.drop_columns(["review"]),
    )
    bare.save(tmp_path / "bare")
    _, progress = pretrain(pretrain_arguments(data=str(tmp_path / "bare"), init_ids="random"))
    assert [sorted(epoch)[-1] for epoch in progress.history] == ["validation/item_nll"]
    assert "no texts: the content LM is not trained" in caplog.text


def test_finetuning_without_validation_keeps_the_last_epoch(
    finetune_arguments: MakeFinetune, data: RecommendationData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = data.interactions.filter(pc.not_equal(data.interactions["split"], "validation"))
    info = {**data.info, "statistics": {**data.info["statistics"], "interactions": kept.num_rows}}
    dataclasses.replace(data, interactions=pa.table(kept), info=info).save(tmp_path / "no-validation")
    model, progress = finetune(finetune_arguments(data=str(tmp_path / "no-validation"), num_train_epochs=2))
    assert "no validation interactions, so no epoch is selected: the weights of the last epoch are kept" in caplog.text
    assert (progress.epoch, progress.best_epoch, progress.finished) == (2, -1, True)
    assert not any("selection" in epoch for epoch in progress.history)
