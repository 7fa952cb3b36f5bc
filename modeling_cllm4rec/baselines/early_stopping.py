"""Training loop of Mult-VAE and SASRec: validation as in `evaluate`, early stopping, the best weights are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from modeling_cllm4rec.baselines.validation import validate
from modeling_cllm4rec.core.errors import DivergedError, InputError
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
    epoch_losses: Callable[[int], Iterable[torch.Tensor]],
    stopping: Stopping,
    *,
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
        epoch_losses: number of the epoch (from 0) -> the loss of each batch, before its optimizer step.
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
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay)
    validations: list[Validation] = []
    losses: list[float] = []
    best: dict[str, torch.Tensor] = {}
    validates = has_validation(data)
    with tqdm(total=stopping.epochs, desc=f"training {title}", unit="epoch", disable=not progress) as bar:
        for epoch in range(1, stopping.epochs + 1):
            module.train()
            for loss in epoch_losses(epoch - 1):
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)
                optimizer.step()
                losses.append(float(loss.detach()))
            module.eval()
            bar.update()
            if not np.isfinite(losses).all():
                raise DivergedError(f"{title}: the loss of epoch {epoch} is not finite; lower lr (it is {lr})")
            if not validates or (epoch % stopping.validate_every and epoch < stopping.epochs):
                continue
            metric = validate(recommender, data, stopping.metric, stopping.validation_users)
            if not validations or metric > max(past.metric for past in validations):
                best = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
            validations.append(Validation(epoch, float(np.mean(losses)), metric))
            losses = []
            logger.info("%s: %s", title, validations[-1])
            bar.set_postfix({stopping.metric: f"{metric:.4f}", "best": f"{_best(validations).metric:.4f}"})
            if stopping.patience and len(validations) - validations.index(_best(validations)) > stopping.patience:
                break
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
