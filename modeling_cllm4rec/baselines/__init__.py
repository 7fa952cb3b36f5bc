"""Baselines behind one interface: the models that a language model has to beat.

Each is fitted by `fit_baseline(name, data)` and scores the whole catalogue for any histories, also of users that it was not
fitted on. A name is one of `BASELINES`, several joined by + (`ease+ials`: the sum of their standardized scores), a class of your
own (`package.module:Class`), or a file of ranked lists (`lists:FILE`).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from modeling_cllm4rec.baselines.ensemble import EnsembleRecommender
from modeling_cllm4rec.baselines.registry import BASELINES, Baseline, get_baseline
from modeling_cllm4rec.baselines.tuning import Tuning, tune_settings
from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender

__all__ = [
    "BASELINES",
    "Baseline",
    "Tuning",
    "baseline_settings",
    "check_settings",
    "fit_baseline",
    "get_baseline",
    "members",
    "tune",
]


# A baseline is a file in this folder with a class under `@baseline`: importing the file fills the table.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def members(name: str) -> tuple[str, ...]:
    """Return the baselines that a name joins by +, or the one that it is.

    Raises:
        InputError: one of them does not exist (the nearest names), or is there twice.

    >>> members("ease+ials"), members("ease")
    (('ease', 'ials'), ('ease',))
    """
    parts = (name,) if ":" in name else tuple(name.split("+"))
    for part in parts:
        get_baseline(part)
        if parts.count(part) > 1:
            raise InputError(f"the baseline {name!r} names {part} twice; name each once")
    return parts


def baseline_settings(name: str) -> dict[str, Any]:
    """Return the settings of a baseline and their defaults; of several joined by +, those of each by its name.

    Raises:
        InputError: there is no such baseline (the nearest names).

    >>> baseline_settings("itemknn")
    {'shrink': 20.0, 'neighbours': None, 'fit_on': 'train'}
    """
    if len(parts := members(name)) > 1:
        return {part: baseline_settings(part) for part in parts}
    baseline = get_baseline(name)
    parameters = inspect.signature(baseline.recommender.fit).parameters
    others = ("data", "seed", *baseline.fixed, *baseline.unused)
    return {key: parameters[key].default for key in parameters if key not in others}


def fit_baseline(name: str, data: RecommendationData, *, seed: int = 0, **settings: Any) -> Recommender:
    """Fit a baseline on a data folder.

    Args:
        name: one of `BASELINES`, or several joined by +.
        data: the data folder; only its train split is fitted, except where `fit_on` says otherwise.
        seed: start of all random numbers.
        settings: see `baseline_settings(name)` and the `fit` of the baseline's class; of several baselines a mapping for each.

    Returns:
        What scores histories.

    Raises:
        InputError: there is no such baseline or setting (the nearest names), or a value is not allowed.
        MissingPackageError: it needs a library that is not there (what to install).

    Example:
        >>> from modeling_cllm4rec.baselines import fit_baseline
        >>> fit_baseline("ease", data, regularization=50.0)  # doctest: +SKIP
        >>> fit_baseline("ease+ials", data, ease={"regularization": 50.0})  # doctest: +SKIP
    """
    check_settings(name, settings)
    if len(parts := members(name)) > 1:
        return EnsembleRecommender([fit_baseline(part, data, seed=seed, **settings.get(part, {})) for part in parts])
    baseline = get_baseline(name)
    recommender: Recommender = baseline.recommender.fit(data, seed=seed, **baseline.fixed, **settings)
    return recommender


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that a baseline does not have.

    Raises:
        InputError: naming the nearest ones; or of several baselines the settings of one are no mapping.
    """
    allowed, single = baseline_settings(name), len(members(name)) == 1
    for key, value in settings.items():
        if single and key in (fixed := get_baseline(name).fixed):
            raise InputError(f"{name!r} fixes {key}={fixed[key]!r}; remove {key} from the settings")
        if key not in allowed:
            raise InputError(
                f"the baseline {name!r} has no setting {key!r}; {nearest(key, allowed, 'it has none' if not allowed else '')}"
            )
        if not single:
            if not isinstance(value, Mapping):
                raise InputError(f"the baseline {name!r}: {key} is {value!r}; it must be a mapping of the settings of {key}")
            check_settings(key, value)


def tune(
    name: str,
    data: RecommendationData,
    trials: int = 20,
    seed: int = 0,
    metric: str = "ndcg@10",
    *,
    space: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    max_users: int | None = None,
    progress: bool = True,
) -> Tuning:
    """Choose settings by random search on the validation split, with train histories as inputs.

    Args:
        name: one of `BASELINES`; what joins several is fitted with what was found for each.
        data: the data folder; its test split is never looked at.
        trials: the budget: how often it is fitted and evaluated. The first trial has the default settings.
        seed: start of the random numbers of the search and of each fit.
        metric: what is to be highest, such as `recall@20`; of several joined by + the sum.
        space: setting -> what may be drawn, see `registry.Baseline`; None takes the baseline's own.
        fixed: settings that all trials share, such as `epochs`; they are not drawn.
        max_users: evaluate on a fixed random sample of so many users; None takes all.
        progress: show a bar.

    Returns:
        The best of the drawn settings (of equal ones the first) and all trials.

    Raises:
        InputError: there is no such baseline or setting, or the search space cannot be read.
        MissingPackageError: the baseline needs a library that is not there.
    """
    if len(parts := members(name)) > 1:
        raise InputError(f"settings of {name} are searched for one baseline at a time; call tune for each of {', '.join(parts)}")
    space = get_baseline(name).space if space is None else space
    fixed = fixed or {}
    check_settings(name, {**space, **fixed})
    space = {key: values for key, values in space.items() if key not in fixed}
    defaults = {key: value for key, value in baseline_settings(name).items() if key in space}

    if "progress" in baseline_settings(name):
        fixed = {"progress": False, **fixed}  # one bar is enough

    def fit(settings: dict[str, Any]) -> Recommender:
        return fit_baseline(name, data, seed=seed, **fixed, **settings)

    return tune_settings(
        fit, data, space, defaults, trials=trials, seed=seed, metric=metric, max_users=max_users, title=name, progress=progress
    )
