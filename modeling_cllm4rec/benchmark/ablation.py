"""Ablation studies: variants of one recipe as jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from modeling_cllm4rec.benchmark.jobs import Job
from modeling_cllm4rec.benchmark.recipes import Recipe, adjusted, arguments_of, check_recipe
from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.systems import SYSTEMS, RecipeVariant, System, resolve, system_of_recipe

RECIPE = "recipe"
"""Name of the reference row."""


def make_variant_jobs(
    recipe: Recipe,
    variants: Sequence[str] | None,
    seeds: Sequence[int],
    *,
    name: str,
    backbone: str | None = None,
    epochs_share: float = 1.0,
    command: str = "",
) -> tuple[list[Job], dict[str, Any]]:
    """Return the jobs of an ablation, the recipe itself first.

    Args:
        recipe: section of a stage -> its settings.
        variants: names of variants of the system; None takes all.
        seeds: seeds of each variant.
        name: name of the recipe, such as `cllm4rec`.
        backbone: language model in place of the recipe's.
        epochs_share: share of the recipe's epochs.
        command: command line of the program without variants and seeds.

    Returns:
        The jobs, and two fields of `BenchmarkConfig`: `recipe`, and in `same_as_recipe` all variants that change nothing in it.

    Raises:
        InputError: there is no such variant (the nearest names are listed), there is no seed, or a setting of the recipe is not
            allowed.
    """
    base = adjusted(recipe, name, backbone, epochs_share)
    known = {RECIPE: RecipeVariant("the recipe as it is", base), **variants_of(system_of_recipe(name), base)}
    chosen = list(known) if variants is None else list(dict.fromkeys([RECIPE, *variants]))
    for variant in chosen:
        if variant not in known:
            raise InputError(f"variants: there is no {variant!r}; {nearest(variant, known)}")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {list(seeds)}; there must be at least one, each 0 or more and named once")
    check_recipe(base, name)
    settings = {variant: _all_settings(changed, name) for variant, changed in known.items()}
    same = tuple(variant for variant in known if variant != RECIPE and settings[variant] == settings[RECIPE])
    jobs: list[Job] = []
    for variant in chosen:
        if variant in same:
            continue
        about, changed, anonymous = known[variant]
        check_recipe(changed, name)
        jobs += [
            Job(
                variant,
                name,
                seed,
                dict(changed),
                anonymous=anonymous,
                about=about,
                chosen="as in the recipe",
                command=f"{command} --variants {variant} --seed {seed}",
            )
            for seed in seeds
        ]
    return jobs, {"recipe": base, "same_as_recipe": same}


def variants_of(system: System, recipe: Recipe) -> dict[str, RecipeVariant]:
    """Return the ablation study of a system's recipe, empty where the system has none."""
    return resolve(system.variants)(recipe) if system.variants else {}


def variant_names() -> dict[str, list[str]]:
    """Return the title of each system that has an ablation study, and the names of its variants."""
    names = {}
    for system in SYSTEMS.values():
        if system.variants:
            empty: Recipe = {stage.section: {} for stage in system.stages}
            names[system.title] = list(dict.fromkeys([RECIPE, *variants_of(system, empty)]))
    return names


def _all_settings(variant: RecipeVariant, name: str) -> dict[str, Any]:
    """Return all settings of all stages with their defaults."""
    values: dict[str, Any] = {"anonymous": variant.anonymous}
    for stage in system_of_recipe(name).stages:
        settings = variant.recipe[stage.section]
        values[stage.section] = None if settings is None else dataclasses.asdict(arguments_of(stage, settings))
    return values
