"""The search for arguments of a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.search import hyperparameter_search

pytest.importorskip("optuna")
MakeFinetune = Callable[..., FinetuneArguments]


def space(trial: Any) -> dict[str, Any]:
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)}


def pretended(seen: list[FinetuneArguments]) -> Callable[[FinetuneArguments], tuple[None, Progress]]:
    """Return a stage that is best at a learning rate of .1."""

    def train(arguments: FinetuneArguments) -> tuple[None, Progress]:
        seen.append(arguments)
        return None, Progress(best=-abs(arguments.learning_rate - 0.1), best_epoch=0, finished=True)

    return train


def test_the_best_trial_is_found_and_an_interrupted_search_goes_on(finetune_arguments: MakeFinetune) -> None:
    arguments = finetune_arguments()
    seen: list[FinetuneArguments] = []
    train = pretended(seen)

    def interrupted(given: FinetuneArguments) -> tuple[None, Progress]:
        if len(seen) == 5:
            raise KeyboardInterrupt
        return train(given)

    with pytest.raises(KeyboardInterrupt):
        hyperparameter_search(interrupted, arguments, space, n_trials=12)
    best = hyperparameter_search(train, arguments, space, n_trials=12)
    assert len(seen) >= 11  # the trial that was interrupted counts as one of the twelve
    rates = [one.learning_rate for one in seen]
    assert best.hyperparameters["learning_rate"] == min(rates, key=lambda rate: abs(rate - 0.1))
    assert best.objective == pytest.approx(-abs(best.hyperparameters["learning_rate"] - 0.1))
    assert len({one.output for one in seen}) == len(seen)
    again = hyperparameter_search(train, arguments, space, n_trials=12)
    assert again == best and [one.learning_rate for one in seen] == rates


def test_it_trains_a_stage(finetune_arguments: MakeFinetune) -> None:
    arguments = finetune_arguments(num_train_epochs=1)
    best = hyperparameter_search(finetune, arguments, space, n_trials=2)
    assert best.run_id in ("0", "1") and best.objective > 0
    assert (arguments.run_folder / f"trial-{best.run_id}" / "config.json").is_file()


def test_bad_input(finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(InputError, match="n_trials is 0; it must be 1 or more"):
        hyperparameter_search(finetune, finetune_arguments(), space, n_trials=0)
    with pytest.raises(InputError, match=r"hp_space draws \['lern'\], which are no arguments of FinetuneArguments"):
        hyperparameter_search(finetune, finetune_arguments(), lambda trial: {"lern": 1}, n_trials=1)
    with pytest.raises(InputError, match="trial 1 has no validation to choose by"):
        hyperparameter_search(lambda given: (None, Progress()), finetune_arguments(), space, n_trials=2)
