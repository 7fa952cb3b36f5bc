"""Baselines behind one interface: what a language model has to beat.

Each is fitted by `fit_baseline(name, data)` and scores the whole catalogue for any histories, also of people whom it never
met. Their modules are imported when they are asked for, so that a library that one of them needs is needed by that one only.
Names joined by + (`ease+ials`) are the sum of their standardized scores.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

from modeling_cllm4rec.baselines.ensemble import EnsembleRecommender
from modeling_cllm4rec.baselines.tuning import Tuning, search_spaces, tune_settings
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender

__all__ = ["BASELINES", "Baseline", "Tuning", "baseline_settings", "check_settings", "fit_baseline", "members", "tune"]


class Baseline(NamedTuple):
    """Where a baseline is.

    Attributes:
        module: in this package.
        recommender: name of its class.
        summary: what it is, in a few words.
        fixed: settings that make it what its name says.
        unused: settings of its class that change nothing then.
    """

    module: str
    recommender: str
    summary: str
    fixed: Mapping[str, Any] = MappingProxyType({})
    unused: tuple[str, ...] = ()

    def load(self) -> Any:
        """Its class, with `fit(data, *, seed, ...)`."""
        return getattr(import_module(f"{__name__}.{self.module}"), self.recommender)


BASELINES: dict[str, Baseline] = {
    "random": Baseline("popularity", "RandomRecommender", "random scores"),
    "popularity": Baseline("popularity", "PopularityRecommender", "number of users"),
    "itemknn": Baseline("itemknn", "ItemKNNRecommender", "nearest neighbours of items by cosine"),
    "ease": Baseline("ease", "EASERecommender", "linear model of items from items"),
    "ease-recency": Baseline("ease", "EASERecommender", "EASE, late items of a history count more", {"recency": 0.5}),
    "ials": Baseline("ials", "IALSRecommender", "matrix factorization by weighted least squares"),
    "multvae": Baseline("multvae", "MultVAERecommender", "variational autoencoder, multinomial likelihood"),
    "sasrec": Baseline(
        "sasrec",
        "SASRecRecommender",
        "causal transformer, softmax over all items",
        {"loss": "full"},
        ("num_samples", "sampling_power"),
    ),
    "sasrec-sampled": Baseline(
        "sasrec", "SASRecRecommender", "causal transformer, sampled softmax", {"loss": "sampled"}, ("chunk_size",)
    ),
    "textknn": Baseline("textknn", "TextKNNRecommender", "nearest neighbours of items by their texts"),
    "tallrec": Baseline("tallrec", "TALLRecRecommender", "language model on titles alone, Yes or No for each candidate"),
}
"""Name -> where it is."""


def members(name: str) -> tuple[str, ...]:
    """The baselines that a name joins by +, or the one that it is.

    Raises:
        InputError: one of them does not exist (the nearest names), or is there twice.

    >>> members("ease+ials"), members("ease")
    (('ease', 'ials'), ('ease',))
    """
    parts = tuple(name.split("+"))
    for part in parts:
        if part not in BASELINES:
            raise InputError(f"there is no baseline {part!r}{_nearest(part, BASELINES)}; allowed are {', '.join(BASELINES)}")
        if parts.count(part) > 1:
            raise InputError(f"the baseline {name!r} names {part} twice; name each once")
    return parts


def baseline_settings(name: str) -> dict[str, Any]:
    """The settings of a baseline and their defaults; of several joined by +, those of each by its name.

    Raises:
        InputError: there is no such baseline (the nearest names).

    >>> baseline_settings("itemknn")
    {'shrink': 20.0, 'neighbours': None, 'fit_on': 'train'}
    """
    if len(parts := members(name)) > 1:
        return {part: baseline_settings(part) for part in parts}
    baseline = BASELINES[name]
    parameters = inspect.signature(baseline.load().fit).parameters
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
    recommender: Recommender = BASELINES[name].load().fit(data, seed=seed, **BASELINES[name].fixed, **settings)
    return recommender


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that a baseline does not have.

    Raises:
        InputError: naming the nearest ones; or of several baselines the settings of one are no mapping.
    """
    allowed, single = baseline_settings(name), name in BASELINES
    for key, value in settings.items():
        if single and key in BASELINES[name].fixed:
            raise InputError(f"{name} is what it is by {key}={BASELINES[name].fixed[key]!r}; leave {key} away")
        if key not in allowed:
            raise InputError(
                f"the baseline {name!r} has no setting {key!r}{_nearest(key, allowed)}; "
                f"allowed are {', '.join(allowed) or 'none'}"
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
        space: setting -> what may be drawn, see `search_spaces.yaml`; None takes the one that stands there.
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
    space = search_spaces()[name] if space is None else space
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


def _nearest(name: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(allowed))
    return f"; did you mean {' or '.join(near)}?" if near else ""
