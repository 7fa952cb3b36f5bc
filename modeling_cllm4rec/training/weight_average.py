"""A moving average of the trained weights, which generalizes better than the weights of the last step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from modeling_cllm4rec.training.parameters import local_part
from modeling_cllm4rec.training.sparse_rows import named_rows

PREFIX = "average."
KEPT, KEPT_AT = "average-kept", "average-kept-at."
ROWS_AT_ONCE = 65536


class WeightAverage:
    """Exponential moving average of weights over optimizer steps (Polyak averaging).

    After step t (from 1) the average moves towards the weights by 1 - min(decay, (1 + t) / (10 + t)). Early steps move it far,
    so that the untrained start soon loses its weight.

    Only the trained weights are copied, unlike `torch.optim.swa_utils.AveragedModel`, which copies the whole model.

    Tables with sparse gradients are averaged when a row is about to move, and before the average is read. n steps without a
    gradient move the average of a row towards the row at once: what is left of their distance is the product of n decays.

    Args:
        parameters: name -> parameter, for all trained parameters.
        decay: in (0, 1); 0.995 averages over about the last 200 steps.
        sparse: those of the parameters whose gradients are sparse; call `before_step` before each optimizer step.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> average = WeightAverage({"weight": weight}, decay=0.5)
        >>> _ = weight.data.fill_(1.0)
        >>> average.update(step=100)
        >>> with average.in_place():
        ...     weight.item()
        0.5
        >>> weight.item()
        1.0
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float, sparse: Iterable[torch.Tensor] = ()) -> None:
        self.decay = decay
        lazy = set(map(id, sparse))
        self._parameters = dict(parameters)
        self._named = {name: weight.detach().clone() for name, weight in parameters.items()}
        # Of sharded weights the rows that this process holds, which are averaged here alone: views of the same memory.
        self._averages = {name: local_part(average) for name, average in self._named.items()}
        self._dense = [name for name, weight in parameters.items() if id(weight) not in lazy]
        self._kept = torch.zeros((), dtype=torch.float64)  # logarithm of the product of all decays so far
        # Its value when the average of a row was last computed.
        self._kept_at = {
            name: torch.zeros_like(weight.detach()[:, 0], dtype=torch.float64)
            for name, weight in parameters.items()
            if id(weight) in lazy
        }
        self._moving: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        """Bring the averages of the rows with a gradient up to date, while their weights are those of the steps before."""
        for name in self._kept_at:
            if self._parameters[name].grad is not None:
                self._moving[name] = named_rows(self._parameters[name])
                self._catch_up(name, self._moving[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after an optimizer step (counted from 1)."""
        kept = min(self.decay, (1 + step) / (10 + step))
        # One fused call for all tensors: a loop over them would launch a kernel for each.
        averages, weights = ([held[name] for name in self._dense] for held in (self._averages, self._weights))
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - kept)
        self._kept += math.log(kept)
        for name, rows in self._moving.items():
            self._catch_up(name, rows)
        self._moving = {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model within a block, and the trained weights back after it."""
        self._catch_up_all()
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the model for good."""
        self._catch_up_all()
        for name, weight in self._weights.items():
            weight.copy_(self._averages[name])

    @property
    def _weights(self) -> dict[str, torch.Tensor]:
        # Not kept: DistributedDataParallel may give a parameter other memory after this average was made.
        return {name: local_part(parameter.detach()) for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def _catch_up(self, name: str, rows: torch.Tensor | slice) -> None:
        """Average some rows of a table over the steps since they were last averaged, in which their weights did not change."""
        kept_at = local_part(self._kept_at[name])
        kept = (self._kept - kept_at[rows]).exp()[:, None].float()
        weights = local_part(self._parameters[name])[rows]
        self._averages[name][rows] = weights + (self._averages[name][rows] - weights) * kept
        kept_at[rows] = self._kept.to(weights.device)

    def _catch_up_all(self) -> None:
        """Average all rows, some at a time."""
        for name, kept_at in self._kept_at.items():
            for start in range(0, len(local_part(kept_at)), ROWS_AT_ONCE):
                self._catch_up(name, slice(start, start + ROWS_AT_ONCE))

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap weights and averages, tensor by tensor, so that only one tensor is held twice."""
        for name, weight in self._weights.items():
            trained = weight.clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(trained)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the averages as named tensors for a checkpoint."""
        named = {PREFIX + name: average for name, average in self._named.items()}
        if self._kept_at:
            named |= {KEPT: self._kept, **{KEPT_AT + name: kept_at for name, kept_at in self._kept_at.items()}}
        return named

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the averages of a checkpoint."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
