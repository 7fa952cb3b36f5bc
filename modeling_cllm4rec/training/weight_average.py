"""A moving average of the trained weights, which generalizes better than the last step's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

PREFIX = "average."


class WeightAverage:
    """Exponential moving average over optimizer steps (Polyak averaging), kept beside the weights that train.

    After step t (from 1) the average moves towards the weights by 1 - min(decay, (1 + t) / (10 + t)): early on it follows
    them closely, so that it does not remember the start.

    Args:
        parameters: name -> parameter of all that trains.
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
        self._weights = [parameter.detach() for parameter in parameters.values()]  # the same memory
        self._names = list(parameters)
        self._averages = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after an optimizer step (counted from 1)."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model holds the average; after it, the weights that train."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def take(self) -> None:
        """The model holds the average from now on."""
        torch._foreach_copy_(self._weights, self._averages)

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in zip(self._weights, self._averages, strict=True):
            weights_now = weight.clone()
            weight.copy_(average)
            average.copy_(weights_now)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps."""
        return {PREFIX + name: average for name, average in zip(self._names, self._averages, strict=True)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what a checkpoint kept."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(tensors[PREFIX + name])
