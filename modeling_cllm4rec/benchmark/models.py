"""The names of `--models` as jobs: baselines, systems to be trained, trained folders."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_cllm4rec.baselines import BASELINES, baseline_settings, get_baseline, members
from modeling_cllm4rec.benchmark import budgets
from modeling_cllm4rec.benchmark.jobs import Job, shown
from modeling_cllm4rec.benchmark.recipes import Recipes, adjusted, check_recipe, recipe_names, set_by_jobs
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.hub.model_card import read_records
from modeling_cllm4rec.hub.reproduction import NOT_REPEATED
from modeling_cllm4rec.systems import SYSTEMS, Recipe

ENSEMBLE = "sum of their scores, standardized by row, each with its own settings"


def title(model: str) -> str:
    """Return a model's name in tables.

    >>> title("ease+ials"), title("mine")
    ('EASE + iALS', 'mine')
    """
    titles = {name: row.title for name, row in BASELINES.items()}
    titles.update((name, recipe.title) for name, recipe in recipes_of_systems().items())
    parts = model.split("+")
    return " + ".join(titles[part] for part in parts) if set(parts) <= set(titles) else model


def recipes_of_systems() -> dict[str, Recipe]:
    """Return how the recipes of all systems are shown, by their names."""
    return {name: recipe for system in SYSTEMS.values() for name, recipe in system.recipes.items()}


def model_names() -> list[str]:
    """Return the names of all models: baselines, and recipes of systems."""
    return [*BASELINES, *recipe_names()]


def summary(model: str) -> str:
    """Return what a model is, in a few words; a sum of baselines has one, too."""
    recipes = recipes_of_systems()
    if model in recipes:
        return recipes[model].summary
    return get_baseline(model).summary if len(members(model)) == 1 else ENSEMBLE


def baselines_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the recipe of each baseline whose scores are added up; of a single baseline its own, alone.

    >>> baselines_of({"name": "ease+ials", "settings": {"ease": {"regularization": 7.0}, "ials": {}}})[0]
    {'name': 'ease', 'settings': {'regularization': 7.0}}
    """
    parts = recipe["name"].split("+")
    return [recipe] if len(parts) == 1 else [{"name": part, "settings": recipe["settings"][part]} for part in parts]


def make_jobs(
    models: Sequence[str],
    seeds: Sequence[int],
    recipes: Recipes,
    *,
    backbone: str | None = None,
    epochs_share: float = 1.0,
    hold_out: bool = False,
    selection: str = "",
    command: str = "",
) -> list[Job]:
    """Return the jobs of a comparison.

    Args:
        models: names of baselines and systems, `ease+ials` for the sum of several baselines, and `name=folder` for trained
            models; one name with several folders is one model trained several times.
        seeds: of everything that is trained and not deterministic.
        recipes: how to train.
        backbone: language model in place of the recipes'.
        epochs_share: share of the recipes' epochs.
        hold_out: also measure held-out users; trained folders were trained on all users and are left out there.
        selection: what baselines that train by epochs stop early by, where their settings do not say; empty leaves the default.
        command: how the program was called, without models and seeds.

    Raises:
        InputError: a name that is none (the nearest ones), one twice, a system without a recipe, a baseline that needs a
            backbone and has none, or folders of one name that were trained with different settings.
        MissingFileError: a trained folder that is not there.
    """
    if not models:
        raise InputError(f"models is empty; name some of {', '.join(model_names())}, or name=folder of a trained model")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {list(seeds)}; there must be at least one, each 0 or more and there once")
    jobs: list[Job] = []
    for word in models:
        name, is_folder, path = word.partition("=")
        if is_folder:
            jobs.append(_folder_job(name, path, jobs, recipes, command))
            continue
        _check_name(name)
        recipe = _recipe(name, recipes, backbone, epochs_share, selection)
        chosen = recipes.chosen.get(name, budgets.RECIPE) if name in recipe_names() else budgets.of_baseline(name, recipes.chosen)
        deterministic = name not in recipe_names() and all(get_baseline(part).deterministic for part in members(name))
        for seed in seeds[:1] if deterministic else seeds:
            system: Any = name if name in recipe_names() else "baseline"
            about = summary(name) + (", deterministic" if deterministic else "")
            run = f"{command} --models {name} --seed {seed}"
            jobs.append(Job(name, system, seed, recipe, about=about, chosen=chosen, command=run))
    keys = [job.key for job in jobs]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"models names {key.rpartition('-seed')[0]} twice; name each once")
    if hold_out:
        jobs += [_unseen(job) for job in jobs if job.system != "folder"]
    return jobs


def folder_sha256(folder: Path) -> str:
    """SHA-256 of a saved model: its configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_name(name: str) -> None:
    if ":" in name:  # a class of the user's own, or a file of ranked lists
        get_baseline(name)
        return
    joined = "+" in name
    allowed = tuple(BASELINES) if joined else tuple(model_names())
    for part in name.split("+"):
        if part in allowed:
            continue
        near = difflib.get_close_matches(part, allowed, n=3, cutoff=0.5)
        hint = "; only baselines are joined by +" if joined else " (or name=folder, package.module:Class, lists:FILE)"
        raise InputError(f"models: there is no {part!r}; nearest: {', '.join(near or allowed)}{hint}")


def _recipe(name: str, recipes: Recipes, backbone: str | None, epochs_share: float, selection: str) -> dict[str, Any]:
    if "+" in name:
        parts = {part: _recipe(part, recipes, backbone, epochs_share, selection)["settings"] for part in members(name)}
        return {"name": name, "settings": parts}
    if name not in recipe_names():
        settings, known = recipes.baselines.get(name, {}), baseline_settings(name)
        if "metric" in known and selection:
            settings = {"metric": selection, **settings}
        if "backbone" in known:
            settings = settings if backbone is None else {**settings, "backbone": backbone}
            if not settings.get("backbone"):
                raise InputError(
                    f"models: {name} needs a language model; name one by --backbone, or in the YAML file of --config as "
                    f"baselines: {{{name}: {{backbone: NAME}}}}"
                )
        return {"name": name, "settings": settings}
    if name not in recipes.systems:
        raise InputError(
            f"models: {name} is trained by a recipe, and there is none for it; name a YAML file with {name}: by --config, or a "
            f"trained model by {name}=folder"
        )
    recipe = adjusted(recipes.systems[name], name, backbone, epochs_share)
    check_recipe(recipe, name)
    return recipe


def _folder_job(name: str, path: str, others: Sequence[Job], recipes: Recipes, command: str) -> Job:
    folder = Path(path)
    if name in BASELINES or not name:
        raise InputError(f"models: {name}={path}: a baseline is fitted, not read; give a trained model another name")
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"models: {name}={path}: there is no saved model in {path}")
    records = list(read_records(folder).values())
    taken = [job.seed for job in others if job.model == name]
    seed = int(records[-1]["arguments"]["seed"]) if records else 0
    while seed in taken:
        seed += 1
    digest = folder_sha256(folder)
    settings = _settings_of_training(folder, digest)
    recipe = {"path": str(folder.resolve()), "sha256": digest, "settings": settings}
    for other in others:
        if other.model == name:
            _check_same_training(name, other.recipe, recipe)
    run = f"{command} --models {shlex.quote(f'{name}={shown(path)}')}"
    chosen = _chosen_of_folder(settings, recipes)
    return Job(name, "folder", seed, recipe, about="trained before", chosen=chosen, command=run)


def _settings_of_training(folder: Path, digest: str) -> dict[str, Any]:
    """Return the training settings of a saved model by stage, without seeds and paths; the model itself if none are recorded."""
    left_out = (*set_by_jobs(), *NOT_REPEATED)
    return {
        stage: {name: value for name, value in record["arguments"].items() if name not in left_out}
        for stage, record in read_records(folder).items()
    } or {"model": {"sha256": digest}}


def _chosen_of_folder(settings: dict[str, dict[str, Any]], recipes: Recipes) -> str:
    """How the settings of a trained folder were chosen: known if a recipe of the YAML file, whatever its backbone, made it."""
    for system, recipe in recipes.systems.items():
        stages = [stage for stage in recipe if stage in settings]
        wanted = {(stage, name): value for stage in stages for name, value in recipe[stage].items() if name != "backbone"}
        if stages and all(settings[stage].get(name) == value for (stage, name), value in wanted.items()):
            return recipes.chosen.get(system, budgets.RECIPE)
    return budgets.UNKNOWN


def _check_same_training(name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    """Refuse to take two trainings of different settings for seeds of one model.

    Raises:
        InputError: naming what differs.
    """
    there, here = (
        {f"{stage}: {key}": value for stage, settings in one["settings"].items() for key, value in settings.items()}
        for one in (first, second)
    )
    differs = {key: (there.get(key), here.get(key)) for key in {**there, **here} if there.get(key) != here.get(key)}
    if differs:
        raise InputError(
            f"models: the folders {shown(first['path'])} and {shown(second['path'])} of {name} are not seeds of one training: "
            f"{differs}; give each a name of its own"
        )


def _unseen(job: Job) -> Job:
    return dataclasses.replace(job, case="unseen-people", anonymous=True)
