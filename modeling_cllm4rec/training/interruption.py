"""Signals that end a run: the step that runs is finished and saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TrainerArguments

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""A scheduler's end of the job, Ctrl-C, and Slurm's warning some time before the end (`--signal=B:USR1@120`)."""


class RunInterrupted(KeyboardInterrupt):
    """A run that a signal has ended, after its last step was saved.

    Args:
        number: of the signal.
        stage: its name.
        step: the last one.
        unit: what the stage counts as steps.

    Attributes:
        exit_code: 128 + the number of the signal, as shells report it: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, number: int, stage: str, step: int, unit: str = "step") -> None:
        self._made_of = (number, stage, step, unit)
        self.exit_code = 128 + number
        super().__init__(
            f"{stage} was stopped by {signal.Signals(number).name} after {unit} {step}, which is saved; go on with resume=True"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy it between processes by its parts, not by its message alone."""
        return type(self), self._made_of


class InterruptionCallback(TrainerCallback):
    """Note the signals that arrive while a run trains; the handlers of before are back after it.

    A second signal of the same kind has its usual effect at once, for a step that takes too long.

    Attributes:
        received: number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the signals over; only the main thread of a process may."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_end(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give the signals back."""
        self.give_back()

    def give_back(self) -> None:
        """Restore the handlers of before; also after an error, which ends a run without `on_train_end`."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        handler = self._before.pop(number, None)
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


__all__ = ["InterruptionCallback", "RunInterrupted"]
