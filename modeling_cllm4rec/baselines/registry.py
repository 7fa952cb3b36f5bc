"""The table of baselines: a decorator on each class fills it, and everything else is derived from it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from modeling_cllm4rec.core.errors import InputError, nearest

Class = TypeVar("Class", bound=type)
LISTS = "lists:"
"""Prefix of a name that is a file of ranked lists."""


@dataclass(frozen=True)
class Baseline:
    """A baseline.

    Attributes:
        name: name on the command line and in YAML files.
        recommender: class with a classmethod `fit(data, *, seed, ...)`; what it returns obeys `evaluator.Recommender` or
            `evaluator.Searcher`.
        title: name in tables.
        summary: what it is, in a few words.
        deterministic: whether it draws no random number, so that one seed suffices.
        space: setting -> the values that `tune` draws: `choice` (a list), `uniform` or `log_uniform` (two numbers).
        fixed: settings that make it what its name says.
        unused: settings of its class that change nothing then.
        order: place among the rows of a table; equal ones are ordered by name.
    """

    name: str
    recommender: Any
    title: str
    summary: str
    deterministic: bool = False
    space: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    order: int = 100


BASELINES: dict[str, Baseline] = {}
"""Name -> baseline, in the order of a table's rows."""


def baseline(name: str, **about: Any) -> Callable[[Class], Class]:
    """Register a class as a baseline.

    Args:
        name: name on the command line; letters, digits and hyphens.
        about: further fields of `Baseline`; `title` and `summary` are required.

    Raises:
        InputError: the name is taken.

    Example:
        >>> @baseline("first-item", title="first item", summary="the first item of the catalogue", deterministic=True)
        ... class FirstItem:
        ...     pass
        >>> BASELINES.pop("first-item").title
        'first item'
    """

    def register(recommender: Class) -> Class:
        if name in BASELINES and BASELINES[name].recommender is not recommender:
            raise InputError(f"the name {name!r} of a baseline is taken; choose another")
        BASELINES[name] = Baseline(name, recommender, **about)
        rows = sorted(BASELINES.values(), key=lambda one: (one.order, one.name))
        BASELINES.clear()
        BASELINES.update((row.name, row) for row in rows)
        return recommender

    return register


def get_baseline(name: str) -> Baseline:
    """Return a baseline by its name, a class of your own by `package.module:Class`, or a file of ranked lists by `lists:FILE`.

    Raises:
        InputError: there is none (the nearest names), or the class has no `fit`.
    """
    if name in BASELINES:
        return BASELINES[name]
    if name.startswith(LISTS):
        from modeling_cllm4rec.baselines.ranked_lists import RankedListsRecommender

        return Baseline(name, RankedListsRecommender, name, "ranked lists of a file", True, fixed={"path": name[len(LISTS) :]})
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(f"there is no baseline {name!r}; {nearest(name, BASELINES)}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise InputError(f"{name}: there is no module {module!r}; put its folder on PYTHONPATH") from error
    except AttributeError as error:
        raise InputError(f"{name}: the module {module!r} has no {attribute!r}") from error
    if not callable(getattr(found, "fit", None)):
        raise InputError(f"{name}: {attribute} has no fit(data, *, seed, ...); write it as the baselines of this package do")
    return Baseline(name, found, attribute, f"class {name}")
