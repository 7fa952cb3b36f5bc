"""What the benchmark trains and how: a YAML file of baselines' settings and of recipes for both systems."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from modeling_cllm4rec.baselines import BASELINES, check_settings
from modeling_cllm4rec.benchmark import budgets
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments
from modeling_cllm4rec.training.arguments import TrainingArguments, read_yaml, stage_settings

INDEXED = ("lcrec", "lcrec-vanilla", "lcrec-cid", "tiger")
"""Recipes of an index and what is trained on it: LC-Rec, LC-Rec with other indices, and a small decoder from scratch."""
SECTIONS = ("baselines", "chosen", "cllm4rec", *INDEXED)
STAGES: dict[str, dict[str, type[Any]]] = {
    "cllm4rec": {"pretrain": PretrainArguments, "finetune": FinetuneArguments},
    **{name: {"index": IndexArguments, "align": AlignArguments} for name in INDEXED},
}
"""System -> its stages and their arguments, in order."""
OF_A_JOB = ("data", "output", "seed", "resume", "overwrite", "start", "index", "stop_after_steps", "stop_after_epochs")
"""Arguments that the benchmark sets, whatever a recipe says."""
EPOCHS = ("epochs", "warmup_epochs")

Recipe = dict[str, dict[str, Any]]
"""Stage -> its settings."""


class Changed(NamedTuple):
    """A recipe with some settings replaced.

    Attributes:
        about: what it is, in a few words.
        recipe: stage -> its settings; None leaves a stage out.
        anonymous: the model is not told who asks.
    """

    about: str
    recipe: Mapping[str, dict[str, Any] | None]
    anonymous: bool = False


class Recipes(NamedTuple):
    """A benchmark's YAML file, read: settings of baselines, and of each system that it has a recipe for.

    Attributes:
        chosen: baseline or system -> how its settings were chosen, in words.
    """

    baselines: dict[str, dict[str, Any]]
    systems: dict[str, Recipe]
    chosen: Mapping[str, str] = MappingProxyType({})


def read_recipes(path: Path | None) -> Recipes:
    """Read a benchmark's YAML file; None is an empty one.

    `baselines:` holds a mapping of settings for each, or the list of a file's name and of a key in it; `tuned:` among a
    baseline's settings says how they were searched for. `cllm4rec:` holds what a file for `pretrain` and `finetune` holds, or
    such a file's name; `lcrec:` (and the other names of `INDEXED`) has `index:` and `align:`, each likewise. `chosen:` says of
    each system how its recipe was chosen. File names are relative to the file that names them.

    Raises:
        MissingFileError: there is no such file.
        InputError: a key that does not exist (the nearest names), or a value that is not allowed.
    """
    if path is None:
        return Recipes({}, {})
    content = read_yaml(path)
    _refuse_unknown(path, content, SECTIONS)
    chosen: dict[str, str] = {}
    value, data = content.get("baselines") or {}, ""
    if isinstance(value, list):
        data = str(value[-1])
    baselines = {name: dict(settings or {}) for name, settings in _baselines(path, value).items()}
    for name, settings in baselines.items():
        place, budget = f"{path}: {name}: tuned", settings.pop("tuned", None)
        check_settings(name, settings)
        chosen[name] = budgets.OWN
        if budget is not None:
            _refuse_unknown(place, budget, budgets.TUNED_KEYS)
            chosen[name] = budgets.tuned_in_words(place, budget, data)
    systems: dict[str, Recipe] = {}
    if content.get("cllm4rec"):
        systems["cllm4rec"] = cllm4rec_recipe(*_section(path, content["cllm4rec"], "cllm4rec"))
    for name in (name for name in INDEXED if content.get(name)):
        section, place = _section(path, content[name], name)
        _refuse_unknown(place, section, tuple(STAGES[name]))
        parts = {stage: _section(path, section.get(stage) or {}, f"{name}: {stage}") for stage in STAGES[name]}
        systems[name] = {stage: _settings(*parts[stage], kind, stage) for stage, kind in STAGES[name].items()}
    choices = content.get("chosen") or {}
    _refuse_unknown(f"{path}: chosen", choices, tuple(STAGES))
    for name, choice in choices.items():
        _refuse_unknown(place := f"{path}: chosen: {name}", choice, budgets.CHOSEN_KEYS)
        chosen[name] = budgets.chosen_in_words(place, choice)
    return Recipes(baselines, systems, chosen)


def read_one_recipe(path: Path) -> tuple[Literal["cllm4rec", "lcrec"], Recipe]:
    """The system and the recipe in a YAML file for `pretrain` and `finetune`, or in a benchmark's one with a single system.

    Raises:
        InputError: it has recipes of both systems, or one that cannot be read.
    """
    content = read_yaml(path)
    if content.get("cllm4rec") and content.get("lcrec"):
        raise InputError(f"{path} has recipes of cllm4rec and lcrec, and variants are of one; name a file with one of them")
    if content.get("lcrec"):
        return "lcrec", read_recipes(path).systems["lcrec"]
    if content.get("cllm4rec"):
        return "cllm4rec", read_recipes(path).systems["cllm4rec"]
    return "cllm4rec", cllm4rec_recipe(content, str(path))


def cllm4rec_recipe(content: Mapping[str, Any], place: str) -> Recipe:
    """Settings of both stages of CLLM4Rec."""
    return {stage: _settings(content, place, kind, stage) for stage, kind in STAGES["cllm4rec"].items()}


def adjusted(recipe: Recipe, system: str, backbone: str | None, epochs_share: float) -> Recipe:
    """A recipe with another backbone, and with a share of its epochs (at least one where it has any).

    A recipe that trains a decoder from scratch has no backbone, and gets none.
    """
    changed: Recipe = {}
    for stage, kind in STAGES[system].items():
        settings = dict(recipe[stage])
        known = {one.name: one.default for one in fields(kind)}
        if backbone is not None and "backbone" in known and not settings.get("scratch_layers"):
            settings["backbone"] = backbone
        if epochs_share < 1:
            for name in EPOCHS:
                if known.get(name, MISSING) is not MISSING:
                    settings[name] = math.ceil(epochs_share * settings.get(name, known[name]))
        changed[stage] = settings
    return changed


def check_recipe(recipe: Mapping[str, Mapping[str, Any] | None], system: str) -> None:
    """Make the arguments of each stage, as training will, so that a mistake is told before anything runs.

    Raises:
        InputError: a value that is not allowed, or no backbone.
    """
    stages = STAGES[system].items()
    made = [arguments_of(kind, settings, stage) for stage, kind in stages if (settings := recipe[stage]) is not None]
    precisions = {arguments.precision for arguments in made if isinstance(arguments, TrainingArguments)}
    if len(precisions) > 1:
        raise InputError(f"{system}: precision is {' and '.join(sorted(precisions))}; one process trains all stages: set it once")


def arguments_of(kind: type[Any], settings: Mapping[str, Any], stage: str) -> Any:
    """The arguments of a stage, in no folder yet."""
    return kind(**settings, data="data", output="output", **({"index": "index"} if stage == "align" else {}))


def _baselines(path: Path, value: Any) -> dict[str, Any]:
    """Settings by baseline, inline or under a key of another file."""
    place = f"{path}: baselines"
    if isinstance(value, list):
        if len(value) != 2:
            raise InputError(f"{place} is {value!r}; as a list it must be the name of a YAML file and a key in it")
        file = path.parent / str(value[0])
        place, content = f"{file}: {value[1]}", read_yaml(file)
        if value[1] not in content:
            raise InputError(f"{file} has no key {value[1]!r}; it has {', '.join(map(str, content))}")
        value = content[value[1]]
    _refuse_unknown(place, value, tuple(BASELINES))
    return dict(value)


def _settings(content: Mapping[str, Any], place: str, kind: type[Any], stage: str) -> dict[str, Any]:
    return {name: value for name, value in stage_settings(content, place, kind, stage).items() if name not in OF_A_JOB}


def _section(path: Path, value: Any, name: str) -> tuple[dict[str, Any], str]:
    """A section, inline or in a file of its own, and where it stands."""
    if isinstance(value, str):
        return read_yaml(path.parent / value), str(path.parent / value)
    if not isinstance(value, dict):
        raise InputError(f"{path}: {name} is {value!r}; it must be keys and values, or the name of a YAML file beside this one")
    return value, f"{path}: {name}"


def _refuse_unknown(place: str | Path, content: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{place}: expected keys and values, got {type(content).__name__}")
    for key in content:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=3, cutoff=0.5)
            raise InputError(f"{place}: unknown key {key!r}; nearest: {near or list(allowed)}")
