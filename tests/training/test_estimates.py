"""What a training will hold and how long it will take: sums by hand, counts of autograd, refusals."""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.cllm4rec.parameters import choose_trainable
from modeling_cllm4rec.cllm4rec.pretraining import PretrainingStage, new_model, pretrain
from modeling_cllm4rec.core.language_model import new_backbone
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.training import estimates
from modeling_cllm4rec.training.estimates import MemoryEstimate, Pace, Units
from modeling_cllm4rec.training.parameters import checkpoint_activations

GB = estimates.GB
RECIPE = Path(__file__).parents[2] / "recipes" / "experiments" / "memory_estimates.py"


def test_logits_by_hand() -> None:
    assert estimates.item_loss_bytes(1000, 10, "exact") == 3 * 10 * 1000 * 4
    assert estimates.item_loss_bytes(10**6, 10, "chunked") == 3 * 10 * 8192 * 4
    assert estimates.item_loss_bytes(10**6, 10, "sampled") == 3 * 10 * 4096 * 4
    assert estimates.item_loss_bytes(50, 10, "sampled") == estimates.item_loss_bytes(50, 10, "exact")


def test_id_rows_by_hand() -> None:
    rows = 2 * (3 + 5) * 7 * 4
    estimate = estimates.id_table_memory(3, 5, 7)
    assert estimate.held == {"ID rows": rows, "moments of ID rows": 2 * rows, "average of ID rows": 0}
    assert estimate.peak_phase == "checkpoints" and estimate.total == 3 * rows + rows // 2 + 3 * rows
    assert estimates.id_table_memory(3, 5, 7, average=True).total == estimate.total + 2 * rows
    sums = 2 * (3 + 5) * 4  # one number a row
    assert estimates.id_table_memory(3, 5, 7, sparse=True).total == rows + sums + rows + sums


def test_the_largest_phase_counts() -> None:
    estimate = MemoryEstimate({"a": 10 * GB}, {"x": {"b": GB}, "y": {"c": 2 * GB, "d": 1}})
    assert estimate.peak_phase == "y" and estimate.total == 12 * GB + 1
    assert estimate.line() == "12.0 GB of memory, most in y: a 10.0 GB, c 2.0 GB"
    assert MemoryEstimate({"a": 1}).line() == "0.0 GB of memory: all parts are small"


def test_refused_only_where_it_was_asked_for(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = MemoryEstimate({"item logits": 5 * GB})
    with pytest.raises(MemoryError, match=r"max_memory is 4 GB, but the estimate is 5.0 GB of memory: item logits.*; do this"):
        estimates.check_memory(estimate, 4.0, "do this")
    monkeypatch.setattr(estimates, "_free", lambda device: 8 * GB)
    estimates.check_memory(estimate, 6.0, "do this")
    assert not caplog.records
    monkeypatch.setattr(estimates, "_free", lambda device: 2 * GB)
    estimates.check_memory(estimate, None, "do this")
    assert "the estimate of 5.0 GB of memory: item logits 5.0 GB is more than the 2.0 GB that are free; do this" in caplog.text


@pytest.mark.parametrize(
    ("part", "advice"),
    [
        ("item logits", "item_loss='chunked' .the same value. or item_loss='sampled'"),
        ("word logits", "lower batch_size"),
        ("activations", "raise gradient_accumulation_steps.*gradient_checkpointing"),
        ("scores of all items", "lower eval_batch_size"),
        ("moments", "k_core of `prepare`.*, or use a backbone of a smaller width"),
    ],
)
def test_advice(part: str, advice: str) -> None:
    arguments = FinetuneArguments(data="d", output="o")
    estimate = MemoryEstimate({"held now": 9 * GB, "a": 1}, {"x": {part: 2 * GB}})
    assert re.search(advice, estimates.advice_for(estimate, arguments))
    arguments = dataclasses.replace(arguments, gradient_checkpointing=True)
    assert "gradient_checkpointing" not in estimates.advice_for(estimate, arguments)


@pytest.fixture
def stage(
    data: RecommendationData, tiny_backbone: Path, pretrain_arguments: Callable[..., PretrainArguments]
) -> PretrainingStage:
    arguments = pretrain_arguments(backbone=str(tiny_backbone))
    model, tokenizer = new_model(data, arguments)
    choose_trainable(model, arguments)
    return PretrainingStage(model, tokenizer, data, arguments)


def test_what_autograd_saves_grows_as_counted(stage: PretrainingStage) -> None:
    """The count for 8 to 32 tokens foretells that for 100 tokens, for each architecture."""
    model = stage.model
    each, square = estimates.activation_bytes(model, stage.arguments)
    width = model.config.hidden_size
    assert each > 10 * 4 * width  # more than ten vectors a token in two layers
    rows = torch.zeros(1, 100, width, requires_grad=True)
    mask = torch.ones(1, 100, dtype=torch.long)
    mask[0, -1] = 0
    with estimates.SavedBytes(model) as saved:
        model.train().backbone.base_model(inputs_embeds=rows, attention_mask=mask, use_cache=False)
    assert each * 100 + square * 100**2 == pytest.approx(saved.count + 4 * width * 4 * 100, rel=0.05)


def test_a_configuration_is_enough(stage: PretrainingStage) -> None:
    """One layer and two of its shape foretell the activations of five, for each architecture."""
    config = stage.model.config.text_config
    two = estimates.activation_bytes_of(config, stage.arguments)
    assert two == pytest.approx(estimates.activation_bytes(stage.model, stage.arguments))
    longer = copy.deepcopy(config)
    longer.num_hidden_layers = 5
    if getattr(longer, "layer_types", None):
        longer.layer_types = longer.layer_types[:1] * 5
    model = torch.nn.Module()
    model.backbone = new_backbone(longer)
    model.requires_grad_(False)
    found = estimates.activation_bytes_of(longer, stage.arguments)
    assert found == pytest.approx(estimates.activation_bytes(model, stage.arguments), rel=1e-6)


@pytest.mark.parametrize(
    ("tune", "changes"), [("lora", {}), ("full", {"gradient_checkpointing": True}), ("full", {"bf16": True})]
)
def test_a_configuration_is_enough_however_it_is_tuned(
    tune: str, changes: dict[str, bool], pretrain_arguments: Callable[..., PretrainArguments], data: RecommendationData
) -> None:
    arguments = pretrain_arguments(tune=tune, **changes)
    model, _ = new_model(data, arguments)
    choose_trainable(model, arguments)
    if arguments.gradient_checkpointing:
        checkpoint_activations(model.backbone)
    found = estimates.activation_bytes_of(model.config.text_config, arguments)
    assert found == pytest.approx(estimates.activation_bytes(model, arguments), rel=0.01)


def test_units_of_a_sharded_model_by_hand() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(3, 4, bias=False) for _ in range(2)] + [torch.nn.Embedding(5, 2)])
    model[0].requires_grad_(False)
    units = Units.of(model, list(model[:2]))
    assert units == Units(layers=2, layer=12, layer_trained=12, root=10, root_trained=10, trained=22)
    assert units.all_bytes == 4 * 34
    assert units.held_bytes(2, average=True) == {"weights": 68, "moments": 88, "average": 44}
    kept = units.step_bytes(2, bf16=True, reshard_after_forward=False)
    assert kept == {"gathered weights": 40 + 3 * 12 * 2, "gradients": 44 + 40 + 2 * 48}
    freed = units.step_bytes(2, bf16=False, reshard_after_forward=True)
    assert freed["gathered weights"] == 40 + estimates.GATHERED_LAYERS * 12 * 4
    assert units.sum_bytes(2) == {"gathered weights": 40, "gradients": 44 + 80}


def test_counting_changes_nothing(stage: PretrainingStage) -> None:
    stage.model.eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    estimates.activation_bytes(stage.model, stage.arguments)
    assert torch.equal(torch.rand(3), expected) and not stage.model.training
    assert all(weight.grad is None for weight in stage.model.parameters())


def test_a_saved_storage_counts_once() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    model = torch.nn.ParameterList([weight])
    x = torch.ones(8, 4, requires_grad=True)
    with estimates.SavedBytes(model) as saved:
        y = x.exp()  # saves its result, 8 x 4 floats
        _ = y @ weight  # saves y again, and the weight
    assert saved.count == 8 * 4 * 4


def test_an_estimate_of_a_stage(stage: PretrainingStage, data: RecommendationData) -> None:
    estimate = estimates.training_memory(stage, torch.device("cpu"))
    rows, width = data.num_users + data.num_items, stage.model.config.hidden_size
    assert estimate.held["moments"] == 2 * 2 * rows * width * 4
    step = estimate.phases["collaborative steps"]
    assert step["gradients"] == rows * width * 4
    assert step["second gradient of a table"] == data.num_users * width * 4
    lengths = sorted(stage.histories.lengths)[-32:]
    assert step["item logits"] == 3 * int(sum(lengths)) * data.num_items * 4
    assert estimate.phases["validation"]["scores of all items"] == 3 * 128 * data.num_items * 4
    assert set(estimate.phases) == {"collaborative steps", "content steps", "validation", "checkpoints"}


def test_an_estimate_of_sparse_rows(
    data: RecommendationData, tiny_backbone: Path, pretrain_arguments: Callable[..., PretrainArguments]
) -> None:
    """No dense gradient and no moments of the tables: a number for each row, and the rows of a step."""
    arguments = pretrain_arguments(backbone=str(tiny_backbone), item_loss="sampled", id_optim="rowwise_adagrad")
    model, tokenizer = new_model(data, arguments)
    choose_trainable(model, arguments)
    stage = PretrainingStage(model, tokenizer, data, arguments)
    estimate = estimates.training_memory(stage, torch.device("cpu"))
    assert estimate.held["moments"] == 2 * (data.num_users + data.num_items) * 4
    step, batch = estimate.phases["collaborative steps"], stage.largest_batches()["collaborative"]
    assert step["gradients"] == step["second gradient of a table"] == 0
    uses = 4 * batch.rows * batch.length + 2 * batch.item_states + 4096
    assert step["gradients of rows"] == 2 * uses * model.config.hidden_size * 4


def test_histories_longer_than_the_context_count_as_far_as_they_are_read(stage: PretrainingStage) -> None:
    longest = max(stage.histories.lengths)
    before = stage.largest_batches()["collaborative"]
    pieces = before.length - longest
    stage.max_length = pieces + longest - 3
    batch = stage.largest_batches()["collaborative"]
    read = [min(length, longest - 3) for length in sorted(stage.histories.lengths)[-32:]]
    assert batch == (before.rows, stage.max_length, sum(read), 0, "exact") and sum(read) < before.item_states


def test_a_run_over_its_limit_leaves_nothing(pretrain_arguments: Callable[..., PretrainArguments], tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match="max_memory is 0.01 GB, but the estimate is .* GB of memory, most in .*; "):
        pretrain(pretrain_arguments(max_memory=0.01))
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(MemoryError, match="max_memory is 1e-06 GB, but .* most in checkpoints.*k_core of `prepare`"):
        pretrain(pretrain_arguments(max_memory=1e-6))  # the ID rows alone are too much: no model is made


def test_a_limit_may_change_in_a_resumed_run(
    finetune_arguments: Callable[..., FinetuneArguments], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        finetune(finetune_arguments(max_memory=50.0, stop_after_steps=1))
    assert "finetune: an estimate of " in caplog.text
    finetune(finetune_arguments(max_memory=60.0, stop_after_steps=2, resume=True))


# ---- time ----


def test_pace_is_measured_for_each_kind() -> None:
    pace = Pace({"L": 300, "C": 1000}, done={"L": 100})
    estimates = []
    for step in range(14):
        pace.count("L", 10, 100.0 if step < Pace.FIRST else 0.5)  # the first ones are slow and do not count
        if pace.is_new():
            estimates.append((step + 1, pace.left()))
    # After 12 measured steps the rate is the same, so it is not logged again.
    assert estimates == [(5, "L 20 documents a second, 150 to go; C not measured yet, 1,000 documents to go: 8 s")]
    for step in range(14):
        pace.count("C", 10, 0.1)
        assert pace.is_new() == (step + 1 == 5)  # the first measurement of its kind
    assert pace.left() == "L 20 documents a second, 60 to go; C 100 documents a second, 860 to go: 12 s"


def test_a_pace_that_changes_is_logged_again() -> None:
    pace = Pace({"L": 1000})
    said = []
    for step in range(Pace.FIRST + 12):
        pace.count("L", 10, 0.1 if step < Pace.FIRST + 3 else 0.4)
        if pace.is_new():
            said.append((step + 1, pace.left()))
    assert said == [(5, "L 100 documents a second, 950 to go: 10 s"), (14, "L 31 documents a second, 860 to go: 28 s")]


def test_steps_are_shown_first_and_time_after_five(
    pretrain_arguments: Callable[..., PretrainArguments], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _, progress = pretrain(pretrain_arguments(per_device_train_batch_size=16))
    said = [record.message for record in caplog.records if record.message.startswith("pretrain")]
    ahead = next(number for number, line in enumerate(said) if re.match(r"pretrain: \d+ epochs, \d+ steps: ", line))
    assert f" {progress.step} steps: " in said[ahead] and "content documents" in said[ahead]
    paces = [number for number, line in enumerate(said) if line.startswith("pretrain, without validation: ")]
    assert paces and paces[0] > ahead and "documents a second" in said[paces[0]]
    judged = [line.partition("; ")[2] for line in said if "validation/item_nll" in line]
    assert judged[0] == "the best so far" and "selection" not in " ".join(said)
    assert all(re.fullmatch(r"the best so far|epoch \d+ was better", words) for words in judged)


# ---- against reality ----


@pytest.mark.slow
def test_estimates_are_within_a_quarter() -> None:
    cases = ["exact-100000", "sampled-100000", "pretrain-narrow", "finetune-wide-full", "index-rk-means"]
    command = [sys.executable, str(RECIPE), "--only", *cases]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_backbone_that_reads_positions_from_a_buffer_is_measured() -> None:
    """BERT's positions are a buffer, which a backbone without weights has to have as well."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(**shape, vocab_size=50, max_position_embeddings=64, is_decoder=True)
    per_token, _ = estimates.activation_bytes_of(config, FinetuneArguments(data="data", output="run", start="start", tune="full"))
    assert per_token > 0
