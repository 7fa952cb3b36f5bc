"""`transformers.Trainer` for modules that are no recommender of a stage: the RQ-VAE, the neural baselines, new items' rows.

Such a training runs on one device in one process, also where that process is one of many: the first process of a launch indexes
items alone, and each process fits its own teacher. Accelerate would share the work out, and wait for the others.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TrainerArguments

from modeling_cllm4rec.core.errors import DivergedError

Inputs = dict[str, Any]
"""Arguments of a loss: tensors, which are moved to the module's device, and anything else as it is."""
EndEpoch = Callable[[int, list[float]], bool]
"""(epoch from 0, the loss of each of its steps) -> whether to stop; the module is in evaluation mode."""
OF_A_LAUNCH = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables by which accelerate finds other processes; those that begin with ACCELERATE_ also hold choices of the launch."""


def train_module(
    module: nn.Module,
    batches: Callable[[int], Iterable[Inputs]],
    loss: Callable[..., torch.Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    num_train_epochs: int,
    steps_per_epoch: int,
    title: str,
    advice: str,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    max_grad_norm: float = 0.0,
    first_epoch: int = 0,
    dropout: bool = True,
    end_epoch: EndEpoch = lambda epoch, losses: False,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train a module in place by `transformers.Trainer`, one optimizer step per batch; it is left in evaluation mode.

    `Trainer` seeds all generators when it is made; they are restored, so that dropout draws as in a loop without it.

    Args:
        module: in its place, which may be several devices; inputs are moved to that of the first trained weight.
        batches: epoch from 0 -> `steps_per_epoch` inputs of the loss.
        loss: the mean over a batch; it computes with the module.
        optimizer: of the weights that are trained.
        num_train_epochs, steps_per_epoch: size of the whole training; without steps nothing is done.
        title: name of the model in messages.
        advice: what to change after a loss that is not finite.
        schedule: of the learning rates, by steps; None keeps them.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        first_epoch: epoch to start with, after a resume.
        dropout: whether the module is in training mode during a step.
        end_epoch: called after each epoch; what it raises ends the training.
        callbacks: further callbacks of `Trainer`.

    Raises:
        DivergedError: the loss of a step is not finite; no weight has changed in that step.

    Example:
        >>> line = nn.Linear(1, 1)
        >>> seen = []
        >>> train_module(
        ...     line,
        ...     lambda epoch: [{"x": torch.ones(2, 1)}],
        ...     lambda x: (line(x) - 3).square().mean(),
        ...     torch.optim.SGD(line.parameters(), lr=0.2),
        ...     num_train_epochs=20,
        ...     steps_per_epoch=1,
        ...     title="a line",
        ...     advice="lower lr",
        ...     end_epoch=lambda epoch, losses: losses[0] < 1e-3,
        ... )
        >>> round(line(torch.ones(1, 1)).item(), 1)
        3.0
    """
    module.eval()
    left = num_train_epochs - first_epoch
    if left <= 0 or not steps_per_epoch:
        return
    device = optimizer.param_groups[0]["params"][0].device
    with accelerate_knows_only(device), tempfile.TemporaryDirectory() as folder:
        with _random_numbers_kept(device), _launch_hidden():
            arguments = OneDeviceArguments(
                output_dir=folder,  # stays empty; without it `Trainer` makes one where the process runs
                num_train_epochs=left,
                max_grad_norm=max_grad_norm,
                lr_scheduler_type="constant",
                logging_strategy="no",
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to="none",
            )
            trainer = ModuleTrainer(
                LossOf(module, loss, dropout),
                arguments,
                Batches(batches, steps_per_epoch, first_epoch),
                end_epoch,
                title=title,
                advice=advice,
                optimizers=(optimizer, schedule),
                callbacks=list(callbacks),
            )
        trainer.train()
    module.eval()


class LossOf(nn.Module):
    """The loss of a module, as the model of a `Trainer`.

    Args:
        module: with the weights that are trained.
        loss: see `train_module`.
        dropout: whether the module can be in training mode.
    """

    def __init__(self, module: nn.Module, loss: Callable[..., torch.Tensor], dropout: bool) -> None:
        super().__init__()
        self.module, self.loss, self.dropout = module, loss, dropout

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Return the loss of a batch."""
        return self.loss(**inputs)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the module, which `Trainer` does before each step."""
        return super().train(mode and self.dropout)


class Batches(IterableDataset):
    """The plan of steps: the inputs of each step of an epoch; each iteration is the next epoch.

    Args:
        batches: see `train_module`.
        steps: inputs of an epoch.
        epoch: the first one.
    """

    def __init__(self, batches: Callable[[int], Iterable[Inputs]], steps: int, epoch: int) -> None:
        self.batches, self.steps, self.epoch = batches, steps, epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Inputs]:
        self.epoch += 1
        return iter(self.batches(self.epoch - 1))


class ModuleTrainer(Trainer):
    """`transformers.Trainer` that reads whole batches, and hands the losses of each epoch on."""

    def __init__(
        self,
        loss: LossOf,
        arguments: TrainerArguments,
        plan: Batches,
        end_epoch: EndEpoch,
        *,
        title: str,
        advice: str,
        **settings: Any,
    ) -> None:
        super().__init__(loss, arguments, **settings)
        self.plan, self.end_epoch, self.title, self.advice = plan, end_epoch, title, advice
        self.losses: list[float] = []
        for shown in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown)
        self.add_callback(EpochEndCallback(self))

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Do nothing: the module is in its place."""

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches as they are; the order of the steps is theirs."""
        # Without a generator of its own a DataLoader draws a seed from the global one, which the module's dropout reads.
        return DataLoader(self.plan, batch_size=None, collate_fn=lambda inputs: inputs, generator=torch.Generator())

    def compute_loss(
        self, model: nn.Module, inputs: Inputs, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the loss of a step.

        Raises:
            DivergedError: it is not finite.
        """
        loss: torch.Tensor = model(**inputs).to(self.args.device)
        self.losses.append(float(loss.detach()))
        if not np.isfinite(self.losses[-1]):
            epoch = self.plan.epoch  # from 1: the iteration of this epoch has begun
            raise DivergedError(f"{self.title}: the loss of epoch {epoch} is {self.losses[-1]}; {self.advice}")
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm if gradients were clipped; `Trainer` computes it for its log in any case."""
        return grad_norm


class EpochEndCallback(TrainerCallback):
    """Hand on the losses of an epoch, and stop early."""

    def __init__(self, trainer: ModuleTrainer) -> None:
        self.trainer = trainer

    def on_epoch_end(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Call `end_epoch` of the training."""
        trainer = self.trainer
        losses, trainer.losses = trainer.losses, []
        kwargs["model"].eval()
        control.should_training_stop |= trainer.end_epoch(trainer.plan.epoch - 1, losses)


class OneDeviceArguments(TrainerArguments):
    """Arguments of a `Trainer` on the one device that accelerate knows."""

    @cached_property
    def _setup_devices(self) -> torch.device:
        self.distributed_state = PartialState()
        self._n_gpu = int(self.distributed_state.device.type == "cuda")  # with more, `Trainer` would split batches among them
        return self.distributed_state.device


@contextmanager
def accelerate_knows_only(device: torch.device) -> Iterator[None]:
    """Let accelerate know this process and a device alone within a block; after it, it knows again what it knew before.

    Its state belongs to the process, not to a `Trainer`: one on the CPU would move the next one to the CPU.
    """
    kinds: Any = (PartialState, AcceleratorState, GradientState)
    before = [dict(kind._shared_state) for kind in kinds]
    for kind in kinds:
        kind._shared_state.clear()
    try:
        with _launch_hidden():
            PartialState(cpu=True).device = device
        yield
    finally:
        for kind, known in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(known)


@contextmanager
def _launch_hidden() -> Iterator[None]:
    """Hide the variables of a launch within a block."""
    hidden = {name: value for name, value in os.environ.items() if name in OF_A_LAUNCH or name.startswith("ACCELERATE_")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Restore all global generators after a block: a new `Trainer` seeds them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


__all__ = ["train_module"]
