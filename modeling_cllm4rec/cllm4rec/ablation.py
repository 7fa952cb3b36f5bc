"""CLLM4Rec's ablation study (section 4 of arXiv 2311.01343), and further variants of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from modeling_cllm4rec.systems import RecipeVariant

LAMBDAS = (0.0, 0.1, 1.0, 10.0)


class Variant(NamedTuple):
    """Settings that replace some of a CLLM4Rec recipe.

    Attributes:
        about: description in a few words.
        pretrain: settings that replace those of pretraining.
        finetune: settings that replace those of finetuning; None skips finetuning, and the next-item head of the pretrained model
            ranks the items.
        anonymous: whether evaluation leaves out the user tokens.
    """

    about: str
    pretrain: dict[str, Any]
    finetune: dict[str, Any] | None
    anonymous: bool = False


def _both(about: str, anonymous: bool = False, **settings: Any) -> Variant:
    return Variant(about, settings, settings, anonymous)


VARIANTS: dict[str, Variant] = {
    "LLM-Scratch": Variant(
        "the same network from random weights", {"backbone_weights": "random", "tune": "full"}, {"tune": "full"}
    ),
    "LLM-CF": Variant(
        "no content LM, no mutual regularization",
        {"warmup_epochs": 0, "content_share": 0.0, "lambda_c": 0.0},
        {"lambda_c": 0.0, "content_every": 0},
    ),
    "LLM-FTALL": _both("the whole backbone and its word embeddings are also tuned: tune=full", tune="full"),
    "LLM-FixOrd": _both("histories in the order of the data, never reordered", reorder=False),
    "LLM-PreRec": Variant("no finetuning: the next-item head ranks", {}, None),
    **{f"lambda_c={weight:g}": _both(f"weight {weight:g} of the mutual regularization", lambda_c=weight) for weight in LAMBDAS},
    "tune=frozen": _both("backbone frozen", tune="frozen"),
    "tune=lora": _both("backbone through LoRA", tune="lora"),
    "users=named": _both("the user's token always in the prompt", drop_user=0.0),
    "users=anonymous": _both("no user tokens, neither in training nor in evaluation", anonymous=True, drop_user=1.0),
    "rows=text": Variant("ID rows initialized from the words of item texts", {"init_ids": "text"}, {}),
    "rows=random": Variant("ID rows initialized at random", {"init_ids": "random"}, {}),
}
"""Name -> variant of a CLLM4Rec recipe; the first six are those of the paper."""


def variants(recipe: Mapping[str, dict[str, Any]]) -> dict[str, RecipeVariant]:
    """Return the recipe changed by each of `VARIANTS`."""
    return {name: RecipeVariant(variant.about, _with(recipe, variant), variant.anonymous) for name, variant in VARIANTS.items()}


def _with(recipe: Mapping[str, dict[str, Any]], variant: Variant) -> dict[str, dict[str, Any] | None]:
    """Return a recipe with the settings of a variant."""
    finetune = None if variant.finetune is None else {**recipe["finetune"], **variant.finetune}
    return {"pretrain": {**recipe["pretrain"], **variant.pretrain}, "finetune": finetune}
