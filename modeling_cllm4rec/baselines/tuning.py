"""Random search over settings with a fixed budget, chosen on the validation split."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from modeling_cllm4rec.baselines.validation import validate
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender, Searcher

KINDS = ("choice", "uniform", "log_uniform")
DRAWS = 100
"""Largest number of draws for one trial until its settings are new."""


class Tuning(NamedTuple):
    """Result of a search.

    Attributes:
        settings: the best settings, for `fit_baseline(name, data, **settings)`.
        trials: one row per trial: `trial` from 1, `settings` (JSON), the metric on validation, `seconds` of fit and
            evaluation together, `chosen`.
    """

    settings: dict[str, Any]
    trials: pa.Table


def tune_settings(
    fit: Callable[[dict[str, Any]], Recommender | Searcher],
    data: RecommendationData,
    space: Mapping[str, Any],
    defaults: dict[str, Any],
    *,
    trials: int,
    seed: int,
    metric: str,
    max_users: int | None = None,
    title: str = "",
    progress: bool = True,
) -> Tuning:
    """Fit with the defaults and with random settings, and return the best settings on validation.

    No settings are tried twice. The search ends early if the space has no further settings.

    Args:
        fit: settings -> fitted recommender.
        data: the data folder; train histories are the inputs, validation items are the targets.
        space: setting -> `{"choice": [...]}`, `{"uniform": [low, high]}` or `{"log_uniform": [low, high]}`; between
            integers, integers are drawn.
        defaults: settings of the first trial.
        trials: the budget, the number of fits and evaluations.
        seed: start of the random numbers.
        metric: validation metric to maximize; several joined by + are added.
        max_users: size of a fixed random sample of users to evaluate; None evaluates all users.
        title: name in the progress bar.
        progress: show a progress bar.

    Raises:
        InputError: `trials` is below 1, or the space cannot be read.
    """
    if trials < 1:
        raise InputError(f"trials is {trials}; it must be 1 or more")
    for name, values in space.items():
        _check_values(name, values)
    generator = np.random.default_rng(seed)
    tried: dict[str, float] = {}  # settings as JSON -> metric
    seconds: list[float] = []
    settings: dict[str, Any] | None = defaults
    with tqdm(total=trials, desc=f"tuning {title}".strip(), unit="trial", disable=not progress) as bar:
        while settings is not None:
            start = time.perf_counter()
            tried[json.dumps(settings)] = validate(fit(settings), data, metric, max_users)
            seconds.append(time.perf_counter() - start)
            bar.update()
            bar.set_postfix({metric: max(tried.values())})
            settings = _draw_new(space, generator, tried) if len(tried) < trials else None
    return tuning_of(tried, seconds, metric)


def tuning_of(tried: Mapping[str, float], seconds: Sequence[float], metric: str) -> Tuning:
    """Return the best settings, of equal ones the first, and the table of all trials.

    Args:
        tried: settings as JSON -> metric on validation, in the order of the trials.
        seconds: time of each trial.
        metric: name of the metric.
    """
    best = max(tried, key=lambda key: tried[key])
    table = pa.table(
        {
            "trial": range(1, len(tried) + 1),
            "settings": list(tried),
            metric: list(tried.values()),
            "seconds": seconds,
            "chosen": [key == best for key in tried],
        }
    )
    return Tuning(json.loads(best), table)


def draw(space: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """Draw settings from a search space.

    >>> draw({"shrink": {"log_uniform": [1.0, 1.0]}, "neighbours": {"choice": [50]}}, np.random.default_rng(0))
    {'shrink': 1.0, 'neighbours': 50}
    """
    return {name: _draw_value(values, generator) for name, values in space.items()}


def _draw_value(values: Mapping[str, list[Any]], generator: np.random.Generator) -> Any:
    ((kind, limits),) = values.items()
    if kind == "choice":
        return limits[generator.integers(len(limits))]
    low, high = limits
    if kind == "uniform":
        drawn = generator.uniform(low, high)
    else:
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
    if isinstance(low, int) and isinstance(high, int):
        return round(drawn)
    return float(f"{drawn:.3g}")  # three digits can be typed into a YAML file


def _draw_new(space: Mapping[str, Any], generator: np.random.Generator, tried: Mapping[str, float]) -> dict[str, Any] | None:
    """Draw settings that were not tried yet; None if `DRAWS` draws give no new ones."""
    for _ in range(DRAWS):
        settings = draw(space, generator)
        if json.dumps(settings) not in tried:
            return settings
    return None


def _check_values(name: str, values: Any) -> None:
    kinds = list(values) if isinstance(values, Mapping) else []
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise InputError(f"search space of {name} is {values!r}; it must be one of {', '.join(KINDS)} with a list of values")
    limits = values[kinds[0]]
    if not isinstance(limits, list) or not limits:
        raise InputError(f"search space of {name}: {kinds[0]} is {limits!r}; it must be a non-empty list")
    if kinds[0] == "choice":
        return
    numbers = [value for value in limits if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(limits) != 2 or len(numbers) != 2 or not limits[0] <= limits[1]:
        raise InputError(f"search space of {name}: {kinds[0]} is {limits!r}; it must be [lowest, highest], two numbers")
    if kinds[0] == "log_uniform" and limits[0] <= 0:
        raise InputError(f"search space of {name}: log_uniform is {limits!r}; both numbers must be above 0")
