"""The benchmark's YAML file."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeling_cllm4rec.benchmark.recipes import Recipes, check_recipe, read_one_recipe, read_recipes

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


def written(folder: Path, text: str) -> Path:
    (folder / "own.yaml").write_text("learning_rate: 2e-3\npretrain:\n  backbone: gpt2\nfinetune:\n  num_train_epochs: 3\n")
    (folder / "benchmark.yaml").write_text(text)
    return folder / "benchmark.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*benchmark.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_complete(path: Path) -> None:
    recipes = read_recipes(path)
    assert recipes.systems
    assert bool(recipes.baselines) == (path.name != "benchmark.yaml")
    for system, recipe in recipes.systems.items():
        check_recipe(recipe, system)


def test_no_file_is_an_empty_one() -> None:
    assert read_recipes(None) == Recipes({}, {})


def test_inline_and_named_sections_are_the_same(tmp_path: Path) -> None:
    named = read_recipes(written(tmp_path, "cllm4rec: own.yaml\n"))
    inline = (
        "cllm4rec:\n  learning_rate: 2e-3\n  data: thrown/away\n  pretrain: {backbone: gpt2}\n  finetune: {num_train_epochs: 3}\n"
    )
    assert read_recipes(written(tmp_path, inline)) == named
    assert named.systems["cllm4rec"] == {
        "pretrain": {"learning_rate": 0.002, "backbone": "gpt2"},
        "finetune": {"learning_rate": 0.002, "num_train_epochs": 3},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("baseline: {}", r"unknown key 'baseline'; did you mean 'baselines'"),
        ("baselines: {eas: {}}", r"baselines: unknown key 'eas'; did you mean 'ease'"),
        ("baselines: {ease: {regularisation: 1}}", "no setting 'regularisation'; did you mean 'regularization"),
        ("baselines: {ease+ils: {weights: {ease: 1}}}", "there is no baseline 'ils'; did you mean 'ials'"),
        ("baselines: {ease+ials: {weights: {itemknn: 1}}}", "weights of 'ease.ials' names 'itemknn'; known are ease, ials"),
        ("cllm4rec: {pretrain: {lambdac: 1}}", r"cllm4rec: pretrain: unknown key 'lambdac'; did you mean 'lambda_c'"),
        ("baselines: [own.yaml]", "it must be the name of a YAML file and a key in it"),
        ("baselines: [own.yaml, books]", "own.yaml has no key 'books'; it has learning_rate, pretrain, finetune"),
        ("baselines: [own.yaml, pretrain]", "own.yaml: pretrain: unknown key 'backbone'"),
        ("cllm4rec: 3", "cllm4rec is 3; it must be keys and values, or the name of a YAML file in the same folder"),
        ("lcrec: {indices: {}}", r"lcrec: unknown key 'indices'; did you mean 'index'"),
        ("[1]", "expected keys and values, got list"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipes(written(tmp_path, text))


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config: there is no file .*missing.yaml"):
        read_recipes(written(tmp_path, "cllm4rec: missing.yaml"))


def test_recipes_that_cannot_train() -> None:
    with pytest.raises(ValueError, match="backbone is not set"):
        check_recipe({"pretrain": {}, "finetune": {}}, "cllm4rec")
    with pytest.raises(ValueError, match="cllm4rec: bf16 differs between the stages; .* set it once"):
        check_recipe({"pretrain": {"backbone": "gpt2"}, "finetune": {"bf16": True}}, "cllm4rec")


def test_recipe_of_an_ablation(tmp_path: Path) -> None:
    """A file for `pretrain` and `finetune`, or a benchmark's one that has a recipe of one system."""
    plain = read_one_recipe((written(tmp_path, "cllm4rec: own.yaml")).with_name("own.yaml"))
    assert plain == read_one_recipe(tmp_path / "benchmark.yaml")
    settings = {
        "pretrain": {"learning_rate": 0.002, "backbone": "gpt2"},
        "finetune": {"learning_rate": 0.002, "num_train_epochs": 3},
    }
    assert plain == ("cllm4rec", settings)
    assert read_one_recipe(CONFIGS / "scientific_benchmark.yaml")[0] == "lcrec"
    with pytest.raises(ValueError, match="has recipes of cllm4rec and lcrec, and an ablation is of one; name a file with one"):
        read_one_recipe(CONFIGS / "benchmark.yaml")
