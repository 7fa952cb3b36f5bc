"""Search for the arguments of a training stage: `Trainer.hyperparameter_search` for stages, with Optuna."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers.trainer_utils import BestRun

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.progress import Progress

logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments", bound=TrainingArguments)
STUDY_FILE = "trials.log"
"""Record of the trials, in Optuna's format of a journal: JSON lines."""


def hyperparameter_search(
    train: Callable[[Arguments], tuple[Any, Progress]],
    arguments: Arguments,
    hp_space: Callable[[Any], dict[str, Any]],
    *,
    n_trials: int = 20,
    seed: int = 0,
) -> BestRun:
    """Train a stage with drawn arguments, and return the ones whose best epoch is best on validation.

    The same call goes on where an earlier one ended: trials that are finished count, and the one that was interrupted is drawn
    again. Test interactions are never read.

    Args:
        train: a stage, such as `finetune`.
        arguments: those that all trials share; trial n writes to OUTPUT/trial-n.
        hp_space: draws arguments from an `optuna.Trial`, as for `Trainer.hyperparameter_search`.
        n_trials: trials in all.
        seed: of the draws; the training has `arguments.seed`.

    Returns:
        The number of the best trial, its value of `selection` (higher is better), and its drawn arguments.

    Raises:
        MissingPackageError: optuna is not installed.
        InputError: `n_trials` is below 1, `hp_space` draws something else than arguments, or a trial has no validation.

    Example:
        >>> arguments = FinetuneArguments(data="data", output="runs/search", start="runs/mine/pretrained")  # doctest: +SKIP
        >>> space = lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}
        >>> hyperparameter_search(finetune, arguments, space, n_trials=10).hyperparameters  # doctest: +SKIP
    """
    if n_trials < 1:
        raise InputError(f"n_trials is {n_trials}; it must be 1 or more")
    require("optuna", "search", "hyperparameter_search")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    journal = str(folder / STUDY_FILE)
    storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
    sampler = optuna.samplers.TPESampler(seed=seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="search", storage=storage, sampler=sampler, direction="maximize", load_if_exists=True)

    def objective(trial: Any) -> float:
        drawn = hp_space(trial)
        unknown = set(drawn) - {one.name for one in dataclasses.fields(arguments)}
        if unknown:
            raise InputError(f"hp_space draws {sorted(unknown)}, which are no arguments of {type(arguments).__name__}")
        changed = dataclasses.replace(
            arguments, **drawn, output=str(folder / f"trial-{trial.number}"), overwrite=True, resume=False
        )
        _, progress = train(changed)
        if progress.best is None:
            raise InputError(
                f"trial {trial.number} has no validation to choose by; prepare the data with validation interactions"
            )
        logger.info("trial %d: %.4f with %s", trial.number, progress.best, drawn)
        return progress.best

    done = sum(trial.state.is_finished() for trial in study.trials)
    study.optimize(objective, n_trials=max(n_trials - done, 0))
    best = study.best_trial
    assert best.value is not None
    return BestRun(str(best.number), best.value, dict(best.params))


__all__ = ["hyperparameter_search"]
