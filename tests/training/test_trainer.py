"""The engine against a plain loop: the same losses, weights, norms and learning rates, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import FinetuningStage, finetune, load_start
from modeling_cllm4rec.cllm4rec.parameters import choose_trainable
from modeling_cllm4rec.cllm4rec.pretraining import PretrainingStage, new_model
from modeling_cllm4rec.cllm4rec.prompts import recommendation_segments
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.batches import micro_batch
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.hub import finishing
from modeling_cllm4rec.hub.push import Push
from modeling_cllm4rec.training import launch
from modeling_cllm4rec.training.launch import start_processes
from modeling_cllm4rec.training.parameters import parameter_groups, start_fingerprint, trainable
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.sparse_rows import CombinedOptimizer, sparse_tables
from modeling_cllm4rec.training.stages import Part, Stage
from modeling_cllm4rec.training.trainer import RecommenderTrainer, run

REPOSITORY = Path(__file__).parents[2]
MakePretrain = Callable[..., PretrainArguments]
MakeFinetune = Callable[..., FinetuneArguments]


class DenseRowwiseAdagrad(torch.optim.Optimizer):
    """Row-wise Adagrad over whole gradients: the sum of all rows, the step of all rows."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    total = self.state[table].get("total", 0) + table.grad.square().mean(1, keepdim=True)
                    self.state[table]["total"] = total
                    table -= group["lr"] * table.grad / (total.sqrt() + 1e-10)


def plain_loop(stage: Stage) -> list[float]:
    """Train without `Trainer`: seed, forward and backward of each part, clip, step, linear schedule. Return the nll.

    All gradients are dense. The step is that of AdamW, or of row-wise Adagrad for tables with sparse gradients.
    """
    arguments, model, found = stage.arguments, stage.model, []
    groups, sparse = parameter_groups(model, arguments), sparse_tables(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.sparse = False
    if sparse:
        optimizer: torch.optim.Optimizer = CombinedOptimizer([DenseRowwiseAdagrad(groups[:1], {}), torch.optim.AdamW(groups[1:])])
    else:
        optimizer = torch.optim.AdamW(groups, fused=True)
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
    choose_trainable(model, arguments, texts=arguments.content_every > 0)
    return FinetuningStage(model, tokenizer, data, arguments)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("pretrain", {"num_train_epochs": 2, "tune": "full", "per_device_train_batch_size": 16}),
        (
            "finetune",
            {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4, "max_grad_norm": 0.3, "warmup_steps": 0.3},
        ),
        ("finetune", {"item_loss": "sampled", "id_optim": "optim", "content_every": 2, "tune": "full"}),
        ("finetune", {"item_loss": "sampled", "content_every": 2, "tune": "full", "teacher": "ease", "max_grad_norm": 0.3}),
        ("pretrain", {"item_loss": "sampled", "tune": "full", "gradient_accumulation_steps": 2, "lambda_l": 0.1}),
    ],
    ids=["pretrain", "accumulated", "sampled", "sparse", "sparse-pretrain"],
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
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            "fsdp: weights are sharded over all processes and this is the only",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "distributed_type DEEPSPEED is not supported; .* by recipes.*fsdp2.yaml: .* ZeRO-3",
        ),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
            "parallelism_config is set in the launch configuration, .*; leave it out, and launch by recipes.*fsdp2.yaml",
        ),
    ],
    ids=["one of two", "fsdp", "deepspeed", "tensor parallelism"],
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


def test_how_long_processes_wait_for_each_other(finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(launch, "PartialState", lambda **settings: (made.append(settings), PartialState())[1])
    start_processes(finetune_arguments())
    start_processes(finetune_arguments(trainer={"ddp_timeout": 60, "ddp_backend": "gloo"}))
    assert made == [
        {"cpu": False, "timeout": timedelta(hours=2)},
        {"cpu": False, "timeout": timedelta(minutes=1), "backend": "gloo"},
    ]


def test_worker_processes_feed_the_same_parts(finetune_arguments: MakeFinetune, recorded: list[float]) -> None:
    arguments = finetune_arguments(num_train_epochs=1)
    runs = []
    for workers in (0, 2):
        recorded.clear()
        engine = RecommenderTrainer(stage := finetuning(arguments), start_fingerprint(stage.model))
        engine.args.dataloader_num_workers = workers
        engine.args.save_steps = 10**6
        engine.fit()
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


def test_resume_from_a_named_checkpoint(
    finetune_arguments: MakeFinetune,
    tmp_path: Path,
    read_weights: Callable[[Path | str], dict[str, torch.Tensor]],
    assert_same_bits: Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None],
) -> None:
    whole = finetune_arguments(output=str(tmp_path / "whole"))
    finetune(whole)
    arguments = finetune_arguments(save_steps=2, stop_after_steps=6)
    finetune(arguments)
    folder = arguments.run_folder / "checkpoints" / "finetune"
    assert sorted(one.name for one in folder.glob("step-*")) == ["step-00000004", "step-00000006"]
    said = "resume_from_checkpoint: .*elsewhere is no checkpoint of this run; .* has step-00000004"
    with pytest.raises(MissingFileError, match=said):
        finetune(finetune_arguments(resume_from_checkpoint=str(tmp_path / "elsewhere")))
    _, progress = finetune(finetune_arguments(resume_from_checkpoint=str(folder / "step-00000004")))
    assert progress.finished
    assert_same_bits(read_weights(arguments.run_folder), read_weights(whole.run_folder))


def test_the_finished_model_goes_to_the_hub(finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[tuple[Path, str, bool]] = []

    def noted(run: Path, repo_id: str, *, private: bool) -> Push:
        pushed.append((run, repo_id, private))
        return Push(repo_id, private, {}, {}, "the address")

    monkeypatch.setattr(finishing, "push_run", noted)
    short = {"num_train_epochs": 1, "push_to_hub": True, "hub_strategy": "end"}
    finetune(finetune_arguments(**short, stop_after_steps=1))
    assert pushed == []
    arguments = finetune_arguments(**short, resume=True, hub_model_id="me/books")
    finetune(arguments)
    assert pushed == [(arguments.run_folder, "me/books", True)]


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_uploaded(strategy: str, finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(InputError, match=f"hub_strategy is '{strategy}'; a checkpoint of a stage is no .* hub_strategy=end"):
        finetune_arguments(hub_strategy=strategy)


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adagrad"])
def test_other_optimizers_resume_to_the_same_bits(
    optim: str,
    finetune_arguments: MakeFinetune,
    tmp_path: Path,
    read_weights: Callable[[Path | str], dict[str, torch.Tensor]],
    assert_same_bits: Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None],
) -> None:
    same = {"optim": optim, "lr_scheduler_type": "inverse_sqrt", "warmup_steps": 2, "num_train_epochs": 2}
    whole, stopped = finetune_arguments(**same, output=str(tmp_path / "whole")), finetune_arguments(**same, stop_after_steps=3)
    finetune(whole)
    finetune(stopped)
    finetune(finetune_arguments(**same, resume=True))
    assert_same_bits(read_weights(stopped.run_folder), read_weights(whole.run_folder))


def test_an_attention_that_the_backbone_refuses(finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(InputError, match="attn_implementation is 'fast'; the backbone refuses it"):
        finetune(finetune_arguments(attn_implementation="fast"))


@pytest.mark.slow
def test_a_compiled_backbone_trains_the_same(finetune_arguments: MakeFinetune, recorded: list[float], tmp_path: Path) -> None:
    runs = []
    for compiled in (False, True):
        recorded.clear()
        model, _ = finetune(finetune_arguments(output=str(tmp_path / str(compiled)), dropout=0.0, torch_compile=compiled))
        runs.append(list(recorded))
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)
    copy.deepcopy(model)


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "recipes" / "accelerate_configs").glob("*.yaml")), ids=lambda file: file.stem
)
def test_configurations_of_accelerate_are_read(file: Path) -> None:
    read = load_config_from_file(str(file))
    assert read.num_processes == (1 if file.stem == "single" else 2) and not read.use_cpu
