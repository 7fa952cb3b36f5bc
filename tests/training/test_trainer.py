"""The engine against a plain loop: the same losses, weights, norms and learning rates, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import FinetuningStage, load_start
from modeling_cllm4rec.cllm4rec.parameters import choose_trainable
from modeling_cllm4rec.cllm4rec.pretraining import PretrainingStage, new_model
from modeling_cllm4rec.cllm4rec.prompts import recommendation_segments
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.batches import micro_batch
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.training.parameters import parameter_groups, start_fingerprint, trainable
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.stages import Part, Stage
from modeling_cllm4rec.training.trainer import RecommenderTrainer, run, start_processes

MakePretrain = Callable[..., PretrainArguments]
MakeFinetune = Callable[..., FinetuneArguments]


def plain_loop(stage: Stage) -> list[float]:
    """Train without `Trainer`: seed, forward and backward of each part, clip, AdamW step, linear schedule. Return the nll."""
    arguments, model, found = stage.arguments, stage.model, []
    optimizer = torch.optim.AdamW(parameter_groups(model, arguments), fused=True)
    steps = [(epoch, step) for epoch in range(stage.num_epochs) for step in stage.steps(epoch)]
    warmup, parts = int(arguments.warmup_steps * len(steps)), arguments.gradient_accumulation_steps
    starts = [group["lr"] for group in optimizer.param_groups]
    for number, (epoch, step) in enumerate(steps):
        rate = number / warmup if number < warmup else (len(steps) - number) / (len(steps) - warmup)
        for group, start in zip(optimizer.param_groups, starts, strict=True):
            group["lr"] = start * rate
        torch.manual_seed(int(np.random.SeedSequence((arguments.seed, number, 0)).generate_state(1)[0]))
        model.train()
        optimizer.zero_grad()
        nll, tokens = 0.0, 0
        for accumulation in range(parts):
            documents = micro_batch(step.documents, parts, accumulation)
            part = Part(step.kind, documents, len(step.documents), epoch, number)
            output = model(**stage.inputs(part), objective=stage.objective(part), num_items_in_batch=len(step.documents))
            output.loss.backward()
            nll, tokens = nll + float(output.nll), tokens + int(output.tokens)
        torch.nn.utils.clip_grad_norm_(trainable(model).values(), arguments.max_grad_norm)
        optimizer.step()
        found.append(nll / tokens)
    return found


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list that collects the nll of each step of the trainer."""
    seen: list[float] = []
    count = Progress.count_nll

    def noted(self: Progress, kind: str, nll: float) -> None:
        seen.append(nll)
        count(self, kind, nll)

    monkeypatch.setattr(Progress, "count_nll", noted)
    return seen


def pretraining(arguments: PretrainArguments) -> PretrainingStage:
    data = RecommendationData.load(arguments.data)
    model, tokenizer = new_model(data, arguments)
    choose_trainable(model, arguments)
    return PretrainingStage(model, tokenizer, data, arguments)


def finetuning(arguments: FinetuneArguments) -> FinetuningStage:
    data = RecommendationData.load(arguments.data)
    model, tokenizer = load_start(arguments, data)
    model.config.recommendation_prompts = recommendation_segments(arguments.templates, tokenizer)
    choose_trainable(model, arguments, ("collaborative", "content") if arguments.content_every else ("collaborative",))
    return FinetuningStage(model, tokenizer, data, arguments)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("pretrain", {"num_train_epochs": 2, "tune": "full", "per_device_train_batch_size": 16}),
        (
            "finetune",
            {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4, "max_grad_norm": 0.3, "warmup_steps": 0.3},
        ),
        ("finetune", {"item_loss": "sampled", "content_every": 2, "tune": "full"}),
    ],
    ids=["pretrain", "accumulated", "sampled"],
)
def test_the_trainer_equals_a_plain_loop(
    kind: str,
    changes: dict[str, Any],
    pretrain_arguments: MakePretrain,
    finetune_arguments: MakeFinetune,
    recorded: list[float],
) -> None:
    """Also the dropout masks and the sampled items are the same."""
    stages = [
        pretraining(pretrain_arguments(**changes)) if kind == "pretrain" else finetuning(finetune_arguments(**changes))
        for _ in range(2)
    ]
    for stage in stages:
        stage.validate = lambda epoch: {}  # type: ignore[method-assign,assignment]  # the last weights stay
    by_hand = plain_loop(stages[0])
    run(stages[1], PartialState())
    assert recorded == pytest.approx(by_hand, rel=1e-6)
    for name, weight in trainable(stages[0].model).items():
        torch.testing.assert_close(trainable(stages[1].model)[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MASTER_ADDR": "127.0.0.1"}, "num_processes: accelerate launch was asked for several processes and started one"),
        ({"ACCELERATE_USE_FSDP": "true"}, "distributed_type FSDP is not supported: .* on CPUs accelerate leaves sharding out"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "distributed_type DEEPSPEED is not supported"),
    ],
    ids=["one of two", "fsdp", "deepspeed"],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="accelerate does what it is asked for where there is a GPU")
def test_what_accelerate_silently_leaves_out(
    environment: dict[str, str], message: str, finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        start_processes(finetune_arguments())


def test_worker_processes_feed_the_same_parts(finetune_arguments: MakeFinetune, recorded: list[float]) -> None:
    arguments = finetune_arguments(num_train_epochs=1)
    runs = []
    for workers in (0, 2):
        recorded.clear()
        trainer = RecommenderTrainer(stage := finetuning(arguments), start_fingerprint(stage.model))
        trainer.args.dataloader_num_workers = workers
        trainer.args.save_steps = 10**6
        trainer.fit()
        runs.append(list(recorded))
    assert runs[0] == runs[1] and len(runs[0]) == 4


def test_the_model_is_left_as_it_came(finetune_arguments: MakeFinetune) -> None:
    """`Trainer` writes `use_cache` into the configuration, and accelerate wraps `forward`."""
    stage = finetuning(finetune_arguments(num_train_epochs=1, bf16=True))
    before = copy.deepcopy(stage.model.config.to_dict())
    run(stage, PartialState())
    assert stage.model.config.to_dict() == before
    assert "forward" not in vars(stage.model)


def test_no_file_is_pickled(finetune_arguments: MakeFinetune) -> None:
    arguments = finetune_arguments(stop_after_steps=2)
    run(finetuning(arguments), PartialState())
    (folder,) = (arguments.run_folder / "checkpoints" / "finetune").glob("step-*")
    assert sorted(file.name for file in folder.iterdir()) == ["state.json", "tensors.safetensors", "trainer_state.json"]
    assert {file.suffix for file in Path(arguments.output).rglob("*") if file.is_file()} <= {".json", ".safetensors"}
