"""The names of `--models` as jobs: baselines, recipes of systems, trained folders."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_cllm4rec.baselines import BASELINES, WEIGHTS, baseline_settings, get_baseline, members
from modeling_cllm4rec.baselines.registry import LISTS
from modeling_cllm4rec.benchmark import budgets
from modeling_cllm4rec.benchmark.jobs import HYBRID_OF, Job, shown
from modeling_cllm4rec.benchmark.recipes import Recipes, adjusted, arguments_of, check_recipe, recipe_names, set_by_jobs
from modeling_cllm4rec.core.errors import InputError, MissingFileError, nearest
from modeling_cllm4rec.corpora.readers import checksum
from modeling_cllm4rec.hub.model_card import read_records
from modeling_cllm4rec.hub.reproduction import NOT_REPEATED
from modeling_cllm4rec.systems import SYSTEMS, Recipe, system_of_recipe

ENSEMBLE = "weighted sum of their scores, standardized by row, each with its own settings"
HYBRID = "; linear models are added, with weights learned on validation"


def title(model: str) -> str:
    """Return the name of a model in tables.

    >>> title("ease+ials"), title("mine"), title("lists:runs/other.parquet"), title("ease+package.module:Mine")
    ('EASE + iALS', 'mine', 'runs/other.parquet', 'EASE + package.module:Mine')
    """
    if model.startswith(LISTS):
        return model.removeprefix(LISTS)
    titles = {name: row.title for name, row in BASELINES.items()}
    titles.update((name, recipe.title) for name, recipe in recipes_of_systems().items())
    parts = model.split("+")
    known = all(part in titles or ":" in part for part in parts)
    return " + ".join(titles.get(part, part) for part in parts) if known else model


def recipes_of_systems() -> dict[str, Recipe]:
    """Return the recipes of all systems by their names."""
    return {name: recipe for system in SYSTEMS.values() for name, recipe in system.recipes.items()}


def model_names() -> list[str]:
    """Return the names of all models: baselines and recipes of systems."""
    return [*BASELINES, *recipe_names()]


def summary(model: str) -> str:
    """Return the description of a model, also of a sum of baselines."""
    recipes = recipes_of_systems()
    if model in recipes:
        return recipes[model].summary
    return get_baseline(model).summary if len(members(model)) == 1 else ENSEMBLE


def baselines_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the recipe of each baseline of a sum, or the recipe of a single baseline.

    >>> baselines_of({"name": "ease+ials", "settings": {"ease": {"regularization": 7.0}, "ials": {}}})[0]
    {'name': 'ease', 'settings': {'regularization': 7.0}}
    """
    parts = members(recipe["name"])
    if len(parts) == 1:
        return [recipe]
    hashes = recipe.get("sha256", {})
    return [
        {"name": part, "settings": recipe["settings"][part], **({"sha256": {part: hashes[part]}} if part in hashes else {})}
        for part in parts
    ]


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
        models: names of baselines and recipes, `ease+ials` for the sum of several baselines, `cllm4rec+ease+textknn` for a
            hybrid of a recipe and linear baselines, `package.module:Class` and `lists:FILE` for baselines of your own, and
            `name=folder` for trained models; one name with several folders is one model that was trained several times.
        seeds: seeds of all models that are trained and not deterministic.
        recipes: settings of baselines, and recipes of systems.
        backbone: language model in place of the recipes'.
        epochs_share: share of the recipes' epochs.
        hold_out: also measure held-out users. Trained folders and files of ranked lists are left out there, because they may
            have used all users.
        selection: metric of early stopping of baselines whose settings name none; empty leaves their default.
        command: command line of the program without models and seeds.

    Raises:
        InputError: there is no such model (the nearest names are listed), one is named twice, a recipe is missing, a baseline
            needs a backbone and has none, or folders of one name were trained with different settings.
        MissingFileError: there is no such trained folder or file of lists.
    """
    if not models:
        raise InputError(f"models is empty; name some of {', '.join(model_names())}, or name=folder of a trained model")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {list(seeds)}; there must be at least one, each 0 or more and named once")
    jobs: list[Job] = []
    for word in models:
        name, is_folder, path = word.partition("=")
        if is_folder and not word.startswith(LISTS):
            jobs.append(_folder_job(name, path, jobs, recipes, command))
        elif word.partition("+")[0] in recipe_names():
            jobs += _recipe_jobs(word, seeds, recipes, backbone, epochs_share, command)
        else:
            jobs += _baseline_jobs(word, seeds, recipes, backbone, selection, command)
    keys = [job.key for job in jobs]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"models names {key.rpartition('-seed')[0]} twice; name each once")
    if hold_out:
        jobs += [_unseen(job) for job in jobs if job.system != "folder" and not job.model.startswith(LISTS)]
    return jobs


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 of a saved model: its configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _baseline_jobs(
    word: str, seeds: Sequence[int], recipes: Recipes, backbone: str | None, selection: str, command: str
) -> list[Job]:
    """Return the jobs of a baseline or of a sum of baselines."""
    _check_name(word)
    parts = members(word)
    settings = {part: _baseline_settings(part, recipes, backbone, selection) for part in parts}
    if len(parts) > 1:
        of_sum = recipes.baselines.get(word, {})
        settings = {part: {**settings[part], **of_sum.get(part, {})} for part in parts}
        settings |= {WEIGHTS: of_sum[WEIGHTS]} if WEIGHTS in of_sum else {}
    recipe = {"name": word, "settings": settings if len(parts) > 1 else settings[word]}
    sources = {part: get_baseline(part).source for part in parts}
    if hashes := {part: _sha256(source) for part, source in sources.items() if source is not None}:
        recipe["sha256"] = hashes  # so that a changed file of the user's own is fitted again
    # A path is shown as far as it can be published; the recipe has the path itself.
    name = f"{LISTS}{shown(word.removeprefix(LISTS))}" if word.startswith(LISTS) else word
    deterministic = all(get_baseline(part).deterministic for part in parts)
    about = summary(word) + (", deterministic" if deterministic else "")
    chosen = budgets.of_baseline(word, recipes.chosen)
    return [
        Job(
            name,
            "baseline",
            seed,
            recipe,
            about=about,
            chosen=chosen,
            command=f"{command} --models {shlex.quote(name)} --seed {seed}",
        )
        for seed in (seeds[:1] if deterministic else seeds)
    ]


def _baseline_settings(name: str, recipes: Recipes, backbone: str | None, selection: str) -> dict[str, Any]:
    """Return the settings of a baseline: those of the YAML file, the metric of early stopping, and the backbone.

    Raises:
        InputError: it needs a backbone, and none is named.
    """
    settings, known = recipes.baselines.get(name, {}), baseline_settings(name)
    if "metric" in known and selection:
        settings = {"metric": selection, **settings}
    if "backbone" in known:
        settings = settings if backbone is None else {**settings, "backbone": backbone}
        if not settings.get("backbone"):
            raise InputError(
                f"models: {name} needs a language model; pass backbone=NAME, or write baselines: {{{name}: {{backbone: NAME}}}} "
                "into the YAML file of the benchmark"
            )
    return settings


def _recipe_jobs(
    word: str, seeds: Sequence[int], recipes: Recipes, backbone: str | None, epochs_share: float, command: str
) -> list[Job]:
    """Return the jobs of a system that is trained by a recipe, or of a hybrid of it and linear baselines joined by +.

    Raises:
        InputError: there is no such recipe or baseline, a setting is not allowed, or the system cannot be part of a hybrid.
    """
    name, joined, parts = word.partition("+")
    if name not in recipes.systems:
        raise InputError(
            f"models: {name} is trained by a recipe, and there is none for it; pass config=FILE with the key {name}, or name a "
            f"trained model as {name}=folder"
        )
    recipe = adjusted(recipes.systems[name], name, backbone, epochs_share)
    check_recipe(recipe, name)
    about = summary(name)
    if joined:
        last = system_of_recipe(name).stages[-1]
        if getattr(arguments_of(last, recipe[last.section]), "item_head", "") == "none":
            raise InputError(
                f"models: {word}: {name} finds items by a search, which linear models cannot be added to; set item_head in its "
                f"recipe, or leave +{parts} out"
            )
        recipe = {**recipe, HYBRID_OF: _linear_settings(parts, recipes)}
        about += HYBRID
    chosen = recipes.chosen.get(name, budgets.RECIPE)
    return [
        Job(word, name, seed, recipe, about=about, chosen=chosen, command=f"{command} --models {word} --seed {seed}")
        for seed in seeds
    ]


def _linear_settings(names: str, recipes: Recipes) -> dict[str, Any]:
    """Return the linear baselines of a hybrid, joined by +, and their settings: those of the YAML file.

    Raises:
        InputError: there is no such baseline.
    """
    _check_name(names)
    of_sum = recipes.baselines.get(names, {})
    known = {part: recipes.baselines.get(part, {}) for part in members(names)}
    return {"baselines": names, "settings": {part: {**own, **of_sum.get(part, {})} for part, own in known.items()}}


def _sha256(source: str) -> str:
    try:
        return checksum(source)
    except OSError as error:
        raise MissingFileError(f"models: {source} cannot be read ({error})") from error


def _check_name(word: str) -> None:
    """Check that a word names baselines.

    Raises:
        InputError: it does not; the nearest names are listed.
    """
    joined = "+" in word
    known = tuple(BASELINES) if joined else tuple(model_names())
    for part in [word] if word.startswith(LISTS) else word.split("+"):
        if part in known:
            continue
        if ":" in part:  # a class of the user's own, or a file of ranked lists
            get_baseline(part)
            continue
        hint = (
            "; only baselines are joined by +, behind the name of a recipe or alone"
            if joined
            else " (or name=folder, package.module:Class, lists:FILE)"
        )
        raise InputError(f"models: there is no {part!r}; {nearest(part, known)}{hint}")


def _folder_job(name: str, path: str, others: Sequence[Job], recipes: Recipes, command: str) -> Job:
    folder = Path(path)
    if name in BASELINES or not name:
        raise InputError(f"models: {name}={path}: a baseline is fitted, not loaded; give the trained model another name")
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"models: {name}={path}: there is no saved model in {path}")
    records = list(read_records(folder).values())
    taken = [job.seed for job in others if job.model == name]
    seed = int(records[-1]["arguments"]["seed"]) if records else 0
    while seed in taken:  # two folders may have been trained with one seed on different machines
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
    """Return the training settings of a saved model by stage, without seeds and paths; the model itself if none are recorded.

    A setting that is not set is left out as well, because the record of an earlier version does not name it.
    """
    left_out = (*set_by_jobs(), *NOT_REPEATED)
    return {
        stage: {name: value for name, value in record["arguments"].items() if name not in left_out and value is not None}
        for stage, record in read_records(folder).items()
    } or {"model": {"sha256": digest}}


def _chosen_of_folder(settings: dict[str, dict[str, Any]], recipes: Recipes) -> str:
    """Describe how the settings of a trained folder were chosen, if they are those of a recipe, apart from its backbone."""
    for system, recipe in recipes.systems.items():
        stages = [stage for stage in recipe if stage in settings]
        wanted = {(stage, name): value for stage in stages for name, value in recipe[stage].items() if name != "backbone"}
        if stages and all(settings[stage].get(name) == value for (stage, name), value in wanted.items()):
            return recipes.chosen.get(system, budgets.RECIPE)
    return budgets.UNKNOWN


def _check_same_training(name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    """Check that two folders of one name are seeds of one training.

    Raises:
        InputError: their settings differ; the differences are named.
    """
    there, here = (
        {f"{stage}: {key}": value for stage, settings in recipe["settings"].items() for key, value in settings.items()}
        for recipe in (first, second)
    )
    differs = {key: (there.get(key), here.get(key)) for key in {**there, **here} if there.get(key) != here.get(key)}
    if differs:
        raise InputError(
            f"models: the folders {shown(first['path'])} and {shown(second['path'])} of {name} are not seeds of one training: "
            f"{differs}; give each its own name"
        )


def _unseen(job: Job) -> Job:
    return dataclasses.replace(job, case="unseen-people", anonymous=True)
