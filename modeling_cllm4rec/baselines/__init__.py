"""Baselines behind one interface.

`fit_baseline(name, data)` returns a recommender for any histories, also of users without training interactions. A name is one of
`BASELINES`, several joined by + (`ease+ials`, the weighted sum of their standardized scores), a class of your own
(`package.module:Class`), or a file of ranked lists (`lists:FILE`).

A new baseline is a file in this folder with a class under `@baseline`, see `registry.py`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from modeling_cllm4rec.baselines.ensemble import EnsembleRecommender, tune_weights
from modeling_cllm4rec.baselines.registry import BASELINES, LISTS, Baseline, get_baseline
from modeling_cllm4rec.baselines.tuning import Tuning, tune_settings
from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender, Searcher

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

WEIGHTS = "weights"
"""The setting of a sum that maps its baselines to their weights, 1 where none is named."""
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


# Importing a file of this folder fills the table, so a new baseline is registered nowhere else.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def members(name: str) -> tuple[str, ...]:
    """Return the baselines that a name joins by +, or the name itself if it is one baseline.

    Raises:
        InputError: there is no such baseline (the nearest names are listed), or one is named twice.

    >>> members("ease+ials"), members("ease")
    (('ease', 'ials'), ('ease',))
    """
    parts = (name,) if name.startswith(LISTS) else tuple(name.split("+"))  # a path may have a +
    for part in parts:
        get_baseline(part)
        if parts.count(part) > 1:
            raise InputError(f"the baseline {name!r} names {part} twice; name each once")
    return parts


def baseline_settings(name: str) -> dict[str, Any]:
    """Return the settings of a baseline and their defaults; of several joined by +, those of each, and their `weights`.

    Raises:
        InputError: there is no such baseline (the nearest names are listed).

    >>> baseline_settings("itemknn")
    {'shrink': 20.0, 'neighbours': None, 'fit_on': 'train'}
    """
    if len(parts := members(name)) > 1:
        return {**{part: baseline_settings(part) for part in parts}, WEIGHTS: dict.fromkeys(parts, 1.0)}
    baseline = get_baseline(name)
    others = ("seed", *baseline.fixed, *baseline.unused)
    first, *rest = baseline.parameters.values()  # the first one is the data
    settings = {one.name: one for one in rest if one.name not in others and one.kind not in VARIADIC}
    required = [key for key, parameter in settings.items() if parameter.default is parameter.empty]
    if required:
        raise InputError(f"{name}: {', '.join(required)} of fit has no default; a setting of a baseline needs one")
    return {key: baseline.defaults.get(key, parameter.default) for key, parameter in settings.items()}


def fit_baseline(name: str, data: RecommendationData, *, seed: int = 0, **settings: Any) -> Recommender | Searcher:
    """Fit a baseline on a data folder.

    Args:
        name: one of `BASELINES`, several joined by +, `package.module:Class` or `lists:FILE`.
        data: the data folder; only its train split is fitted unless the setting `fit_on` names more.
        seed: start of all random numbers.
        settings: see `baseline_settings(name)` and the `fit` of the baseline's class; of several baselines a mapping for each,
            and `weights`, a mapping of baselines to weights of 0 or more.

    Returns:
        An `evaluator.Recommender`; of a file of ranked lists and of some classes of your own an `evaluator.Searcher`.

    Raises:
        InputError: there is no such baseline or setting (the nearest names are listed), a value is not allowed, or the `fit` of
            a class of your own does not return a recommender.
        MissingPackageError: the baseline needs a package that is not installed.

    Example:
        >>> from modeling_cllm4rec.baselines import fit_baseline
        >>> fit_baseline("ease", data, regularization=50.0)  # doctest: +SKIP
        >>> fit_baseline("ease+ials", data, ease={"regularization": 50.0}, weights={"ials": 0.6})  # doctest: +SKIP
        >>> fit_baseline("lists:results/other.parquet", data)  # doctest: +SKIP
    """
    check_settings(name, settings)
    if len(parts := members(name)) > 1:
        weights = settings.get(WEIGHTS, {})
        return EnsembleRecommender(
            [fit_baseline(part, data, seed=seed, **settings.get(part, {})) for part in parts],
            [weights.get(part, 1.0) for part in parts],
        )
    baseline = get_baseline(name)
    baseline.check_packages()
    seeds = {"seed": seed} if "seed" in baseline.parameters or baseline.takes_any_setting else {}
    recommender: Recommender | Searcher = baseline.recommender.fit(
        data, **seeds, **baseline.fixed, **{**baseline.defaults, **settings}
    )
    _check_recommender(name, recommender)
    return recommender


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that a baseline does not have.

    Raises:
        InputError: there is no such setting (the nearest names are listed), or of several baselines the settings of one are no
            mapping.
    """
    known = baseline_settings(name)
    row = get_baseline(name) if len(members(name)) == 1 else None
    for key, value in settings.items():
        if row is not None and key in row.fixed:
            raise InputError(f"{name!r} fixes {key}={row.fixed[key]!r}; remove {key} from the settings")
        if key not in known and not (row is not None and row.takes_any_setting):
            raise InputError(
                f"the baseline {name!r} has no setting {key!r}; {nearest(key, known, 'it has none' if not known else '')}"
            )
        if row is None:
            if not isinstance(value, Mapping):
                what = "the baselines to their weights" if key == WEIGHTS else f"the settings of {key}"
                raise InputError(f"the baseline {name!r}: {key} is {value!r}; it must be a mapping of {what}")
            if key == WEIGHTS:
                _check_weights(name, value)
            else:
                check_settings(key, value)


def _check_weights(name: str, weights: Mapping[str, Any]) -> None:
    for part, weight in weights.items():
        if part not in members(name):
            raise InputError(f"weights of {name!r} names {part!r}; {nearest(part, members(name))}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InputError(f"weights of {name!r}: {part} is {weight!r}; it must be a number, 0 or more")


def _check_recommender(name: str, recommender: Any) -> None:
    """Check that an object obeys `evaluator.Recommender` or `evaluator.Searcher`.

    Raises:
        InputError: it does not; what it lacks is named.
    """
    wanted = ("num_items", "score_histories") if not hasattr(recommender, "rank_histories") else ("num_items", "decoding")
    missing = [attribute for attribute in wanted if not hasattr(recommender, attribute)]
    if missing:
        raise InputError(
            f"{name}: fit returned a {type(recommender).__name__} without {' and '.join(missing)}; it must return an object like "
            "evaluation.evaluator.Recommender (num_items, score_histories) or Searcher (num_items, decoding, rank_histories)"
        )


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

    Of several baselines joined by + the weights are chosen, see `ensemble.tune_weights`, and each is fitted once. Choose the
    settings of each before, and name them in `fixed`.

    Args:
        name: a baseline, or several joined by +.
        data: the data folder; its test split is not used.
        trials: the budget, the number of fits and evaluations. The first trial has the default settings.
        seed: start of the random numbers of the search and of each fit.
        metric: metric to maximize, such as `recall@20`; several joined by + are added.
        space: setting -> values to draw, see `registry.Baseline`; None takes the baseline's own space.
        fixed: settings that all trials share, such as `epochs`; they are not drawn. Of several baselines a mapping for each.
        max_users: size of a fixed random sample of users to evaluate; None evaluates all users.
        progress: show a progress bar.

    Returns:
        The best settings (of equal ones the first) and all trials.

    Raises:
        InputError: there is no such baseline or setting, or the search space cannot be read.
        MissingPackageError: the baseline needs a package that is not installed.
    """
    if len(parts := members(name)) > 1:
        if space is not None or WEIGHTS in (fixed or {}):
            raise InputError(
                f"the search of the sum {name} is for its weights; tune the settings of each of {', '.join(parts)} alone, and "
                "name them in fixed"
            )
        check_settings(name, fixed or {})
        fitted = {part: fit_baseline(part, data, seed=seed, **(fixed or {}).get(part, {})) for part in parts}
        return tune_weights(fitted, data, trials=trials, metric=metric, max_users=max_users, progress=progress)
    space = get_baseline(name).space if space is None else space
    fixed = fixed or {}
    check_settings(name, {**space, **fixed})
    space = {key: values for key, values in space.items() if key not in fixed}
    defaults = {key: value for key, value in baseline_settings(name).items() if key in space}

    if "progress" in baseline_settings(name):
        fixed = {"progress": False, **fixed}  # the bar of the trials suffices

    def fit(settings: dict[str, Any]) -> Recommender | Searcher:
        return fit_baseline(name, data, seed=seed, **fixed, **settings)

    return tune_settings(
        fit, data, space, defaults, trials=trials, seed=seed, metric=metric, max_users=max_users, title=name, progress=progress
    )
