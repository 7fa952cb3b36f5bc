"""Training of Mult-VAE and SASRec: validation as in `evaluate`, early stopping, the best weights are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from modeling_cllm4rec.baselines.validation import validate
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData, has_validation
from modeling_cllm4rec.evaluation.evaluator import Recommender

logger = logging.getLogger(__name__)

TrainingPrecision = Literal["no", "bf16"]


@dataclass(frozen=True)
class Stopping:
    """Settings of early stopping.

    Attributes:
        epochs: largest number of passes over the data.
        patience: number of validations without improvement after which training stops; 0 never stops early.
        validate_every: epochs between validations.
        metric: validation metric to maximize, with train histories as inputs; several joined by + are added.
        validation_users: size of a fixed random sample of users for validation; None takes all users.
    """

    epochs: int
    patience: int
    validate_every: int
    metric: str
    validation_users: int | None

    def __post_init__(self) -> None:
        check_counts(epochs=self.epochs, validate_every=self.validate_every)
        if self.patience < 0:
            raise InputError(f"patience is {self.patience}; it must be 1 or more, or 0 to never stop early")


@dataclass(frozen=True)
class Validation:
    """Result of a validation: the epoch (from 1), the mean training loss since the last validation, and the metric."""

    epoch: int
    loss: float
    metric: float


def train_until_best(
    recommender: Recommender,
    module: nn.Module,
    data: RecommendationData,
    batches: Callable[[int], Iterable[dict[str, Any]]],
    loss: Callable[..., torch.Tensor],
    stopping: Stopping,
    *,
    steps_per_epoch: int,
    lr: float,
    weight_decay: float = 0.0,
    max_grad_norm: float = 5.0,
    title: str,
    progress: bool,
) -> list[Validation]:
    """Train with AdamW and load the weights of the best validation; without validation interactions those of the last epoch stay.

    Args:
        recommender: scores histories with the current weights of the module.
        module: the trained module; in training mode during an epoch, in evaluation mode otherwise and at the end.
        data: the data folder of `evaluate(recommender, data, "validation")`.
        batches, loss, steps_per_epoch: see `module_trainer.train_module`.
        stopping: settings of early stopping.
        lr, weight_decay: of AdamW.
        max_grad_norm: the gradient is clipped to this norm.
        title: name of the model in the log and in the progress bar.
        progress: show a progress bar of epochs.

    Returns:
        All validations.

    Raises:
        DivergedError: a loss is not finite.
    """
    from modeling_cllm4rec.training.module_trainer import train_module  # imports transformers, which other baselines do without

    validations: list[Validation] = []
    losses: list[float] = []
    best: dict[str, torch.Tensor] = {}
    validates = has_validation(data)

    def end_epoch(number: int, epoch_losses: list[float]) -> bool:
        nonlocal best
        epoch = number + 1
        bar.update()
        losses.extend(epoch_losses)
        if not validates or (epoch % stopping.validate_every and epoch < stopping.epochs):
            return False
        metric = validate(recommender, data, stopping.metric, stopping.validation_users)
        if not validations or metric > max(past.metric for past in validations):
            best = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        validations.append(Validation(epoch, float(np.mean(losses)), metric))
        losses.clear()
        logger.info("%s: %s", title, validations[-1])
        bar.set_postfix({stopping.metric: f"{metric:.4f}", "best": f"{_best(validations).metric:.4f}"})
        return bool(stopping.patience) and len(validations) - validations.index(_best(validations)) > stopping.patience

    with tqdm(total=stopping.epochs, desc=f"training {title}", unit="epoch", disable=not progress) as bar:
        train_module(
            module,
            batches,
            loss,
            torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay),
            num_train_epochs=stopping.epochs,
            steps_per_epoch=steps_per_epoch,
            max_grad_norm=max_grad_norm,
            title=title,
            advice=f"lower lr (it is {lr})",
            end_epoch=end_epoch,
        )
    if validations:
        module.load_state_dict(best)
        logger.info("%s: best is %s", title, _best(validations))
    return validations


def check_counts(**counts: int) -> None:
    """Check that numbers are 1 or more.

    Raises:
        InputError: one is not; the argument is named.
    """
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}; it must be 1 or more")


def check_shares(**shares: float) -> None:
    """Check that numbers are in [0, 1), such as a dropout.

    Raises:
        InputError: one is not; the argument is named.
    """
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise InputError(f"{name} is {share}; it must be 0 or more and lie below 1")


def check_above_zero(**numbers: float) -> None:
    """Check that numbers are above 0.

    Raises:
        InputError: one is not; the argument is named.
    """
    for name, number in numbers.items():
        if not number > 0:
            raise InputError(f"{name} is {number}; it must be above 0")


def device_named(device: str) -> torch.device:
    """Return the device of a name; `"auto"` is a GPU if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def autocast(device: torch.device, precision: TrainingPrecision) -> torch.autocast:
    """Return the context of computation in 32 bits or in bfloat16; weights stay in 32 bits.

    Raises:
        InputError: `precision` is unknown.
    """
    if precision not in ("no", "bf16"):
        raise InputError(f"precision is {precision!r}; allowed are 'no' and 'bf16'")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _best(validations: list[Validation]) -> Validation:
    return max(validations, key=lambda validation: validation.metric)  # the first of equal ones
