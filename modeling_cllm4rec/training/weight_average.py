"""A moving average of the trained weights, which generalizes better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

PREFIX = "average."


class WeightAverage:
    """Exponential moving average of weights over optimizer steps (Polyak averaging).

    After step t (from 1) the average moves towards the weights by 1 - min(decay, (1 + t) / (10 + t)). Early steps move it far,
    so that the untrained start soon loses its weight.

    Only the trained weights are copied, unlike `torch.optim.swa_utils.AveragedModel`, which copies the whole model.

    Args:
        parameters: name -> parameter, for all trained parameters.
        decay: in (0, 1); 0.995 averages over about the last 200 steps.

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

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._weights = [parameter.detach() for parameter in parameters.values()]  # views of the same memory
        self._names = list(parameters)
        self._averages = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after an optimizer step (counted from 1)."""
        # One fused call for all tensors: a loop over them would launch a kernel for each.
        torch._foreach_lerp_(self._averages, self._weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model within a block, and the trained weights back after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the model for good."""
        torch._foreach_copy_(self._weights, self._averages)

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap weights and averages, tensor by tensor, so that only one tensor is held twice."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            trained = weight.clone()
            weight.copy_(average)
            average.copy_(trained)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the averages as named tensors for a checkpoint."""
        return {PREFIX + name: average for name, average in zip(self._names, self._averages, strict=True)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the averages of a checkpoint."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(tensors[PREFIX + name])
