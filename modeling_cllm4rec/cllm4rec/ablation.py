"""CLLM4Rec's ablation study (section 4 of arXiv 2311.01343), and further variants of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from modeling_cllm4rec.systems import RecipeVariant

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


def variants(recipe: Mapping[str, dict[str, Any]]) -> dict[str, RecipeVariant]:
    """Return a recipe of CLLM4Rec as each of `VARIANTS` changes it."""
    return {name: RecipeVariant(one.about, _with(recipe, one), one.anonymous) for name, one in VARIANTS.items()}


def _with(recipe: Mapping[str, dict[str, Any]], variant: Variant) -> dict[str, dict[str, Any] | None]:
    finetune = None if variant.finetune is None else {**recipe["finetune"], **variant.finetune}
    return {"pretrain": {**recipe["pretrain"], **variant.pretrain}, "finetune": finetune}
