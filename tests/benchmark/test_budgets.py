"""What a report says of how settings were chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeling_cllm4rec.benchmark import budgets
from modeling_cllm4rec.benchmark.budgets import chosen_in_words, of_baseline, tuned_in_words
from modeling_cllm4rec.benchmark.models import make_jobs
from modeling_cllm4rec.benchmark.recipes import read_recipes

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


def test_words_of_the_shipped_files() -> None:
    chosen = read_recipes(CONFIGS / "beauty_benchmark.yaml").chosen
    assert chosen["ials"] == "tuned on validation of beauty, 6 trials by recall@20 (iterations fixed)"
    assert chosen["cllm4rec"].startswith("recipe, chosen on validation of beauty")
    assert read_recipes(CONFIGS / "benchmark.yaml").chosen["cllm4rec"].startswith("recipe, chosen on validation of beauty")


def test_words_of_jobs(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("baselines: {ease: {regularization: 3.0}, ials: {tuned: {trials: 4, metric: ndcg@5}}}")
    recipes = read_recipes(own)
    assert recipes.baselines == {"ease": {"regularization": 3.0}, "ials": {}}, "the budget is no setting"
    jobs = {job.model: job.chosen for job in make_jobs(["ease", "ials", "itemknn", "popularity", "ease+itemknn"], [1], recipes)}
    assert jobs == {
        "ease": budgets.OWN,
        "ials": "tuned on validation, 4 trials by ndcg@5",
        "itemknn": "defaults, not tuned on this data; add --tune N",
        "popularity": "nothing to tune",
        "ease+itemknn": f"ease: {budgets.OWN}; itemknn: {budgets.DEFAULTS}; weights: {budgets.EQUAL}",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("baselines: {ease: {tuned: 5}}", "ease: tuned: expected keys and values, got int"),
        ("baselines: {ease: {tuned: {trial: 5, metric: a}}}", r"ease: tuned: unknown key 'trial'; did you mean 'trials'"),
        ("baselines: {ease: {tuned: {trials: 5}}}", "ease: tuned: the key 'metric' is missing; add it, or remove 'tuned'"),
        ("baselines: {ease: {tuned: {trials: 0, metric: a}}}", "trials is 0; it must be an integer, 1 or more"),
        ("baselines: {ease: {tuned: {trials: 1, metric: a, fixed: b}}}", "fixed is 'b'; it must be a list of settings"),
        ("chosen: {cllm4rek: {data: a}}", r"chosen: unknown key 'cllm4rek'; did you mean 'cllm4rec'"),
        ("chosen: {cllm4rec: {tried: 3}}", "chosen: cllm4rec: the key 'data' is missing; add it, or remove 'cllm4rec'"),
        ("chosen: {cllm4rec: {data: a, tried: many}}", "tried is 'many'; it must be an integer, 1 or more"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipes(tmp_path / "b.yaml")


def test_words() -> None:
    assert tuned_in_words("p", {"trials": 20, "metric": "ndcg@10"}) == "tuned on validation, 20 trials by ndcg@10"
    assert chosen_in_words("p", {"data": "books"}) == "recipe, chosen on validation of books"
    assert of_baseline("random", {}) == budgets.NOTHING
