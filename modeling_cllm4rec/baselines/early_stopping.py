"""The training loop that Mult-VAE and SASRec share: validate as `evaluate` does, keep the best weights, stop in time."""

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
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender

logger = logging.getLogger(__name__)

TrainingPrecision = Literal["no", "bf16"]


@dataclass(frozen=True)
class Stopping:
    """When to stop, and what to keep.

    Attributes:
        epochs: most passes over the data.
        patience: stop after so many validations without a better one; 0 never stops early.
        validate_every: epochs between validations.
        metric: what is to be highest on validation, with train histories as inputs; of several joined by + the sum.
        validation_users: validate on a fixed random sample of so many users; None takes all.
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
    """One validation: after which epoch (from 1), the mean training loss since the last one, the metric."""

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
    """Train with AdamW and leave the weights of the best validation in the module.

    Args:
        recommender: scores with the module's weights as they are.
        module: what trains; in training mode during an epoch, in evaluation mode otherwise and at the end.
        data: validated on as `evaluate(recommender, data, "validation")`.
        epoch_losses: number of the epoch (from 0) -> the loss of each batch, before its step.
        stopping: when to stop.
        lr, weight_decay, max_grad_norm: of AdamW.
        title: text before the bar.
        progress: show a bar of epochs.

    Returns:
        All validations.

    Raises:
        DivergedError: a loss is not finite.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay)
    validations: list[Validation] = []
    losses: list[float] = []
    best: dict[str, torch.Tensor] = {}
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
            if epoch % stopping.validate_every and epoch < stopping.epochs:
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
    module.load_state_dict(best)
    logger.info("%s: best is %s", title, _best(validations))
    return validations


def check_counts(**counts: int) -> None:
    """Refuse numbers below 1.

    Raises:
        InputError: naming the argument.
    """
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}; it must be 1 or more")


def check_shares(**shares: float) -> None:
    """Refuse numbers outside of [0, 1), such as a dropout of 1.

    Raises:
        InputError: naming the argument.
    """
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise InputError(f"{name} is {share}; it must be 0 or more and lie below 1")


def check_above_zero(**numbers: float) -> None:
    """Refuse numbers that are not above 0.

    Raises:
        InputError: naming the argument.
    """
    for name, number in numbers.items():
        if not number > 0:
            raise InputError(f"{name} is {number}; it must be above 0")


def device_named(device: str) -> torch.device:
    """`"auto"` is a GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def autocast(device: torch.device, precision: TrainingPrecision) -> torch.autocast:
    """Set whether to compute in bfloat16 or not; weights stay in 32 bits.

    Raises:
        InputError: `precision` is neither of the two.
    """
    if precision not in ("no", "bf16"):
        raise InputError(f"precision is {precision!r}; allowed are 'no' and 'bf16'")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _best(validations: list[Validation]) -> Validation:
    return max(validations, key=lambda validation: validation.metric)  # of equal ones the first
