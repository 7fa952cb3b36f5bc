"""Names of `--models` as jobs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from modeling_cllm4rec.baselines import BASELINES
from modeling_cllm4rec.benchmark import budgets
from modeling_cllm4rec.benchmark.jobs import training_fingerprint
from modeling_cllm4rec.benchmark.models import make_jobs, model_names, summary, title
from modeling_cllm4rec.benchmark.recipes import Recipes

NONE = Recipes({}, {})


def saved_model(folder: Path, weights: bytes = b"w", seed: int | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    if seed is not None:
        (folder / "training.json").write_text(json.dumps({"finetune": {"arguments": {"seed": seed}, "seconds": 2.0}}))
    return folder


def test_deterministic_models_run_one_seed() -> None:
    jobs = make_jobs(["ease", "random"], [3, 4, 5], NONE)
    assert [(job.model, job.seed) for job in jobs] == [("ease", 3), ("random", 3), ("random", 4), ("random", 5)]
    assert jobs[0].about.endswith("deterministic")
    assert "deterministic" not in jobs[1].about


def test_titles_and_deterministic_models_are_there() -> None:
    assert set(BASELINES) <= set(model_names())
    assert all(title(name) and summary(name) for name in model_names())


def test_command_runs_one_cell() -> None:
    job = make_jobs(["random"], [3, 4], NONE, command="program quality --data d")[1]
    assert job.command == "program quality --data d --models random --seed 4"


def test_settings_of_the_recipe() -> None:
    job = make_jobs(["ease"], [1], Recipes({"ease": {"regularization": 7.0}}, {}))[0]
    assert job.recipe == {"name": "ease", "settings": {"regularization": 7.0}}


def test_sum_of_baselines_with_the_settings_of_each() -> None:
    recipes = Recipes({"ease": {"regularization": 7.0}}, {})
    fixed, drawn = (make_jobs([name], [1, 2], recipes) for name in ("ease+itemknn", "ease+ials"))
    assert fixed[0].recipe == {"name": "ease+itemknn", "settings": {"ease": {"regularization": 7.0}, "itemknn": {}}}
    assert ([job.seed for job in fixed], [job.seed for job in drawn]) == ([1], [1, 2])
    assert fixed[0].system == "baseline" and fixed[0].command.endswith("--models ease+itemknn --seed 1")
    of_sum = {"ease+itemknn": {"weights": {"itemknn": 0.5}, "itemknn": {"shrink": 3.0}}}
    weighted = make_jobs(["ease+itemknn"], [1], recipes._replace(baselines={**recipes.baselines, **of_sum}))[0].recipe
    assert weighted["settings"] == {"ease": {"regularization": 7.0}, "itemknn": {"shrink": 3.0}, "weights": {"itemknn": 0.5}}
    assert title("ease+ials") == "EASE + iALS"


def test_baselines_stop_early_by_what_is_reported() -> None:
    """Their own setting has priority; models that do not train by epochs get none."""
    recipes = Recipes({"sasrec": {"metric": "recall@3"}}, {})
    jobs = make_jobs(["multvae", "sasrec", "ease", "ease+multvae"], [1], recipes, selection="recall@5")
    settings = {job.model: job.recipe["settings"] for job in jobs}
    assert settings["multvae"] == {"metric": "recall@5"} and settings["sasrec"] == {"metric": "recall@3"}
    assert settings["ease"] == {} and settings["ease+multvae"] == {"ease": {}, "multvae": {"metric": "recall@5"}}


def test_unseen_users_have_separate_jobs(tmp_path: Path) -> None:
    trained = saved_model(tmp_path / "m")
    jobs = make_jobs(["ease", f"mine={trained}"], [1], NONE, hold_out=True)
    assert [(job.key, job.anonymous) for job in jobs] == [
        ("ease-seed1", False),
        ("mine-seed0", False),
        ("ease-seed1-unseen-people", True),
    ]


def test_folders_of_one_name_are_runs_of_one_model(tmp_path: Path) -> None:
    first, second = saved_model(tmp_path / "a", seed=42), saved_model(tmp_path / "b", b"v", seed=42)
    jobs = make_jobs([f"mine={first}", f"mine={second}"], [1], NONE, command="p")
    assert [job.seed for job in jobs] == [42, 43]
    assert [job.command for job in jobs] == [f"p --models mine={name}" for name in "ab"]
    assert jobs[0].recipe["sha256"] != jobs[1].recipe["sha256"]


def test_a_record_may_lack_a_setting_that_the_other_one_does_not_set(tmp_path: Path) -> None:
    """The record of an earlier version has no setting that came later: the rows of both are one training."""
    first, second = saved_model(tmp_path / "a", seed=42), saved_model(tmp_path / "b", b"v", seed=43)
    record = json.loads((second / "training.json").read_text())
    record["finetune"]["arguments"]["fsdp_config"] = None
    (second / "training.json").write_text(json.dumps(record))
    one, other = make_jobs([f"mine={first}", f"mine={second}"], [1], NONE)
    assert training_fingerprint(dataclasses.asdict(one)) == training_fingerprint(dataclasses.asdict(other))


def test_folders_that_are_no_seeds_of_one_model_are_refused(tmp_path: Path) -> None:
    first, second = saved_model(tmp_path / "a", seed=42), saved_model(tmp_path / "b", b"v", seed=43)
    record = {"finetune": {"arguments": {"seed": 43, "output": "elsewhere", "learning_rate": 0.1}, "seconds": 2.0}}
    (second / "training.json").write_text(json.dumps(record))
    message = (
        r"folders a and b of mine are not seeds of one training: \{'finetune: learning_rate': \(None, 0.1\)\}; give each its own"
    )
    with pytest.raises(ValueError, match=message):
        make_jobs([f"mine={first}", f"mine={second}"], [1], NONE)
    assert len(make_jobs([f"mine={first}", f"other={second}"], [1], NONE)) == 2
    unknown = [saved_model(tmp_path / name, name.encode()) for name in ("c", "d")]
    with pytest.raises(ValueError, match="folders c and d of mine are not seeds of one training: {'model: sha256'"):
        make_jobs([f"mine={folder}" for folder in unknown], [1], NONE)


def test_a_folder_is_of_a_recipe_if_its_training_was(tmp_path: Path) -> None:
    """Whatever its backbone was; of other settings nobody knows here how they were chosen."""
    folder = saved_model(tmp_path / "m", seed=1)
    given = {"seed": 1, "learning_rate": 0.1, "num_train_epochs": 3, "backbone": "mine"}
    record = json.dumps({"finetune": {"arguments": given, "seconds": 1.0}})
    (folder / "training.json").write_text(record)
    chosen = {"cllm4rec": "recipe, chosen on validation of books among 13 configurations"}
    for lr, wanted in ((0.1, chosen["cllm4rec"]), (0.2, budgets.UNKNOWN)):
        recipe: dict[str, Any] = {"pretrain": {"backbone": "gpt2"}, "finetune": {"learning_rate": lr, "backbone": "gpt2"}}
        (job,) = make_jobs([f"mine={folder}"], [1], Recipes({}, {"cllm4rec": recipe}, chosen))
        assert job.chosen == wanted


@pytest.mark.parametrize(
    ("models", "seeds", "message"),
    [
        (["eas"], [1], "there is no 'eas'; did you mean .*'ease'"),
        (["ease", "ease"], [1], "models names ease twice"),
        (["ease+ils"], [1], "there is no 'ils'; did you mean 'ials'.*only baselines are joined by"),
        (
            ["ease+cllm4rec"],
            [1],
            "there is no 'cllm4rec'; .*only baselines are joined by .*, behind the name of a recipe or alone",
        ),
        (["cllm4rec+ease"], [1], "cllm4rec is trained by a recipe, and there is none for it"),
        (["ease+ease"], [1], "names ease twice"),
        ([], [1], "models is empty"),
        (["cllm4rec"], [1], "cllm4rec is trained by a recipe, and there is none for it; .*config=FILE.*cllm4rec=folder"),
        (["tiger"], [1], "tiger is trained by a recipe, and there is none for it"),
        (["tallrec"], [1], "tallrec needs a language model; pass backbone=NAME, .*tallrec: {backbone: NAME}"),
        (["ease=folder"], [1], "a baseline is fitted, not loaded"),
        (["random"], [1, 1], r"seeds are \[1, 1\]"),
        (["random"], [], r"seeds are \[\]"),
    ],
)
def test_names_that_are_none(models: list[str], seeds: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_jobs(models, seeds, NONE)


def test_trained_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mine=.*: there is no saved model in "):
        make_jobs([f"mine={tmp_path}"], [1], NONE)


def test_system_of_a_recipe(tiny_backbones: dict[str, Path]) -> None:
    recipe: dict[str, Any] = {"pretrain": {"backbone": "gpt2", "num_train_epochs": 5, "warmup_epochs": 0}, "finetune": {}}
    job = make_jobs(["cllm4rec"], [1], Recipes({}, {"cllm4rec": recipe}), backbone="mine", epochs_share=0.5)[0]
    assert job.recipe["pretrain"] == {"backbone": "mine", "num_train_epochs": 3, "warmup_epochs": 0}
    assert job.recipe["finetune"] == {"num_train_epochs": 5}  # of the default 10


def test_a_hybrid_of_a_recipe_and_linear_baselines() -> None:
    recipe: dict[str, Any] = {"pretrain": {"backbone": "gpt2"}, "finetune": {}}
    aligned: dict[str, Any] = {"index": {"method": "random"}, "align": {"backbone": "gpt2"}}
    baselines = {"ease": {"regularization": 7.0}, "textknn": {"neighbours": 9}, "ease+textknn": {"weights": {"textknn": 0.5}}}
    recipes = Recipes(baselines, {"cllm4rec": recipe, "lcrec": aligned}, {"cllm4rec": "by hand"})
    alone, hybrid = make_jobs(["cllm4rec", "cllm4rec+ease+textknn"], [1], recipes)
    assert hybrid.recipe == {
        **alone.recipe,
        "hybrid": {"baselines": "ease+textknn", "settings": {"ease": {"regularization": 7.0}, "textknn": {"neighbours": 9}}},
    }
    assert (hybrid.system, hybrid.chosen) == ("cllm4rec", "by hand") and "linear models are added" in hybrid.about
    assert title(hybrid.model) == "CLLM4Rec + EASE + text-kNN"
    with pytest.raises(ValueError, match="there is no 'eas'; did you mean .*'ease'"):
        make_jobs(["cllm4rec+eas"], [1], recipes)
    with pytest.raises(
        ValueError, match=r"lcrec\+ease: lcrec finds items by a search, .* set item_head in its recipe, or leave \+ease out"
    ):
        make_jobs(["lcrec+ease"], [1], recipes)
    aligned["align"]["item_head"] = "text"
    assert make_jobs(["lcrec+ease"], [1], recipes)[0].recipe["hybrid"]["baselines"] == "ease"


def test_backbones_of_text_only_and_from_scratch() -> None:
    settings = {"tallrec": {"backbone": "own", "epochs": 1}}
    own, given = (make_jobs(["tallrec"], [1], Recipes(settings, {}), backbone=name)[0] for name in (None, "mine"))
    assert own.system == given.system == "baseline"
    assert own.recipe["settings"]["backbone"] == "own" and given.recipe["settings"] == {"backbone": "mine", "epochs": 1}
    recipe: dict[str, Any] = {"index": {"method": "vanilla"}, "align": {"scratch_layers": 1, "tune": "full"}}
    tiger = make_jobs(["tiger"], [1], Recipes({}, {"tiger": recipe}), backbone="mine")[0]
    assert (tiger.system, tiger.recipe) == ("tiger", recipe), "from scratch there is no backbone to be replaced"
    recipe["align"] = {"backbone": "gpt2"}
    vanilla = make_jobs(["lcrec-vanilla"], [1], Recipes({}, {"lcrec-vanilla": recipe}), backbone="mine")[0]
    assert vanilla.recipe["align"]["backbone"] == "mine"
