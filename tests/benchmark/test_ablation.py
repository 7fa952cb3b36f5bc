"""The paper's variants as settings."""

from __future__ import annotations

from typing import Any

import pytest

from modeling_cllm4rec.benchmark.ablation import make_variant_jobs
from modeling_cllm4rec.cllm4rec.ablation import VARIANTS

RECIPE: dict[str, dict[str, Any]] = {
    "pretrain": {"backbone": "gpt2", "num_train_epochs": 4, "tune": "full", "lambda_c": 1.0},
    "finetune": {"num_train_epochs": 6, "tune": "full", "lambda_c": 0.1, "content_every": 20},
}


def changes(name: str) -> dict[str, Any]:
    job = next(job for job in make_variant_jobs(RECIPE, [name], [1], name="cllm4rec")[0] if job.model == name)
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
    jobs, found = make_variant_jobs(RECIPE, None, [1, 2], name="cllm4rec")
    assert found["same_as_recipe"] == ("LLM-FTALL", "rows=text")
    assert found["recipe"] == RECIPE
    assert len(jobs) == 2 * (len(VARIANTS) - 1)
    assert [job.model for job in jobs[:2]] == ["recipe", "recipe"]
    assert len({job.key for job in jobs}) == len(jobs)


def test_no_two_variants_are_the_same() -> None:
    """Of a recipe that is neither of them: or they would be trained twice."""
    recipe = {stage: {**settings, "tune": "lora", "lambda_c": 3.0, "init_ids": "text"} for stage, settings in RECIPE.items()}
    del recipe["finetune"]["init_ids"]
    jobs, _ = make_variant_jobs(recipe, None, [1], name="cllm4rec")
    made = [(job.recipe, job.anonymous) for job in jobs]
    assert all(made.count(one) == 1 for one in made)


def test_the_recipe_itself_is_always_there() -> None:
    jobs, _ = make_variant_jobs(RECIPE, ["LLM-CF"], [5], command="program ablation", name="cllm4rec")
    assert [(job.model, job.command) for job in jobs] == [
        ("recipe", "program ablation --variants recipe --seed 5"),
        ("LLM-CF", "program ablation --variants LLM-CF --seed 5"),
    ]


def test_epochs_share() -> None:
    job = make_variant_jobs(RECIPE, ["LLM-CF"], [1], epochs_share=0.3, name="cllm4rec")[0][1]
    assert (job.recipe["pretrain"]["num_train_epochs"], job.recipe["finetune"]["num_train_epochs"]) == (2, 2)
    assert job.recipe["pretrain"]["warmup_epochs"] == 0


def test_variant_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="variants: there is no 'LLM-FixOrder'; did you mean 'LLM-FixOrd'"):
        make_variant_jobs(RECIPE, ["LLM-FixOrder"], [1], name="cllm4rec")
    with pytest.raises(ValueError, match="backbone is not set"):
        make_variant_jobs({"pretrain": {}, "finetune": {}}, None, [1], name="cllm4rec")
    with pytest.raises(ValueError, match=r"seeds are \[2, 2\]"):
        make_variant_jobs(RECIPE, None, [2, 2], name="cllm4rec")


NAMES = ("no-usm", "random", "vanilla")
LCREC: dict[str, dict[str, Any]] = {
    "index": {"method": "rk-means", "codebook_size": 8, "co_occurrence": 0.5},
    "align": {"backbone": "gpt2", "tasks": ["seqrec", "item2index=0.3", "itemsearch=0.1", "preferenceobtain=0.05"]},
}


def test_variants_of_lcrec() -> None:
    """The tasks of the recipe up to each step, with its shares; steps without a task of the recipe are left out."""
    jobs, found = make_variant_jobs(LCREC, None, [3], name="lcrec", command="program ablation")
    tasks = {job.model: job.recipe["align"]["tasks"] for job in jobs}
    assert tasks == {
        "recipe": LCREC["align"]["tasks"],
        "SEQ": ["seqrec"],
        "+MUT": ["seqrec", "item2index=0.3"],
        "+ITE": ["seqrec", "item2index=0.3", "itemsearch=0.1"],
        "index=no-usm": LCREC["align"]["tasks"],
        "SEQ:index=no-usm": ["seqrec"],
        "index=random": LCREC["align"]["tasks"],
        "SEQ:index=random": ["seqrec"],
        "index=vanilla": LCREC["align"]["tasks"],
        "SEQ:index=vanilla": ["seqrec"],
    }
    assert {job.system for job in jobs} == {"lcrec"} and found["same_as_recipe"] == ()
    indices = {job.model: (job.recipe["index"]["method"], job.recipe["index"]["co_occurrence"]) for job in jobs}
    for method in ("random", "vanilla"):
        assert {name for name, index in indices.items() if index == (method, 0.0)} == {f"index={method}", f"SEQ:index={method}"}
    mapping = {job.model: job.recipe["index"].get("uniform_mapping") for job in jobs}
    assert {name for name, value in mapping.items() if value == "none"} == {"index=no-usm", "SEQ:index=no-usm"}
    assert jobs[1].command == "program ablation --variants SEQ --seed 3"


def test_variants_equal_to_the_recipe_are_not_run() -> None:
    sequences = {**LCREC, "align": {**LCREC["align"], "tasks": ["seqrec"]}}
    jobs, found = make_variant_jobs(sequences, None, [1], name="lcrec")
    assert found["same_as_recipe"] == ("SEQ",)
    assert [job.model for job in jobs] == ["recipe", *(f"{start}index={name}" for name in NAMES for start in ("", "SEQ:"))]
    with pytest.raises(ValueError, match="variants: there is no '.MUT'; "):
        make_variant_jobs(sequences, ["+MUT"], [1], name="lcrec")
    with pytest.raises(ValueError, match="variants: there is no 'LLM-CF'; known are recipe, SEQ, "):
        make_variant_jobs(LCREC, ["LLM-CF"], [1], name="lcrec")
