"""The paper's variants as settings."""

from __future__ import annotations

from typing import Any

import pytest

from modeling_cllm4rec.benchmark.ablation import VARIANTS, make_variant_jobs

RECIPE: dict[str, dict[str, Any]] = {
    "pretrain": {"backbone": "gpt2", "epochs": 4, "tune": "full", "lambda_c": 1.0},
    "finetune": {"epochs": 6, "tune": "full", "lambda_c": 0.1, "content_every": 20},
}


def changes(name: str) -> dict[str, Any]:
    job = next(job for job in make_variant_jobs(RECIPE, [name], [1])[0] if job.model == name)
    changed = {
        f"{stage}.{key}": value
        for stage in RECIPE
        for key, value in (job.recipe[stage] or {"all": None}).items()
        if RECIPE[stage].get(key, "default") != value
    }
    return {**changed, **({"anonymous": True} if job.anonymous else {})}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("LLM-Scratch", {"pretrain.backbone_weights": "random"}),
        (
            "LLM-CF",
            {
                "pretrain.warmup_epochs": 0,
                "pretrain.content_share": 0.0,
                "pretrain.lambda_c": 0.0,
                "finetune.lambda_c": 0.0,
                "finetune.content_every": 0,
            },
        ),
        ("LLM-FixOrd", {"pretrain.reorder": False, "finetune.reorder": False}),
        ("LLM-PreRec", {"finetune.all": None}),
        ("lambda_c=10", {"pretrain.lambda_c": 10.0, "finetune.lambda_c": 10.0}),
        ("tune=frozen", {"pretrain.tune": "frozen", "finetune.tune": "frozen"}),
        ("users=anonymous", {"pretrain.drop_user": 1.0, "finetune.drop_user": 1.0, "anonymous": True}),
        ("rows=random", {"pretrain.init_ids": "random"}),
    ],
)
def test_what_a_variant_changes(name: str, wanted: dict[str, Any]) -> None:
    assert changes(name) == wanted


def test_variants_that_are_the_recipe_are_named_and_not_run() -> None:
    jobs, found = make_variant_jobs(RECIPE, None, [1, 2])
    assert found["same_as_recipe"] == ("LLM-FTALL", "tune=full", "rows=text")
    assert found["recipe"] == RECIPE
    assert len(jobs) == 2 * (len(VARIANTS) - 3)
    assert [job.model for job in jobs[:2]] == ["recipe", "recipe"]
    assert len({job.key for job in jobs}) == len(jobs)


def test_the_recipe_itself_is_always_there() -> None:
    jobs, _ = make_variant_jobs(RECIPE, ["LLM-CF"], [5], command="program ablation")
    assert [(job.model, job.command) for job in jobs] == [
        ("recipe", "program ablation --variants recipe --seed 5"),
        ("LLM-CF", "program ablation --variants LLM-CF --seed 5"),
    ]


def test_epochs_share() -> None:
    job = make_variant_jobs(RECIPE, ["LLM-CF"], [1], epochs_share=0.3)[0][1]
    assert (job.recipe["pretrain"]["epochs"], job.recipe["finetune"]["epochs"]) == (2, 2)
    assert job.recipe["pretrain"]["warmup_epochs"] == 0


def test_variant_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="variants: there is no 'LLM-FixOrder'; nearest: LLM-FixOrd"):
        make_variant_jobs(RECIPE, ["LLM-FixOrder"], [1])
    with pytest.raises(ValueError, match="backbone is not set"):
        make_variant_jobs({"pretrain": {}, "finetune": {}}, None, [1])
    with pytest.raises(ValueError, match=r"seeds are \[2, 2\]"):
        make_variant_jobs(RECIPE, None, [2, 2])
