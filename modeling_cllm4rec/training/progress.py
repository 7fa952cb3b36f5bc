"""The progress of a run, saved whole in its checkpoints; its history is saved in the record of the finished stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class Progress:
    """Progress of a run.

    Attributes:
        epoch: epochs done.
        step_in_epoch: optimizer steps done in the current epoch.
        step: optimizer steps done in all.
        best: best value of `selection` in a validation, higher is better; None before the first.
        best_epoch: epoch of the best value, from 0; -1 before the first.
        epochs_without_gain: validations since the best one.
        finished: whether the run has ended.
        seconds: training time so far.
        history: one entry per epoch: `epoch`, `step`, `seconds`, `train/KIND_nll`, and the metrics of the validation.
        epoch_nll: kind of step -> sum of the nll of the steps, and number of steps, in the current epoch.
        last_nll: nll of the last step.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int = -1
    epochs_without_gain: int = 0
    finished: bool = False
    seconds: float = 0.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    epoch_nll: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    last_nll: float = 0.0

    def count_nll(self, kind: str, nll: float) -> None:
        """Add the nll of a step, in nats per main token (or held-out list)."""
        total, steps = self.epoch_nll.get(kind, [0.0, 0])
        self.epoch_nll[kind] = [total + nll, steps + 1]
        self.last_nll = nll

    def take_epoch_nll(self) -> dict[str, float]:
        """Return the mean nll of the epoch's steps of each kind, and reset the sums.

        >>> progress = Progress()
        >>> for nll in (2.0, 3.0):
        ...     progress.count_nll("content", nll)
        >>> progress.take_epoch_nll(), progress.epoch_nll
        ({'train/content_nll': 2.5}, {})
        """
        means = {f"train/{kind}_nll": total / steps for kind, (total, steps) in self.epoch_nll.items()}
        self.epoch_nll = {}
        return means

    def end_epoch(self, metrics: Mapping[str, float], patience: int) -> None:
        """Record an epoch, and end the run if `patience` validations in a row were no better than the best one.

        Args:
            metrics: of the validation; `selection`, higher is better, may be missing.
            patience: 0 never ends the run.

        Example:
            >>> progress = Progress(step=3)
            >>> for value in (0.5, 0.4):
            ...     progress.end_epoch({"selection": value}, patience=1)
            >>> progress.best_epoch, progress.epoch, progress.finished
            (0, 2, True)
        """
        where = {"epoch": self.epoch, "step": self.step, "seconds": self.seconds}
        self.history.append({**where, **self.take_epoch_nll(), **metrics})
        selection = metrics.get("selection")
        if selection is not None and (self.best is None or selection > self.best):
            self.best, self.best_epoch, self.epochs_without_gain = selection, self.epoch, 0
        elif selection is not None:
            self.epochs_without_gain += 1
        self.finished = bool(patience) and self.epochs_without_gain >= patience
        self.epoch += 1
        self.step_in_epoch = 0


__all__ = ["Progress"]
