"""The YAML file of a benchmark: settings of baselines, and recipes of systems."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from modeling_cllm4rec.baselines import BASELINES, check_settings
from modeling_cllm4rec.benchmark import budgets
from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.systems import SYSTEMS, Stage, resolve, system_of_recipe
from modeling_cllm4rec.training.arguments import TrainingArguments, read_yaml, shared_by, stage_settings

SET_BY_JOBS = ("data", "output", "seed", "resume", "overwrite", "stop_after_steps", "stop_after_epochs")
"""Arguments that the benchmark sets for every job; `set_by_jobs` adds those that name the folder of the previous stage."""
EPOCHS = ("num_train_epochs", "warmup_epochs")

Recipe = dict[str, dict[str, Any]]
"""Stage -> its settings."""


class Recipes(NamedTuple):
    """Content of the YAML file of a benchmark.

    Attributes:
        baselines: baseline -> settings.
        systems: name of a recipe -> the recipe.
        chosen: baseline or name of a recipe -> how its settings were chosen, in words.
    """

    baselines: dict[str, dict[str, Any]]
    systems: dict[str, Recipe]
    chosen: Mapping[str, str] = MappingProxyType({})


def read_recipes(path: Path | None) -> Recipes:
    """Read the YAML file of a benchmark; None is an empty one.

    `baselines:` is a mapping of baselines to settings, or a list of two: the name of a file, and a key in it. `tuned:` in the
    settings of a baseline is the budget of their search. A sum such as `ease+ials` has a key of its own for its `weights`, and
    for settings of its baselines that differ from those of their own keys. A recipe of a system whose stages share keys, such as
    `cllm4rec:`, has the content of the file of its stages, or the name of such a file. Another recipe, such as `lcrec:`, has a
    section for each stage (`index:`, `align:`), also inline or as the name of a file. `chosen:` describes how each recipe was
    chosen. File names are relative to the file in which they are written.

    Raises:
        MissingFileError: there is no such file.
        InputError: there is no such key (the nearest names are listed), or a value is not allowed.
    """
    if path is None:
        return Recipes({}, {})
    content = read_yaml(path)
    _refuse_unknown(path, content, ("baselines", "chosen", *recipe_names()))
    baselines, chosen = _read_baselines(path, content.get("baselines") or {})
    systems: dict[str, Recipe] = {}
    for name in (name for name in recipe_names() if content.get(name)):
        section, place = _section(path, content[name], name)
        stages = system_of_recipe(name).stages
        if shares_keys(name):
            systems[name] = shared_recipe(name, section, place)
            continue
        _refuse_unknown(place, section, tuple(stage.section for stage in stages))
        parts = {stage: _section(path, section.get(stage.section) or {}, f"{name}: {stage.section}") for stage in stages}
        systems[name] = {stage.section: _settings(*parts[stage], stage) for stage in stages}
    choices = content.get("chosen") or {}
    _refuse_unknown(f"{path}: chosen", choices, tuple(recipe_names()))
    for name, choice in choices.items():
        _refuse_unknown(place := f"{path}: chosen: {name}", choice, budgets.CHOSEN_KEYS)
        chosen[name] = budgets.chosen_in_words(place, choice)
    return Recipes(baselines, systems, chosen)


def recipe_names() -> list[str]:
    """Return the names of the recipes of all systems."""
    return [name for system in SYSTEMS.values() for name in system.recipes]


def set_by_jobs() -> set[str]:
    """Return the names of all arguments that the benchmark sets."""
    stages = [stage for system in SYSTEMS.values() for stage in system.stages]
    return {*SET_BY_JOBS, *(stage.previous for stage in stages if stage.previous)}


def shares_keys(name: str) -> bool:
    """Return whether the stages of a recipe share keys at the top of its section, as in one YAML file for all stages."""
    return bool(shared_by(resolve(system_of_recipe(name).stages[0].arguments))[0])


def read_one_recipe(path: Path) -> tuple[str, Recipe]:
    """Read the only recipe of a YAML file and return its name and settings.

    The file is that of a benchmark, or that of the stages of a system that share keys.

    Raises:
        InputError: the file has recipes of several systems, or the recipe cannot be read.
    """
    content = read_yaml(path)
    found = [name for name in SYSTEMS if content.get(name)]
    if len(found) > 1:
        raise InputError(f"{path} has recipes of {' and '.join(found)}, and an ablation is of one; name a file with one of them")
    if found:
        return found[0], read_recipes(path).systems[found[0]]
    name = next(name for name in recipe_names() if shares_keys(name))
    return name, shared_recipe(name, content, str(path))


def shared_recipe(name: str, content: Mapping[str, Any], place: str) -> Recipe:
    """Return the settings of all stages of a recipe from the content of one file for all of them."""
    return {stage.section: _settings(content, place, stage) for stage in system_of_recipe(name).stages}


def adjusted(recipe: Recipe, name: str, backbone: str | None, epochs_share: float) -> Recipe:
    """Return a recipe with another backbone and with a share of its epochs, at least one.

    A recipe that trains a decoder from scratch has no backbone, so it keeps none.

    Args:
        name: name of the recipe.
    """
    changed: Recipe = {}
    for stage in system_of_recipe(name).stages:
        settings = dict(recipe[stage.section])
        known = {argument.name: argument.default for argument in fields(resolve(stage.arguments))}
        if backbone is not None and "backbone" in known and not settings.get("scratch_layers"):
            settings["backbone"] = backbone
        if epochs_share < 1:
            for key in EPOCHS:
                if known.get(key, MISSING) is not MISSING:
                    settings[key] = math.ceil(epochs_share * settings.get(key, known[key]))
        changed[stage.section] = settings
    return changed


def check_recipe(recipe: Mapping[str, Mapping[str, Any] | None], name: str) -> None:
    """Build the arguments of each stage as the training does, so that a mistake is found before anything runs.

    Raises:
        InputError: a value is not allowed, or there is no backbone.
    """
    stages = system_of_recipe(name).stages
    built = [arguments_of(stage, settings) for stage in stages if (settings := recipe[stage.section]) is not None]
    precisions = {arguments.bf16 for arguments in built if isinstance(arguments, TrainingArguments)}
    if len(precisions) > 1:
        raise InputError(f"{name}: bf16 differs between the stages; one process trains all of them: set it once")


def arguments_of(stage: Stage, settings: Mapping[str, Any]) -> Any:
    """Return the arguments of a stage with placeholders for its folders."""
    previous = {stage.previous: stage.previous} if stage.previous else {}
    return resolve(stage.arguments)(**settings, data="data", output="output", **previous)


def _read_baselines(path: Path, value: Any) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return baseline -> settings, and baseline -> how they were chosen, of the key `baselines:`."""
    data = str(value[-1]) if isinstance(value, list) and value else ""
    baselines = {name: dict(settings or {}) for name, settings in _baselines(path, value).items()}
    chosen: dict[str, str] = {}
    for name, settings in baselines.items():
        place, budget = f"{path}: {name}: tuned", settings.pop("tuned", None)
        check_settings(name, settings)
        chosen[name] = budgets.OWN
        if budget is not None:
            _refuse_unknown(place, budget, budgets.TUNED_KEYS)
            chosen[name] = budgets.tuned_in_words(place, budget, data)
    return baselines, chosen


def _baselines(path: Path, value: Any) -> dict[str, Any]:
    """Return baseline -> settings, inline or under a key of another file."""
    place = f"{path}: baselines"
    if isinstance(value, list):
        if len(value) != 2:
            raise InputError(f"{place} is {value!r}; as a list it must be the name of a YAML file and a key in it")
        file = path.parent / str(value[0])
        place, content = f"{file}: {value[1]}", read_yaml(file)
        if value[1] not in content:
            raise InputError(f"{file} has no key {value[1]!r}; it has {', '.join(map(str, content))}")
        value = content[value[1]]
    # Classes of the user's own, and sums; `check_settings` checks them.
    others = [name for name in value if ":" in str(name) or "+" in str(name)] if isinstance(value, dict) else []
    _refuse_unknown(place, value, (*BASELINES, *others))
    return dict(value)


def _settings(content: Mapping[str, Any], place: str, stage: Stage) -> dict[str, Any]:
    settings = stage_settings(content, place, resolve(stage.arguments), stage.section)
    return {name: value for name, value in settings.items() if name not in set_by_jobs()}


def _section(path: Path, value: Any, name: str) -> tuple[dict[str, Any], str]:
    """Return a section, inline or in a separate file, and its place for errors."""
    if isinstance(value, str):
        return read_yaml(path.parent / value), str(path.parent / value)
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: {name} is {value!r}; it must be keys and values, or the name of a YAML file in the same folder"
        )
    return value, f"{path}: {name}"


def _refuse_unknown(place: str | Path, content: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{place}: expected keys and values, got {type(content).__name__}")
    for key in content:
        if key not in allowed:
            raise InputError(f"{place}: unknown key {key!r}; {nearest(key, allowed)}")
