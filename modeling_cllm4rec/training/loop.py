"""One optimizer loop for all stages: seeded by the step, resumable to the bit, the same on any number of processes.

Parameters are whole on every process. Each process computes the gradients of its part of a step, and the loop sums them.
"""

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

from modeling_cllm4rec.core.errors import DivergedError, ExistingFileError, InputError, MissingPackageError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.corpora.batches import micro_batch
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
"""Arguments that a resumed run may change: they do not change the result, or their content is compared instead."""


RUN_FILE = "run.json"
"""Arguments of the run of a folder, which a resumed run is compared with. Its costs are in `RECORD_FILE`, `training.json`."""


class Step(NamedTuple):
    """One optimizer step: a kind of document, and the numbers of its documents over all processes."""

    kind: str
    documents: np.ndarray


class Stage(Protocol):
    """The interface of pretraining, finetuning and alignment to the loop."""

    name: str
    data: RecommendationData

    @property
    def model(self) -> RecommenderModel:
        """Return the model that is trained."""
        ...

    @property
    def arguments(self) -> TrainingArguments:
        """Return the arguments of the stage."""
        ...

    @property
    def num_epochs(self) -> int:
        """Return the number of epochs, warm-up included."""
        ...

    def steps(self, epoch: int) -> list[Step]:
        """Return the optimizer steps of an epoch, a function of the seed alone."""
        ...

    def loss(self, step: Step, part: np.ndarray, epoch: int, generator: torch.Generator) -> tuple[torch.Tensor, float, int]:
        """Compute the loss of one part of a step.

        The losses of all parts of a step must add up to the loss of the step.

        Args:
            step: the whole step.
            part: the documents of this part.
            epoch: from 0.
            generator: random numbers that all parts of the step share.

        Returns:
            The loss; and, for the log, the nll in nats and the number of main tokens of the part.
        """
        ...

    def validate(self, epoch: int) -> dict[str, float]:
        """Return metrics after an epoch; `selection` (higher is better), if given, selects the epoch that is kept."""
        ...

    @property
    def scores_at_once(self) -> int:
        """Return the number of users whose scores of all items a validation holds in memory together."""
        ...

    def largest_batches(self) -> dict[str, LargestBatch]:
        """Return, for each kind of step, the batch that needs the most memory."""
        ...


def make_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Return the processes and the device of a run, without writing anything.

    Raises:
        InputError: a kind of parallel training that this loop does not support (sharded parameters).
        MissingPackageError: a tracker that is not installed.
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
    if arguments.report_to != "none" and not accelerator.log_with:  # accelerate silently drops a tracker that is not installed
        raise MissingPackageError(f"report_to: {arguments.report_to} is not installed; run: pip install {arguments.report_to}")
    return accelerator


def run_identity(arguments: TrainingArguments, data: RecommendationData) -> dict[str, Any]:
    """Return the arguments and fingerprints of a run; two runs with the same identity compute the same weights."""
    identity = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in NOT_PART_OF_A_RUN}
    return {**identity, "data_sha256": data_fingerprint(data), **arguments.fingerprints()}


def check_folder(stage: str, arguments: TrainingArguments, data: RecommendationData) -> None:
    """Check that a stage may write to its output folder, before the stage is built; nothing is written.

    Raises:
        ExistingFileError: the folder is a data folder, or holds a run and neither `resume` nor `overwrite` is set.
        InputError: `resume` is set, but the run in the folder had other arguments or data, which are listed.
    """
    folder = stage_folder(stage, arguments)
    record = folder / RUN_FILE
    if (arguments.run_folder / INFO_FILE).exists():
        raise ExistingFileError(
            f"output: {arguments.run_folder} is a data folder, which is never written into; choose another output"
        )
    # A run that was killed before its first checkpoint has nothing to lose or to go on with.
    if not record.exists() or arguments.overwrite or not checkpoints.any_saved(folder):
        return
    if not arguments.resume:
        raise ExistingFileError(
            f"output: {folder} holds a run already; pass resume=True to continue it, overwrite=True to replace it, or "
            "choose another output"
        )
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"resume: {record} cannot be read ({error}); pass overwrite=True to start again") from error
    identity = run_identity(arguments, data)
    changed = {key: (before.get(key), value) for key, value in identity.items() if before.get(key) != value}
    if changed:
        raise InputError(
            f"resume: the run in {folder} had other arguments (then, now): {changed}; give the same ones, or pass overwrite=True"
        )


def claim_folder(stage: str, arguments: TrainingArguments, data: RecommendationData) -> None:
    """Record the identity of this run in its folder, after deleting a run to be overwritten; raises as `check_folder`."""
    check_folder(stage, arguments, data)
    folder = stage_folder(stage, arguments)
    record = folder / RUN_FILE
    if arguments.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    if record.exists() and checkpoints.any_saved(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(record) as temporary:
        temporary.write_text(json.dumps(run_identity(arguments, data)), encoding="utf-8")


def stage_folder(stage: str, arguments: TrainingArguments) -> Path:
    """Return the folder of a stage's record and checkpoints."""
    return arguments.run_folder / "checkpoints" / stage


def step_batch_size(arguments: TrainingArguments) -> int:
    """Return the number of documents of one optimizer step, over all processes and accumulation steps."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return arguments.batch_size * arguments.gradient_accumulation_steps * world


def broadcast_from_main(values: list[float], device: torch.device) -> list[float]:
    """Return the values of the main process on every process; the values of the others are ignored."""
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(shared, src=0)
    return [float(value) for value in shared]


def data_fingerprint(data: RecommendationData) -> str:
    """Return the SHA-256 of ids, texts and interactions, so that a run is not resumed on other data or another split."""
    digest = hashlib.sha256()
    for table in (data.users, data.items, data.interactions):
        for name in table.column_names:
            digest.update(name.encode())
            for start in range(0, table.num_rows, 65536):
                values = table[name].slice(start, 65536).to_pylist()
                digest.update(json.dumps(values, default=str).encode())
    return digest.hexdigest()


def run(stage: Stage, accelerator: Accelerator) -> Progress:
    """Train a stage to its end or to `stop_after_steps`; the model then holds the weights of the best epoch.

    Every random number of a step (dropout, sampled items) depends on (seed, step, process) alone, and every order of documents
    and items on (seed, epoch) alone. A resumed run therefore computes the same bits as an uninterrupted one.

    Raises:
        DivergedError: the loss or the gradient is not finite.
        MemoryLimitError: the estimate is above `max_memory`.
        InputError, ExistingFileError: as `check_folder`; a checkpoint to resume from that does not fit.
        FileWriteError: a checkpoint cannot be written.
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
            scalars = {key: value for key, value in dataclasses.asdict(arguments).items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers(f"cllm4rec-{stage.name}", config=scalars)
        return _epochs(stage, accelerator, folder, fingerprint)


def _epochs(stage: Stage, accelerator: Accelerator, folder: Path, fingerprint: str) -> Progress:
    """Run the epochs from the last checkpoint, if resumed, to the end of the stage."""
    arguments, model = stage.arguments, stage.model
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, arguments), fused=True)
    # Steps are planned in advance: schedule and ETA need their number, and each epoch plans the same ones again.
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
        listed = ", ".join(f"{number:,} {kind} documents" for kind, number in documents.items())
        logger.info("%s: %d epochs, %s steps: %s", stage.name, stage.num_epochs, f"{total:,}", listed)
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
                break  # the end of the epoch saves a checkpoint, one for both
            if progress.step == arguments.stop_after_steps:
                save(progress)
                return _stop(progress, bar, accelerator)
            if progress.step % arguments.save_every == 0:
                save(progress)
        # Validation and the best checkpoint use the averaged weights; training continues from the plain ones.
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
        average.apply()
    progress.finished = True
    return _stop(progress, bar, accelerator)


def _documents(steps: list[Step]) -> Counter[str]:
    """Count the documents of each kind of step."""
    counts: Counter[str] = Counter()
    for step in steps:
        counts[step.kind] += len(step.documents)
    return counts


def _stop(progress: Progress, bar: tqdm, accelerator: Accelerator) -> Progress:
    """Close the progress bar and the trackers.

    Not by `Accelerator.end_training`, which ends the process group that a next stage still needs.
    """
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
    """Take one optimizer step and return its mean nll in nats.

    Raises:
        DivergedError: the loss or the norm of the gradient is not finite.
    """
    arguments = stage.arguments
    # Seeds are counters, not the state of a generator that runs on: a resumed run needs only the number of the step. Processes
    # draw different dropout masks.
    seeds = np.random.SeedSequence((arguments.seed, progress.step, accelerator.process_index))
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    # Sampled items must be the same in all parts of a step, or the sum of the parts would not be the loss of the step.
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((arguments.seed, progress.step)).generate_state(1)[0]))
    optimizer.zero_grad(set_to_none=True)
    num_parts = accelerator.num_processes * arguments.gradient_accumulation_steps
    totals = torch.zeros(2, dtype=torch.float64)
    for accumulation in range(arguments.gradient_accumulation_steps):
        part = micro_batch(step.documents, num_parts, accumulation * accelerator.num_processes + accelerator.process_index)
        # With fewer documents than parts some are empty. They compute one document with weight 0, because each process must
        # have a gradient for the same parameters, or the all-reduce below would wait forever.
        idle = not len(part)
        with accelerator.autocast():
            loss, nll, tokens = stage.loss(step, step.documents[:1] if idle else part, progress.epoch, generator.clone_state())
        (loss * (not idle)).backward()
        if not idle:
            totals += torch.tensor([nll, tokens], dtype=torch.float64)
    if accelerator.num_processes > 1:
        # A sum, not the mean of DistributedDataParallel: each part is already divided by the documents of the whole step, so
        # the result does not depend on the number of processes. Tables of IDs are reduced as whole dense tables.
        for parameter in parameters.values():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
        totals = accelerator.reduce(totals.to(accelerator.device), "sum").cpu()
    # After the sum, so that the norm is that of the step and the same on all processes. Before `optimizer.step`, so that a loss
    # that is not finite leaves the weights as they are.
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
    """Validate, save the best weights, and decide whether to stop early."""
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
    """The state of a run that a checkpoint holds."""

    folder: Path
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Any
    average: WeightAverage | None
    fingerprint: str
    accelerator: Accelerator

    def __call__(self, progress: Progress) -> None:
        if self.accelerator.is_main_process:
            tensors: dict[str, torch.Tensor] = {f"model.{name}": weight for name, weight in self.parameters.items()}
            tensors.update(checkpoints.optimizer_tensors(self.optimizer))
            tensors.update(self.average.tensors() if self.average is not None else {})
            state = {
                "progress": dataclasses.asdict(progress),
                "schedule": {"last_epoch": self.schedule.last_epoch},
                "start": self.fingerprint,
            }
            checkpoints.save_step(self.folder, progress.step, tensors, state)
        # No process may end, and with it the process group, while the main process still writes.
        self.accelerator.wait_for_everyone()


def _restore(
    path: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    average: WeightAverage | None,
    fingerprint: str,
) -> Progress:
    """Load a checkpoint into the weights, the optimizer, the schedule and the average."""
    tensors, state = checkpoints.read(path)
    if state["start"] != fingerprint:
        raise InputError(
            f"resume: the run of {path} started from other weights; give the same backbone (or start), data and seed, or "
            "pass overwrite=True"
        )
    _copy_into(parameters, {name[len("model.") :]: weight for name, weight in tensors.items() if name.startswith("model.")}, path)
    checkpoints.restore_optimizer(optimizer, tensors)
    if average is not None:
        average.restore(tensors)
    # Learning rates are computed from the step. Calling `schedule.step` would warn, since the new optimizer has not stepped.
    schedule.last_epoch = state["schedule"]["last_epoch"]
    for group, start, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = start * factor(schedule.last_epoch)
    return Progress(**state["progress"])


@torch.no_grad()
def _copy_into(parameters: dict[str, torch.nn.Parameter], tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copy the weights of a checkpoint into the parameters of the same names."""
    if parameters.keys() != tensors.keys():
        raise InputError(f"{path} holds other weights than this run trains; give the same arguments, or pass overwrite=True")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
