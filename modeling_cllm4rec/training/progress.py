"""Where a run stands: all of it is in its checkpoints, and its history in the record of the finished stage."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs done.
        step_in_epoch: optimizer steps done in the epoch that runs.
        step: optimizer steps done in all.
        best: best value of the validation that selects, higher is better; None before there is one.
        best_epoch: its epoch, from 0; -1 before there is one.
        epochs_without_gain: validations since then.
        finished: whether the run is at its end.
        seconds: time so far.
        history: an entry for each epoch: `epoch`, `step`, `seconds`, `train/KIND_nll`, and what the validation measured.
        epoch_nll: kind of step -> sum of the steps' nll and number of steps in the epoch that runs.
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

    def count_nll(self, kind: str, nll: float) -> None:
        """Count a step: its nll in nats per main token (or held-out list)."""
        total, steps = self.epoch_nll.get(kind, [0.0, 0])
        self.epoch_nll[kind] = [total + nll, steps + 1]

    def take_epoch_nll(self) -> dict[str, float]:
        """The mean nll of the epoch's steps by their kind; counting begins anew.

        >>> progress = Progress()
        >>> for nll in (2.0, 3.0):
        ...     progress.count_nll("content", nll)
        >>> progress.take_epoch_nll(), progress.epoch_nll
        ({'train/content_nll': 2.5}, {})
        """
        means = {f"train/{kind}_nll": total / steps for kind, (total, steps) in self.epoch_nll.items()}
        self.epoch_nll = {}
        return means


__all__ = ["Progress"]
