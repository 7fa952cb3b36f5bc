"""Callbacks of the trainer: the epochs of a stage, and the progress bar with the time that is left."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as TrainerArguments
from transformers.trainer_utils import IntervalStrategy

from modeling_cllm4rec.training.estimates import Pace, Stopwatch

if TYPE_CHECKING:
    from modeling_cllm4rec.training.trainer import RecommenderTrainer

logger = logging.getLogger(__name__)


class EpochCallback(TrainerCallback):
    """Count steps and epochs of a stage, which differ in length, update the moving average, and end epochs.

    An epoch ends with a validation and a checkpoint.
    """

    def __init__(self, trainer: RecommenderTrainer) -> None:
        self.trainer = trainer
        self._begun = self._before = 0.0

    def on_train_begin(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin to count seconds."""
        self._begun, self._before = time.perf_counter(), self.trainer.progress.seconds

    def on_pre_optimizer_step(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Bring the average of the rows that are about to move up to date."""
        if self.trainer.average is not None:
            self.trainer.average.before_step()

    def on_step_end(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count a step; at the end of an epoch ask for a validation, a checkpoint, and the losses in the log."""
        trainer, progress = self.trainer, self.trainer.progress
        kind, (nll, stop, save) = trainer.part.kind, trainer.end_of_step()
        progress.count_nll(kind, nll)
        total, steps = trainer.logged_nll.get(kind, (0.0, 0))
        trainer.logged_nll[kind] = (total + nll, steps + 1)
        progress.step += 1
        progress.step_in_epoch += 1
        if trainer.average is not None:
            trainer.average.update(progress.step)
        self._count_seconds()
        planned = trainer.plan.steps_in_epoch[progress.epoch]
        state.epoch = progress.epoch + progress.step_in_epoch / planned
        if progress.step_in_epoch == planned:
            control.should_evaluate = control.should_save = True
            control.should_log = args.logging_strategy != IntervalStrategy.NO
        control.should_save |= save
        if stop or progress.step == trainer.stage.arguments.stop_after_steps:
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the seconds of the validation."""
        self._count_seconds()

    def _count_seconds(self) -> None:
        self.trainer.progress.seconds = self._before + time.perf_counter() - self._begun


class StepBarCallback(TrainerCallback):
    """Show a bar of the steps, and log the time that the rest will take, measured on the steps so far."""

    def __init__(self, trainer: RecommenderTrainer) -> None:
        self.trainer = trainer
        self._bar: tqdm | None = None
        self._pace: Pace | None = None
        self._watch = Stopwatch()

    def on_train_begin(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar on the main process."""
        trainer, progress = self.trainer, self.trainer.progress
        if not state.is_world_process_zero:
            return
        self._pace = Pace(trainer.plan.documents, trainer.plan.documents_until(progress.epoch, progress.step_in_epoch))
        name = trainer.stage.name
        self._bar = tqdm(total=trainer.plan.total, initial=progress.step, desc=name, unit="step", mininterval=2.0)
        self._watch = Stopwatch()

    def on_step_end(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._bar is None or self._pace is None:
            return
        trainer, progress, part = self.trainer, self.trainer.progress, self.trainer.part
        self._pace.count(part.kind, part.step_documents, self._watch.lap())
        if self._pace.is_new():
            logger.info("%s, without validation: %s", trainer.stage.name, self._pace.left())
        where = f"epoch {progress.epoch + 1}/{trainer.stage.num_epochs}"
        self._bar.set_postfix_str(f"{where} {part.kind} nll {progress.last_nll:.3f}", refresh=False)
        self._bar.update()

    def on_evaluate(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the time of the validation out of the pace."""
        self._watch = Stopwatch()

    on_save = on_evaluate

    def on_train_end(self, args: TrainerArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
