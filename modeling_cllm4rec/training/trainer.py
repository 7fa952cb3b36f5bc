"""The engine of all stages: `transformers.Trainer` with the steps, the objective and the validation of a stage.

The stage's plan of steps is the batch sampler; every random number of a step (dropout, sampled items) depends on (seed, step,
process) alone, and every order of documents and items on (seed, epoch) alone. A resumed run therefore computes the same bits as
an uninterrupted one, and the loss of a step does not depend on the number of processes or of accumulation steps.

Checkpoints are safetensors and JSON, written under another name and renamed; `Trainer`'s own are pickled.
"""

from __future__ import annotations

import atexit
import dataclasses
import itertools
import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, get_scheduler

from modeling_cllm4rec.core.errors import DivergedError, InputError, MissingFileError
from modeling_cllm4rec.core.processes import leave_processes
from modeling_cllm4rec.training import checkpoints
from modeling_cllm4rec.training.callbacks import EpochCallback, StepBarCallback
from modeling_cllm4rec.training.estimates import advice_for, check_memory, training_memory
from modeling_cllm4rec.training.interruption import InterruptionCallback, RunInterrupted
from modeling_cllm4rec.training.parameters import checkpoint_activations, parameter_groups, start_fingerprint, trainable
from modeling_cllm4rec.training.precision import frozen_weights_in
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.run_folder import claim_folder, stage_folder
from modeling_cllm4rec.training.sharding import Sharding, sharded_by_us, sharding_settings
from modeling_cllm4rec.training.sparse_rows import (
    CombinedOptimizer,
    RowwiseAdagrad,
    average_over_processes,
    clip_gradients,
    held_back,
    sparse_tables,
)
from modeling_cllm4rec.training.stages import Part, Stage
from modeling_cllm4rec.training.step_plan import Parts, PartSampler, Plan, as_it_is
from modeling_cllm4rec.training.trainer_arguments import trainer_arguments, wandb_without_a_run
from modeling_cllm4rec.training.weight_average import WeightAverage

logger = logging.getLogger(__name__)

TRAINER_STATE = "trainer_state.json"


class StepEnd(NamedTuple):
    """What all processes know at the end of a step: its mean nll in nats, and whether to stop or to save."""

    nll: float
    stop: bool
    save: bool


def run(stage: Stage, state: PartialState) -> Progress:
    """Train a stage to its end or to `stop_after_steps`; the model then holds the weights of the best epoch.

    Sharded weights are whole again at the end: on the main process, in main memory. The other processes then have none. After a
    stop they stay sharded.

    Raises:
        DivergedError: the loss or the gradient is not finite.
        MemoryLimitError: the estimate is above `max_memory`.
        InputError, ExistingFileError: as `run_folder.check_folder`; a checkpoint to resume from that does not fit.
        FileWriteError: a checkpoint cannot be written.
    """
    # After a run that failed the processes are not left: the others may wait in an exchange, and leaving would wait for them.
    atexit.unregister(leave_processes)
    arguments, model = stage.arguments, stage.model
    settings = sharding_settings(arguments)
    if settings is None:  # else each unit is moved when it is sharded: the device need not hold the whole model
        model.to(state.device)
    if arguments.gradient_checkpointing:
        checkpoint_activations(model.backbone)
    if arguments.torch_compile:
        model.backbone.base_model.compile(dynamic=True)
    fingerprint = start_fingerprint(model)
    sharding = None if settings is None else Sharding(model, settings, state.device, arguments.bf16)
    # Sharded weights are cast when they are gathered, so that nothing is held twice.
    with frozen_weights_in(torch.bfloat16 if arguments.bf16 and sharding is None else None, model.backbone):
        estimate = training_memory(stage, state.device, sharding)
        if state.is_main_process:
            logger.info("%s: an estimate of %s", stage.name, estimate.line())
        check_memory(estimate, arguments.max_memory, advice_for(estimate, arguments), state.device)
        if state.is_main_process:
            claim_folder(stage.name, arguments, stage.data)
        state.wait_for_everyone()
        progress = RecommenderTrainer(stage, fingerprint, sharding).fit()
    if sharding is not None and progress.finished:
        sharding.gather()
    atexit.register(leave_processes)  # whatever calls a stage may go on with the processes after it
    return progress


class RecommenderTrainer(Trainer):
    """`transformers.Trainer` for a stage.

    Args:
        stage: its model is on its device, with its trainable weights chosen.
        fingerprint: of the weights before training, see `parameters.start_fingerprint`.
        sharding: of the model, None where it is whole on each process.

    Attributes:
        progress: epochs and steps done, and the results of the validations.
    """

    def __init__(self, stage: Stage, fingerprint: str, sharding: Sharding | None = None) -> None:
        self.stage, self.fingerprint, self.sharding = stage, fingerprint, sharding
        self.folder = stage_folder(stage.name, stage.arguments)
        self.plan = Plan(stage)
        self.progress = Progress()
        self.parts = Parts(stage)
        self.parameters = trainable(stage.model)
        self.sparse_tables = sparse_tables(stage.model)
        decay = stage.arguments.average_decay
        self.average = WeightAverage(self.parameters, decay, self.sparse_tables) if decay else None
        config = stage.model.config
        use_cache = vars(config).get("use_cache")
        with sharded_by_us():
            super().__init__(stage.model, trainer_arguments(stage, self.plan), train_dataset=self.parts)
        # `Trainer` switches it off in the configuration, which would be saved with the model.
        if use_cache is None:
            vars(config).pop("use_cache", None)
        else:
            config.use_cache = use_cache
        self.model_accepts_loss_kwargs = True  # the losses of the parts of a step add up: `Trainer` must not average them
        self.loss_is_scaled_for_ga = True
        self._part_nll = torch.zeros(2, dtype=torch.float64)
        self.interruption, self.interrupted = InterruptionCallback(), 0
        self._wandb = wandb_without_a_run(stage.arguments)
        self._saved_at = time.perf_counter()
        self.logged_nll: dict[str, tuple[float, int]] = {}
        self._seeded_step = -1
        for shown in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown)
        self.add_callback(self.interruption)
        self.add_callback(EpochCallback(self))
        self.add_callback(StepBarCallback(self))

    def fit(self) -> Progress:
        """Train from the last checkpoint, if the run is resumed, to the end or to `stop_after_steps`.

        Raises:
            RunInterrupted: a signal ended the run; its last step is saved.
        """
        last = None
        if self.stage.arguments.resume and (found := self._checkpoint()):
            last, *self._restored = found
            self.progress = Progress(**self._restored[1]["progress"])
        if self.is_world_process_zero():
            listed = ", ".join(f"{number:,} {kind} documents" for kind, number in self.plan.documents.items())
            name, epochs = self.stage.name, self.stage.num_epochs
            logger.info("%s: %d epochs, %s steps: %s", name, epochs, f"{self.plan.total:,}", listed)
            if last is not None:
                logger.info("resumed %s after step %d of %d", name, self.progress.step, self.plan.total)
        self.end_empty_epochs()
        try:
            if not self.progress.finished and self.progress.epoch < self.stage.num_epochs:
                self.train(resume_from_checkpoint=None if last is None else str(last))
            elif last is not None:
                self._load_from_checkpoint(str(last))
        finally:
            self.stage.model.backbone.base_model._compiled_call_impl = None  # compiled code cannot be saved or copied
            # Accelerate puts a `forward` with autocast on the model, where it would be saved, exported and compiled with it.
            for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
                vars(self.stage.model).pop(name, None)
            for module in self.stage.model.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.sparse = False
            self.interruption.give_back()
            if self._wandb is not None:
                self._wandb.finish()  # `Trainer` leaves its run open, and the next stage of this process would log into it
        return self._finish()

    def _checkpoint(self) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the checkpoint to go on from, its tensors and its state: the named one, or the newest that can be read."""
        named = self.stage.arguments.resume_from_checkpoint
        if named is None:
            return checkpoints.read_latest(self.folder, self._place)
        path = Path(named)
        if path.resolve().parent != self.folder.resolve() or not path.is_dir():
            there = sorted(one.name for one in self.folder.glob(f"{checkpoints.PREFIX}*"))
            raise MissingFileError(
                f"resume_from_checkpoint: {named} is no checkpoint of this run; {self.folder} has {', '.join(there) or 'none'}"
            )
        return path, *checkpoints.read(path, self._place)

    @property
    def _place(self) -> checkpoints.Place | None:
        """Where the rows of a checkpoint's tensors belong: None where all weights are whole."""
        if self.sharding is None:
            return None
        groups = parameter_groups(self.stage.model, self.stage.arguments)
        optimized = [weight for group in groups for weight in group["params"]]

        def place(name: str) -> torch.Tensor | None:
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                return optimized[int(rest.partition(".")[0])]
            return self.parameters.get(rest if kind in ("model", "average", "average-kept-at") else name)

        return place

    def end_empty_epochs(self) -> None:
        """End the epochs that have no steps, such as a warm-up on texts that are all held out."""
        progress = self.progress
        while progress.epoch < self.stage.num_epochs and not self.plan.steps_in_epoch[progress.epoch] and not progress.finished:
            self.evaluate()

    def _finish(self) -> Progress:
        """Give the model the weights of the best epoch, unless the run was stopped before its end."""
        progress = self.progress
        if progress.epoch < self.stage.num_epochs and not progress.finished:
            if self.interrupted:
                raise RunInterrupted(self.interrupted, self.stage.name, progress.step)
            return progress
        if progress.best_epoch >= 0:
            tensors, _ = checkpoints.read(self.folder / "best", self._place)
            self._copy_weights(tensors, self.folder / "best")
        elif self.average is not None:
            self.average.apply()
        progress.finished = True
        return progress

    # ---- data: the plan of steps ----

    def get_train_dataloader(self) -> DataLoader:
        """Return the parts of this process, from the step on that the run has reached."""
        args = self.args
        workers: dict[str, Any] = {}
        if args.dataloader_num_workers:
            workers = {
                "prefetch_factor": args.dataloader_prefetch_factor or 2,
                "multiprocessing_context": args.dataloader_multiprocessing_context,
            }
        return DataLoader(
            self.parts,
            batch_size=None,
            sampler=PartSampler(self.plan, self.progress, args.process_index, args.world_size),
            collate_fn=as_it_is,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            **workers,
        )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Return the parts of an optimizer step on this process, and the number of documents or tokens over all processes."""
        samples = list(itertools.islice(epoch_iterator, num_batches))
        if not samples:
            return [], None
        counted = torch.tensor(sum(sample.pop("items") for sample in samples), device=device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(counted)
        return samples, counted

    def num_examples(self, dataloader: DataLoader) -> int:
        """Return the number of documents of the whole run."""
        return sum(self.plan.documents.values())

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: an estimate from `input_ids` alone would leave out the softmax over the catalogue."""
        return 0

    # ---- one step ----

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        """Move a whole model; shards are in their place, and `to` would refuse them."""
        if self.sharding is None:
            super()._move_model_to_device(model, device)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute the gradient of one part, with the random numbers of its step."""
        self.part: Part = inputs["part"]
        part = self.part
        if part.number != self._seeded_step:
            # Seeds are counters, not the state of a generator that runs on: a resumed run needs only the number of the step.
            # Processes draw different dropout masks.
            seeds = np.random.SeedSequence((self.args.seed, part.number, self.args.process_index))
            torch.manual_seed(int(seeds.generate_state(1)[0]))
            self._seeded_step = part.number
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            average_over_processes(self.sparse_tables)
        return loss

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the share of a part in the loss of its step, times the number of processes, whose gradients are averaged."""
        part = inputs.pop("part")
        output = model(**inputs, objective=self.stage.objective(part), num_items_in_batch=num_items_in_batch)
        if not part.idle:
            self._part_nll = self._part_nll.to(output.nll.device)
            self._part_nll += torch.stack([output.nll, output.tokens.to(output.nll.device)]).double()
        loss = output.loss * (self.accelerator.num_processes * (not part.idle))
        return (loss, output) if return_outputs else loss

    def end_of_step(self) -> StepEnd:
        """Exchange what the processes know at the end of a step, so that all of them save and stop at the same one."""
        wants_save = self.args.should_save and self.minutes_since_save() >= (self.stage.arguments.save_minutes or float("inf"))
        flags = torch.tensor([self.interruption.received, wants_save], dtype=torch.float64, device=self._part_nll.device)
        nll, tokens, signals, save = self.accelerator.reduce(torch.cat([self._part_nll, flags]), "sum").tolist()
        self._part_nll = torch.zeros_like(self._part_nll)
        self.interrupted = self.interruption.received or (signal.SIGTERM if signals else 0)
        return StepEnd(nll / max(tokens, 1), bool(self.interrupted), bool(save))

    def minutes_since_save(self) -> float:
        """Return the minutes since the last checkpoint, or since the run began."""
        return (time.perf_counter() - self._saved_at) / 60

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer` does, with the mean nll in nats of each kind of step since the last time."""
        if "loss" in logs:
            logs = {**logs, **{f"{kind}_nll": total / steps for kind, (total, steps) in self.logged_nll.items()}}
            self.logged_nll = {}
        super().log(logs, start_time)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Clip gradients to `max_grad_norm`, and return their norm before that."""
        if self.sparse_tables:
            return clip_gradients(model.parameters(), self.args.max_grad_norm)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of the gradient, before the optimizer steps, so that one that is not finite changes no weight.

        Raises:
            DivergedError: it is not finite.
        """
        if self.sparse_tables and grad_norm is None:
            grad_norm = clip_gradients(model.parameters(), float("inf"))
        norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if not np.isfinite(float(norm)):
            nll, tokens = self._part_nll.tolist()
            raise DivergedError(
                f"{self.stage.name}: at step {self.progress.step + 1} the loss is {nll / max(tokens, 1)} and the gradient's norm "
                f"{float(norm)}; lower learning_rate, or set max_grad_norm; the last checkpoint is good"
            )
        return norm

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, see `parameters.parameter_groups`; that of sparse tables is `RowwiseAdagrad`."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            groups, sparse = parameter_groups(self.stage.model, self.stage.arguments), set(map(id, self.sparse_tables))
            rows = [group for group in groups if id(group["params"][0]) in sparse]
            others = [group for group in groups if id(group["params"][0]) not in sparse]
            parts: list[torch.optim.Optimizer] = [RowwiseAdagrad(rows)] if rows else []
            parts += [kind(others, **settings)] if others else []
            self.optimizer = parts[0] if len(parts) == 1 else CombinedOptimizer(parts)
        return self.optimizer

    def _prepare_for_training(self, *arguments: Any) -> Any:
        """Wrap the model for data parallelism, without its sparse tables, and create optimizer and schedule."""
        self.create_optimizer()
        with held_back(self.sparse_tables):
            # DistributedDataParallel refuses a model without a dense gradient, and a sharded one needs none around it.
            if self.sharding is not None or not trainable(self.stage.model):
                prepare, moved = self.accelerator.prepare_model, self.sharding is None

                def prepare_alone(model: torch.nn.Module, device_placement: bool | None = None, **_: Any) -> torch.nn.Module:
                    place = device_placement if moved else False
                    prepared: torch.nn.Module = prepare(model, device_placement=place, evaluation_mode=True)
                    return prepared

                self.accelerator.prepare_model = prepare_alone
            return super()._prepare_for_training(*arguments)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Create the schedule of the learning rate."""
        arguments = self.stage.arguments
        if self.lr_scheduler is None:
            warmup = arguments.warmup_steps if arguments.warmup_steps >= 1 else arguments.warmup_steps * num_training_steps
            used: Any = optimizer or self.optimizer
            kwargs: Any = self.args.lr_scheduler_kwargs or {}
            name = arguments.lr_scheduler_type
            name = "constant_with_warmup" if name == "constant" else name  # that of transformers would leave the warm-up out
            self.lr_scheduler = get_scheduler(name, used, int(warmup), num_training_steps, kwargs)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- validation ----

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Validate at the end of an epoch, keep the best weights, and decide whether to stop early.

        Validation and the best weights are those of the moving average; training continues from the plain ones.
        """
        progress, stage = self.progress, self.stage
        stage.model.eval()
        with nullcontext() if self.average is None else self.average.in_place():
            with self.accelerator.autocast():
                validate = partial(stage.validate, progress.epoch)
                metrics = validate() if self.sharding is None else self.sharding.within_forward(validate)
            selection = metrics.get("selection")
            better = selection is not None and (progress.best is None or selection > progress.best)
            if better and self.writes:
                checkpoints.write_atomically(self.folder / "best", dict(self.parameters), {"epoch": progress.epoch, **metrics})
        self.accelerator.wait_for_everyone()
        progress.end_epoch(metrics, self.stage.arguments.early_stopping_patience)
        if metrics and self.is_world_process_zero():
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "selection")
            kept = "" if selection is None else "; the best so far" if better else f"; epoch {progress.best_epoch + 1} was better"
            logger.info("%s epoch %d/%d: %s%s", stage.name, progress.epoch, stage.num_epochs, shown, kept)
        named = {f"{metric_key_prefix}_{name.removeprefix('validation/')}": value for name, value in metrics.items()}
        self.log(dict(named))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        self.control.should_training_stop |= progress.finished
        return named

    # ---- checkpoints ----

    @property
    def writes(self) -> bool:
        """Whether this process takes part in writing a checkpoint: the main one, of sharded weights all of them."""
        return self.args.should_save or any(isinstance(weight, DTensor) for weight in self.parameters.values())

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write trained weights, moments, averages and progress, whole or not at all."""
        if self.writes:
            optimizer: Any = self.optimizer
            schedule: Any = self.lr_scheduler
            tensors: dict[str, torch.Tensor] = {f"model.{name}": weight for name, weight in self.parameters.items()}
            tensors.update(checkpoints.optimizer_tensors(optimizer))
            tensors.update(self.average.tensors() if self.average is not None else {})
            state = {
                "progress": dataclasses.asdict(self.progress),
                "schedule": {"last_epoch": schedule.last_epoch},
                "start": self.fingerprint,
            }
            more_files = {TRAINER_STATE: json.dumps(dataclasses.asdict(self.state), indent=2, sort_keys=True) + "\n"}
            checkpoints.save_step(self.folder, self.progress.step, tensors, state, more_files)
        # No process may end, and with it the process group, while the main process still writes.
        self.accelerator.wait_for_everyone()
        self._saved_at = time.perf_counter()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load the trained weights and the averages of a checkpoint.

        Raises:
            InputError: its run began with other weights, or trained others.
        """
        tensors, state = self._restored
        if state["start"] != self.fingerprint:
            raise InputError(
                f"resume: the run of {resume_from_checkpoint} started from other weights; give the same backbone (or start), "
                "data and seed, or pass overwrite=True"
            )
        weights = {name[len("model.") :]: weight for name, weight in tensors.items() if name.startswith("model.")}
        self._copy_weights(weights, Path(resume_from_checkpoint))
        if self.average is not None:
            self.average.restore(tensors)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the moments of a checkpoint, and compute the learning rates of its step."""
        if checkpoint is None:
            return
        tensors, state = self._restored
        del self._restored
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        checkpoints.restore_optimizer(optimizer, tensors)
        # Learning rates are computed from the step. Calling `schedule.step` would warn, since the new optimizer has not stepped.
        schedule: Any = self.lr_scheduler
        schedule.last_epoch = state["schedule"]["last_epoch"]
        for group, start, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = start * factor(schedule.last_epoch)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Do nothing: each step seeds its random numbers itself."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing: bfloat16 needs no scaling of gradients."""

    @torch.no_grad()
    def _copy_weights(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        """Copy the weights of a checkpoint into the parameters of the same names."""
        if self.parameters.keys() != tensors.keys():
            raise InputError(f"{path} holds other weights than this run trains; give the same arguments, or pass overwrite=True")
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])


__all__ = ["RecommenderTrainer", "run"]
