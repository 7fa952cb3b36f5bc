"""The papers' variants (their ablation studies), and further ones, as switches of one recipe."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from modeling_cllm4rec.benchmark.jobs import Job
from modeling_cllm4rec.benchmark.recipes import STAGES, Changed, Recipe, adjusted, arguments_of, check_recipe
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.lcrec.ablation import lcrec_variants

RECIPE = "recipe"
"""Name of the row that the others are compared with."""
LAMBDAS = (0.0, 0.1, 1.0, 10.0)


class Variant(NamedTuple):
    """What replaces some settings of a CLLM4Rec recipe.

    Attributes:
        about: what it is, in a few words.
        pretrain: settings that replace those of pretraining.
        finetune: the same of finetuning; None leaves finetuning out, and the next-item head of the pretrained model ranks.
        anonymous: the model is not told who asks.
    """

    about: str
    pretrain: dict[str, Any]
    finetune: dict[str, Any] | None
    anonymous: bool = False


def _both(about: str, anonymous: bool = False, **settings: Any) -> Variant:
    return Variant(about, settings, settings, anonymous)


VARIANTS: dict[str, Variant] = {
    RECIPE: _both("the recipe as it is"),
    "LLM-Scratch": Variant(
        "the same network from random weights", {"backbone_weights": "random", "tune": "full"}, {"tune": "full"}
    ),
    "LLM-CF": Variant(
        "no content LM, no mutual regularization",
        {"warmup_epochs": 0, "content_share": 0.0, "lambda_c": 0.0},
        {"lambda_c": 0.0, "content_every": 0},
    ),
    "LLM-FTALL": _both("the whole backbone and its words tuned, too: tune=full", tune="full"),
    "LLM-FixOrd": _both("histories in the order of the data, never reordered", reorder=False),
    "LLM-PreRec": Variant("no finetuning: the next-item head ranks", {}, None),
    **{f"lambda_c={weight:g}": _both(f"mutual regularization weighs {weight:g}", lambda_c=weight) for weight in LAMBDAS},
    "tune=frozen": _both("backbone frozen", tune="frozen"),
    "tune=lora": _both("backbone through LoRA", tune="lora"),
    "users=named": _both("the user's token always in the prompt", drop_user=0.0),
    "users=anonymous": _both("no user tokens at all, also when asked", anonymous=True, drop_user=1.0),
    "rows=text": Variant("ID rows started from the words of item texts", {"init_ids": "text"}, {}),
    "rows=random": Variant("ID rows started at random", {"init_ids": "random"}, {}),
}
"""Name -> what it changes in a recipe of CLLM4Rec; the first six are the paper's."""


def make_variant_jobs(
    recipe: Recipe,
    variants: Sequence[str] | None,
    seeds: Sequence[int],
    *,
    system: Literal["cllm4rec", "lcrec"] = "cllm4rec",
    backbone: str | None = None,
    epochs_share: float = 1.0,
    command: str = "",
) -> tuple[list[Job], dict[str, Any]]:
    """The jobs of an ablation, the recipe itself first.

    Args:
        recipe: of the system.
        variants: some of `VARIANTS`, or of LC-Rec's `LADDER`; None takes all.
        seeds: of each variant.
        system: whose recipe it is.
        backbone: language model in place of the recipe's.
        epochs_share: share of the recipe's epochs.
        command: how the program was called, without variants and seeds.

    Returns:
        The jobs, and what `Setting` says of them: `recipe`, and in `same_as_recipe` those variants (of all) that change nothing.

    Raises:
        InputError: a variant that does not exist (the nearest names), no seed, or a recipe whose settings are not allowed.
    """
    base = adjusted(recipe, system, backbone, epochs_share)
    there = {RECIPE: Changed(VARIANTS[RECIPE].about, base)}
    there |= cllm4rec_variants(base) if system == "cllm4rec" else lcrec_variants(base)
    names = list(there) if variants is None else list(dict.fromkeys([RECIPE, *variants]))
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=3, cutoff=0.4)
            raise InputError(f"variants: there is no {name!r}; nearest: {', '.join(near or there)}")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {list(seeds)}; there must be at least one, each 0 or more and there once")
    check_recipe(base, system)
    settings = {name: _all_settings(variant, system) for name, variant in there.items()}
    same = tuple(name for name in there if name != RECIPE and settings[name] == settings[RECIPE])
    jobs: list[Job] = []
    for name in names:
        if name in same:
            continue
        about, changed, anonymous = there[name]
        check_recipe(changed, system)
        jobs += [
            Job(
                name,
                system,
                seed,
                dict(changed),
                anonymous=anonymous,
                about=about,
                chosen="as in the recipe",
                command=f"{command} --variants {name} --seed {seed}",
            )
            for seed in seeds
        ]
    return jobs, {"recipe": base, "same_as_recipe": same}


def cllm4rec_variants(recipe: Recipe) -> dict[str, Changed]:
    """A recipe of CLLM4Rec as each of `VARIANTS` changes it."""
    return {name: Changed(one.about, _with(recipe, one), one.anonymous) for name, one in VARIANTS.items()}


def _with(recipe: Recipe, variant: Variant) -> dict[str, dict[str, Any] | None]:
    finetune = None if variant.finetune is None else {**recipe["finetune"], **variant.finetune}
    return {"pretrain": {**recipe["pretrain"], **variant.pretrain}, "finetune": finetune}


def _all_settings(changed: Changed, system: str) -> dict[str, Any]:
    """Every setting of all stages, those that the recipe leaves at their defaults too."""
    made: dict[str, Any] = {"anonymous": changed.anonymous}
    for stage, kind in STAGES[system].items():
        settings = changed.recipe[stage]
        made[stage] = None if settings is None else dataclasses.asdict(arguments_of(kind, settings, stage))
    return made
