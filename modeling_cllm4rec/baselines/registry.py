"""The table of baselines: the decorator `@baseline` on a class adds a row, and everything else is derived from the row."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.core.optional_packages import require

Class = TypeVar("Class", bound=type)
LISTS = "lists:"
"""Prefix of a name that is a file of ranked lists."""


@dataclass(frozen=True)
class Baseline:
    """A row of the table.

    Attributes:
        name: name on the command line and in YAML files.
        recommender: class with a classmethod `fit(data, *, seed, ...)` that returns an `evaluator.Recommender` or an
            `evaluator.Searcher`.
        title: name in tables.
        summary: description in a few words.
        deterministic: whether no random number is drawn, so that one seed suffices.
        space: setting -> the values that `tune` draws: `choice` (a list), `uniform` or `log_uniform` (two numbers).
        fixed: settings that are fixed under this name.
        defaults: settings with another default under this name than in `fit`.
        unused: settings of the class without an effect under this name.
        packages: import names of the packages that `fit` needs beyond the dependencies of this package.
        extra: extra of this package that brings them; None if none does.
        source: file whose content determines the scores, of a class or a file of the user's own.
        order: place among the rows; rows of the same order are sorted by name.
    """

    name: str
    recommender: Any
    title: str
    summary: str
    deterministic: bool = False
    space: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    extra: str | None = None
    source: str | None = None
    order: int = 100

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of `fit`."""
        return inspect.signature(self.recommender.fit).parameters

    @property
    def takes_any_setting(self) -> bool:
        """Whether `fit` has `**settings`."""
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in self.parameters.values())

    def check_packages(self) -> None:
        """Check that the packages of this baseline are installed.

        Raises:
            MissingPackageError: one is not; the message has the command that installs it.
        """
        for package in self.packages:
            require(package, self.extra, f"the baseline {self.name!r}", "choose another baseline")


BASELINES: dict[str, Baseline] = {}
"""Name -> baseline, in the order of the rows of a report."""


def baseline(name: str, **about: Any) -> Callable[[Class], Class]:
    """Register a class as a baseline.

    Args:
        name: name on the command line, of letters, digits and hyphens.
        about: further fields of `Baseline`; `title` and `summary` are required.

    Raises:
        InputError: the name is taken or has other characters, or a field of `Baseline` is missing or unknown.

    Example:
        >>> @baseline("first-item", title="first item", summary="the first item of the catalogue", deterministic=True)
        ... class FirstItem:
        ...     pass
        >>> BASELINES.pop("first-item").title
        'first item'
    """
    if not name.replace("-", "").isalnum():
        raise InputError(f"the name of a baseline is {name!r}; it must be of letters, digits and hyphens")

    def register(recommender: Class) -> Class:
        # The same class under the same name is a module that was imported twice.
        if name in BASELINES and BASELINES[name].recommender.__qualname__ != recommender.__qualname__:
            raise InputError(f"the name {name!r} of a baseline is taken; choose another")
        try:
            BASELINES[name] = Baseline(name, recommender, **about)
        except TypeError as error:
            raise InputError(f"@baseline({name!r}, ...): {error}; see the fields of baselines.registry.Baseline") from error
        rows = sorted(BASELINES.values(), key=lambda row: (row.order, row.name))
        BASELINES.clear()
        BASELINES.update((row.name, row) for row in rows)
        return recommender

    return register


def get_baseline(name: str) -> Baseline:
    """Return a baseline by its name, a class of your own by `package.module:Class`, or a file of ranked lists by `lists:FILE`.

    A class of your own that has `@baseline` has the title, the search space and the other fields of its row. Without it, it has
    no search space, and is deterministic if its `fit` takes no `seed`.

    Raises:
        InputError: there is no such baseline (the nearest names are listed), or the class has no usable `fit`.
    """
    if name in BASELINES:
        return BASELINES[name]
    if name.startswith(LISTS):
        from modeling_cllm4rec.baselines.ranked_lists import RankedListsRecommender

        path = name.removeprefix(LISTS)
        if not path:
            raise InputError(f"{name!r} names no file; write lists:FILE, a table with user_id, item_id and rank or score")
        summary = "ranked lists of a file"
        return Baseline(name, RankedListsRecommender, name, summary, True, fixed={"path": path}, source=path)
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(f"there is no baseline {name!r}; {nearest(name, BASELINES)} (or package.module:Class, lists:FILE)")
    module = _import(name, module_name)
    if not hasattr(module, attribute):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise InputError(f"{name}: the module {module_name!r} has no {attribute!r}; {nearest(attribute, classes)}")
    recommender = getattr(module, attribute)
    _check_fit(name, recommender)
    row = next((row for row in BASELINES.values() if row.recommender is recommender), None)
    if row is None:
        row = Baseline(name, recommender, name, f"class {attribute}")
        row = dataclasses.replace(row, deterministic="seed" not in row.parameters and not row.takes_any_setting)
    return dataclasses.replace(row, name=name, source=getattr(module, "__file__", None))


def _import(name: str, module: str) -> ModuleType:
    """Import the module of a class of the user's own.

    Raises:
        InputError: there is no such module. An error inside of it is not caught.
    """
    if not all(part.isidentifier() for part in module.split(".")):
        raise InputError(f"{name}: {module!r} is no name of a module; write package.module:Class, or lists:FILE")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, and imports one that does not
        raise InputError(
            f"{name}: the module {module!r} cannot be imported from here, as there is no {error.name!r}; "
            "add the folder that holds it to PYTHONPATH"
        ) from error


def _check_fit(name: str, recommender: Any) -> None:
    """Check that `fit` can be called on a class of the user's own.

    Raises:
        InputError: there is no `fit`, or it is a method of instances.
    """
    fit = getattr(recommender, "fit", None)
    if not callable(fit):
        raise InputError(f"{name} has no fit; it must have a classmethod fit(data, *, seed, ...) that returns a recommender")
    if isinstance(recommender, type) and inspect.isfunction(inspect.getattr_static(recommender, "fit")):
        raise InputError(f"{name}: fit is a method of instances; it must be a classmethod fit(data, *, seed, ...)")
