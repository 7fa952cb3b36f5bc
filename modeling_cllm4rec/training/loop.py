"""One optimizer loop for all stages: seeded by the step, resumable to the bit, the same on any number of processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm
from transformers import get_scheduler

from modeling_cllm4rec.core.errors import DivergedError, ExistingFileError, InputError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.batches import share_of
from modeling_cllm4rec.corpora.data_folder import INFO_FILE, RecommendationData
from modeling_cllm4rec.training import checkpoints
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.estimates import (
    LargestBatch,
    Pace,
    Stopwatch,
    advice_for,
    check_memory,
    training_memory,
)
from modeling_cllm4rec.training.parameters import parameter_groups, start_fingerprint, trainable
from modeling_cllm4rec.training.precision import frozen_weights_in
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.weight_average import WeightAverage

logger = logging.getLogger(__name__)

NOT_PART_OF_A_RUN = (
    *("resume", "overwrite", "stop_after_steps", "report_to", "save_every"),
    *("output", "data", "start", "backbone", "index", "max_memory"),
)
"""Arguments that a resumed run may change: they do not change what is computed (or are checked by content)."""


RECORD_FILE = "run.json"


class Step(NamedTuple):
    """One optimizer step: a kind of document, and the numbers of the documents, over all processes."""

    kind: str
    documents: np.ndarray


class Stage(Protocol):
    """What the loop asks of pretraining, finetuning and alignment."""

    name: str
    data: RecommendationData

    @property
    def model(self) -> RecommenderModel:
        """What is trained."""
        ...

    @property
    def arguments(self) -> TrainingArguments:
        """What the stage was asked to do."""
        ...

    @property
    def num_epochs(self) -> int:
        """Epochs in all, warm-up included."""
        ...

    def steps(self, epoch: int) -> list[Step]:
        """The optimizer steps of an epoch, from the seed alone."""
        ...

    def loss(self, step: Step, part: np.ndarray, epoch: int, generator: torch.Generator) -> tuple[torch.Tensor, float, int]:
        """This part's share of the step's loss; and, for the log, its nll in nats and its main tokens."""
        ...

    def validate(self, epoch: int) -> dict[str, float]:
        """Metrics after an epoch; `selection` (higher is better) chooses the epoch that is kept, where it is given."""
        ...

    @property
    def scores_at_once(self) -> int:
        """People whose scores of all items a validation holds together."""
        ...

    def largest_batches(self) -> dict[str, LargestBatch]:
        """Kind of step -> its batch that takes the most memory."""
        ...


def make_accelerator(arguments: TrainingArguments) -> Accelerator:
    """The processes and the device of a run; nothing is written.

    Raises:
        InputError: a kind of parallel training that this loop does not do (sharded parameters), or a tracker that is not
            installed.
    """
    accelerator = Accelerator(
        mixed_precision=arguments.precision,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_dir=str(arguments.run_folder / "trackers"),
    )
    single_or_replicated = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.MULTI_XPU)
    if accelerator.distributed_type not in single_or_replicated:
        raise InputError(
            f"distributed_type {accelerator.distributed_type.value} is not supported: parameters must be whole on every process; "
            "launch with plain data parallelism (multi-GPU, multi-CPU)"
        )
    if arguments.report_to != "none" and not accelerator.log_with:  # accelerate leaves out what is not installed, silently
        raise InputError(f"report_to: {arguments.report_to} is not installed; run: pip install {arguments.report_to}")
    return accelerator


def run_identity(arguments: TrainingArguments, data: RecommendationData) -> dict[str, Any]:
    """What a run is: two of the same compute the same."""
    identity = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in NOT_PART_OF_A_RUN}
    return {**identity, "data_sha256": data_fingerprint(data), **arguments.fingerprints()}


def check_folder(stage: str, arguments: TrainingArguments, data: RecommendationData) -> None:
    """Refuse to write over another run or into a data folder; nothing is written. To be asked before a stage is made.

    Raises:
        ExistingFileError: checkpoints are there and neither resume nor overwrite was asked for, or it is a data folder.
        InputError: resume was asked for, but the run there had other arguments or other data (named).
    """
    folder = stage_folder(stage, arguments)
    record = folder / RECORD_FILE
    if (arguments.run_folder / INFO_FILE).exists():
        raise ExistingFileError(
            f"output: {arguments.run_folder} is a data folder, which is never written into; choose another --output"
        )
    if not record.exists() or arguments.overwrite:
        return
    if not arguments.resume:
        raise ExistingFileError(
            f"output: {folder} holds a run already; pass --resume to go on with it, --overwrite to throw it away, or "
            "choose another --output"
        )
    before = json.loads(record.read_text(encoding="utf-8"))
    identity = run_identity(arguments, data)
    changed = {key: (before.get(key), value) for key, value in identity.items() if before.get(key) != value}
    if changed:
        raise InputError(f"resume: the run in {folder} had other arguments (then, now): {changed}; give the same, or --overwrite")


def claim_folder(stage: str, arguments: TrainingArguments, data: RecommendationData) -> None:
    """Write down what this run is, and throw away the one that is to be written over; errors as `check_folder`."""
    check_folder(stage, arguments, data)
    folder = stage_folder(stage, arguments)
    record = folder / RECORD_FILE
    if arguments.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    if record.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = record.with_name(record.name + ".unfinished")
    unfinished.write_text(json.dumps(run_identity(arguments, data)), encoding="utf-8")
    unfinished.replace(record)


def stage_folder(stage: str, arguments: TrainingArguments) -> Path:
    """Where a stage's record and checkpoints lie."""
    return arguments.run_folder / "checkpoints" / stage


def documents_of_a_step(arguments: TrainingArguments) -> int:
    """Documents of one optimizer step, over all processes and accumulation steps."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return arguments.batch_size * arguments.gradient_accumulation_steps * world


def as_on_the_main_process(values: list[float], device: torch.device) -> list[float]:
    """The values that the main process measured, on every process; what the others give is ignored."""
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(shared, src=0)
    return [float(value) for value in shared]


def data_fingerprint(data: RecommendationData) -> str:
    """SHA-256 of ids, texts and interactions, so that a run is not resumed on other data or another split."""
    digest = hashlib.sha256()
    for table in (data.users, data.items, data.interactions):
        for name in table.column_names:
            digest.update(name.encode())
            for start in range(0, table.num_rows, 65536):
                values = table[name].slice(start, 65536).to_pylist()
                digest.update(json.dumps(values, default=str).encode())
    return digest.hexdigest()


def run(stage: Stage, accelerator: Accelerator) -> Progress:
    """Train a stage to its end, or to `stop_after_steps`; the model then holds the best epoch's weights.

    Every random number of a step (dropout, sampled items) comes from (seed, step, process), every order of documents
    and items from (seed, epoch): a resumed run computes the same bits as an uninterrupted one.
    """
    arguments, model = stage.arguments, stage.model
    folder = stage_folder(stage.name, arguments)
    model.to(accelerator.device)
    if arguments.gradient_checkpointing:
        if hasattr(model.backbone, "activation_checkpointing_enable"):
            model.backbone.activation_checkpointing_enable()
        else:  # its name before transformers 5.23
            model.backbone.gradient_checkpointing_enable()
    fingerprint = start_fingerprint(model)
    with frozen_weights_in(torch.bfloat16 if arguments.precision == "bf16" else None, model.backbone):
        estimate = training_memory(stage, accelerator.device)
        if accelerator.is_main_process:
            logger.info("%s: an estimate of %s", stage.name, estimate.line())
        check_memory(estimate, arguments.max_memory, advice_for(estimate, arguments), accelerator.device)
        if accelerator.is_main_process:
            claim_folder(stage.name, arguments, stage.data)
        accelerator.wait_for_everyone()
        if arguments.report_to != "none":
            plain = {key: value for key, value in dataclasses.asdict(arguments).items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers(f"cllm4rec-{stage.name}", config=plain)
        return _epochs(stage, accelerator, folder, fingerprint)


def _epochs(stage: Stage, accelerator: Accelerator, folder: Path, fingerprint: str) -> Progress:
    arguments, model = stage.arguments, stage.model
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, arguments), fused=True)
    all_steps = [step for epoch in range(stage.num_epochs) for step in stage.steps(epoch)]
    total = len(all_steps)
    schedule = (
        get_scheduler(arguments.schedule, optimizer, int(arguments.warmup_share * total), total)
        if (arguments.schedule != "constant")
        else get_scheduler("constant_with_warmup", optimizer, int(arguments.warmup_share * total))
    )
    average = WeightAverage(parameters, arguments.average_decay) if arguments.average_decay else None
    progress = Progress()
    last = checkpoints.latest(folder) if arguments.resume else None
    if last is not None:
        progress = _restore(last, parameters, optimizer, schedule, average, fingerprint)
        logger.info("resumed %s after step %d of %d", stage.name, progress.step, total)
    documents = _documents(all_steps)
    if accelerator.is_main_process:
        told = ", ".join(f"{number:,} {kind} documents" for kind, number in documents.items())
        logger.info("%s: %d epochs, %s steps: %s", stage.name, stage.num_epochs, f"{total:,}", told)
    pace = Pace(documents, _documents(all_steps[: progress.step]))
    del all_steps
    save = _Saver(folder, parameters, optimizer, schedule, average, fingerprint, accelerator)
    started, before = time.perf_counter(), progress.seconds
    quiet = not accelerator.is_main_process
    bar = tqdm(total=total, initial=progress.step, desc=stage.name, unit="step", mininterval=2.0, disable=quiet)
    while progress.epoch < stage.num_epochs and not progress.finished:
        steps = stage.steps(progress.epoch)
        for step in steps[progress.step_in_epoch :]:
            model.train()
            watch = Stopwatch()
            nll = _optimizer_step(stage, step, progress, accelerator, optimizer, parameters)
            schedule.step()
            progress.count_nll(step.kind, nll)
            progress.step += 1
            progress.step_in_epoch += 1
            if average is not None:
                average.update(progress.step)
            progress.seconds = before + time.perf_counter() - started
            pace.count(step.kind, len(step.documents), watch.lap())
            if pace.is_new() and not quiet:
                logger.info("%s, without validation: %s", stage.name, pace.left())
            bar.update()
            bar.set_postfix_str(f"epoch {progress.epoch + 1}/{stage.num_epochs} {step.kind} nll {nll:.3f}", refresh=False)
            if progress.step % 10 == 0:
                accelerator.log({f"{step.kind}/nll": nll, "lr": schedule.get_last_lr()[0]}, step=progress.step)
            if progress.step_in_epoch == len(steps):
                break  # the epoch's end saves, once for this step
            if progress.step == arguments.stop_after_steps:
                save(progress)
                return _stop(progress, bar, accelerator)
            if progress.step % arguments.save_every == 0:
                save(progress)
        with nullcontext() if average is None else average.in_place():
            _end_epoch(stage, progress, accelerator, folder, parameters)
        progress.seconds = before + time.perf_counter() - started
        save(progress)
        if progress.step == arguments.stop_after_steps and progress.epoch < stage.num_epochs and not progress.finished:
            return _stop(progress, bar, accelerator)
    if progress.best_epoch >= 0:
        tensors, _ = checkpoints.read(folder / "best")
        _copy_into(parameters, tensors, folder / "best")
    elif average is not None:
        average.take()
    progress.finished = True
    return _stop(progress, bar, accelerator)


def _documents(steps: list[Step]) -> Counter[str]:
    """Kind of step -> documents."""
    counts: Counter[str] = Counter()
    for step in steps:
        counts[step.kind] += len(step.documents)
    return counts


def _stop(progress: Progress, bar: tqdm, accelerator: Accelerator) -> Progress:
    """Close bar and trackers; the processes go on together (`end_training` would part them)."""
    bar.close()
    for tracker in accelerator.trackers:
        tracker.finish()
    return progress


def _optimizer_step(
    stage: Stage,
    step: Step,
    progress: Progress,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
) -> float:
    arguments = stage.arguments
    seeds = np.random.SeedSequence((arguments.seed, progress.step, accelerator.process_index))
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    # Sampled items are shared by all parts of a step: the same on every process.
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((arguments.seed, progress.step)).generate_state(1)[0]))
    optimizer.zero_grad(set_to_none=True)
    pieces = accelerator.num_processes * arguments.gradient_accumulation_steps
    totals = torch.zeros(2, dtype=torch.float64)
    for accumulation in range(arguments.gradient_accumulation_steps):
        part = share_of(step.documents, pieces, accumulation * accelerator.num_processes + accelerator.process_index)
        idle = not len(part)  # fewer documents than processes: compute something, count nothing
        with accelerator.autocast():
            loss, nll, tokens = stage.loss(step, step.documents[:1] if idle else part, progress.epoch, generator.clone_state())
        (loss * (not idle)).backward()
        if not idle:
            totals += torch.tensor([nll, tokens], dtype=torch.float64)
    if accelerator.num_processes > 1:
        for parameter in parameters.values():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
        totals = accelerator.reduce(totals.to(accelerator.device), "sum").cpu()
    norm = float(clip_grad_norm_(parameters.values(), arguments.max_grad_norm or float("inf")))
    value = float(totals[0] / totals[1].clamp(min=1))
    if not np.isfinite([value, norm]).all():
        raise DivergedError(
            f"{stage.name}: at step {progress.step + 1} the loss is {value} and the gradient's norm {norm}; lower lr, or set "
            "max_grad_norm; the last checkpoint is good"
        )
    optimizer.step()
    return value


def _end_epoch(
    stage: Stage,
    progress: Progress,
    accelerator: Accelerator,
    folder: Path,
    parameters: dict[str, torch.nn.Parameter],
) -> None:
    """Validate, keep the best weights, decide whether to stop."""
    stage.model.eval()
    with accelerator.autocast():
        metrics = stage.validate(progress.epoch)
    where = {"epoch": progress.epoch, "step": progress.step, "seconds": progress.seconds}
    progress.history.append({**where, **progress.take_epoch_nll(), **metrics})
    accelerator.log(metrics, step=progress.step)
    if metrics and accelerator.is_main_process:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        logger.info("%s epoch %d/%d: %s", stage.name, progress.epoch + 1, stage.num_epochs, shown)
    selection = metrics.get("selection")
    if selection is not None and (progress.best is None or selection > progress.best):
        progress.best, progress.best_epoch, progress.epochs_without_gain = selection, progress.epoch, 0
        if accelerator.is_main_process:
            checkpoints.write_atomically(folder / "best", dict(parameters), {"epoch": progress.epoch, **metrics})
        accelerator.wait_for_everyone()
    elif selection is not None:
        progress.epochs_without_gain += 1
    patience = stage.arguments.patience
    progress.finished = bool(patience) and progress.epochs_without_gain >= patience
    progress.epoch += 1
    progress.step_in_epoch = 0


@dataclasses.dataclass
class _Saver:
    folder: Path
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Any
    average: WeightAverage | None
    fingerprint: str
    accelerator: Accelerator

    def __call__(self, progress: Progress) -> None:
        if self.accelerator.is_main_process:
            tensors: dict[str, torch.Tensor] = {f"model.{name}": one for name, one in self.parameters.items()}
            tensors.update(checkpoints.optimizer_tensors(self.optimizer))
            tensors.update(self.average.tensors() if self.average is not None else {})
            state = {
                "progress": dataclasses.asdict(progress),
                "schedule": {"last_epoch": self.schedule.last_epoch},
                "start": self.fingerprint,
            }
            checkpoints.save_step(self.folder, progress.step, tensors, state)
        self.accelerator.wait_for_everyone()


def _restore(
    path: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    average: WeightAverage | None,
    fingerprint: str,
) -> Progress:
    tensors, state = checkpoints.read(path)
    if state["start"] != fingerprint:
        raise InputError(
            f"resume: the run of {path} started from other weights; give the same backbone (or start), data and seed, or "
            "--overwrite"
        )
    _copy_into(parameters, {name[len("model.") :]: one for name, one in tensors.items() if name.startswith("model.")}, path)
    checkpoints.restore_optimizer(optimizer, tensors)
    if average is not None:
        average.restore(tensors)
    schedule.last_epoch = state["schedule"]["last_epoch"]
    for group, start, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = start * factor(schedule.last_epoch)
    return Progress(**state["progress"])


@torch.no_grad()
def _copy_into(parameters: dict[str, torch.nn.Parameter], tensors: dict[str, torch.Tensor], path: Path) -> None:
    if parameters.keys() != tensors.keys():
        raise InputError(f"{path} holds other weights than this run trains; give the same arguments, or --overwrite")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
