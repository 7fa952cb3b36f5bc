"""Settings of baselines, and the search for them."""

import json

import numpy as np
import pytest

from modeling_cllm4rec.baselines import baseline_settings, fit_baseline, tune
from modeling_cllm4rec.baselines.tuning import draw
from modeling_cllm4rec.evaluation.evaluator import evaluate

MULTVAE = {"hidden_size": 32, "latent_size": 16, "epochs": 4, "progress": False}


def test_what_a_name_fixes(data):
    plain, recent = fit_baseline("ease", data), fit_baseline("ease-recency", data)
    assert (plain.recency, recent.recency) == (0, 0.5)
    assert (plain.weights == recent.weights).all()
    assert "recency" not in baseline_settings("ease-recency") and baseline_settings("ease")["recency"] == 0


def test_settings_that_change_nothing_are_none(data):
    assert "num_samples" in baseline_settings("esasrec") and "num_samples" not in baseline_settings("sasrec")
    assert "chunk_size" in baseline_settings("sasrec") and "chunk_size" not in baseline_settings("esasrec")
    with pytest.raises(ValueError, match="the baseline 'sasrec' has no setting 'num_samples'"):
        fit_baseline("sasrec", data, num_samples=64)


def test_a_name_has_defaults_of_its_own(data):
    published = {"block": "ligr", "size": 64, "layers": 1, "heads": 1, "dropout": 0.2, "max_length": 50, "num_samples": 256}
    assert published.items() <= baseline_settings("esasrec").items()
    assert baseline_settings("sasrec")["size"] == 128
    fitted = fit_baseline("esasrec", data, epochs=1, progress=False)
    other = fit_baseline("esasrec", data, epochs=1, size=8, progress=False)
    assert fitted.module.items.weight.shape[1] == 64 and other.module.items.weight.shape[1] == 8


def test_unknown_names_and_settings(data):
    with pytest.raises(ValueError, match="there is no baseline 'eas'; did you mean 'ease'"):
        fit_baseline("eas", data)
    with pytest.raises(ValueError, match="'ease' has no setting 'regularisation'; did you mean 'regularization'"):
        fit_baseline("ease", data, regularisation=3.0)
    with pytest.raises(ValueError, match="'random' has no setting 'shrink'; it has none"):
        fit_baseline("random", data, shrink=3.0)
    with pytest.raises(ValueError, match="'esasrec' fixes loss='sampled'; remove loss"):
        fit_baseline("esasrec", data, loss="full")
    with pytest.raises(ValueError, match="there is no baseline 'bpr'"):
        tune("bpr", data)


def test_tuning_chooses_on_validation(data):
    found = tune("ease", data, trials=4, seed=1, metric="ndcg@5", progress=False)
    table = found.trials.to_pylist()
    assert [row["trial"] for row in table] == [1, 2, 3, 4]
    assert json.loads(table[0]["settings"]) == {"regularization": 100.0}, "the defaults come first"
    assert len({row["settings"] for row in table}) == 4
    best = max(row["ndcg@5"] for row in table)
    (chosen,) = (row for row in table if row["chosen"])
    assert chosen["ndcg@5"] == best and json.loads(chosen["settings"]) == found.settings
    report = evaluate(fit_baseline("ease", data, **found.settings), data, "validation", metrics=["ndcg@5"], progress=False)
    assert report.metrics["ndcg@5"] == best
    again = tune("ease", data, trials=4, seed=1, metric="ndcg@5", progress=False)
    assert again.settings == found.settings
    assert again.trials.column("settings") == found.trials.column("settings")


def test_several_metrics_are_added(data):
    metrics = ["recall@5", "ndcg@10"]
    fitted = fit_baseline("multvae", data, **MULTVAE, metric="recall@5+ndcg@10")
    report = evaluate(fitted, data, "validation", metrics=metrics, progress=False, n_resamples=0)
    assert max(one.metric for one in fitted.validations) == pytest.approx(sum(report.metrics[name] for name in metrics))
    found = tune("ease", data, trials=1, metric="recall@5+ndcg@10", progress=False)
    report = evaluate(fit_baseline("ease", data), data, "validation", metrics=metrics, progress=False, n_resamples=0)
    assert found.trials["recall@5+ndcg@10"].to_pylist() == pytest.approx([sum(report.metrics[name] for name in metrics)])


def test_tuning_ends_where_the_space_is_used_up(data):
    assert tune("popularity", data, trials=5, progress=False).trials.num_rows == 1
    space = {"neighbours": {"choice": [3, 7]}}
    found = tune("itemknn", data, trials=9, space=space, progress=False)
    assert [json.loads(row)["neighbours"] for row in found.trials.column("settings").to_pylist()][0] is None
    assert found.trials.num_rows == 3


def test_what_is_fixed_is_not_drawn(data):
    found = tune("itemknn", data, trials=3, fixed={"neighbours": 4}, progress=False)
    assert list(found.settings) == ["shrink"]
    expected = evaluate(
        fit_baseline("itemknn", data, neighbours=4, **found.settings), data, "validation", metrics=["ndcg@10"], progress=False
    )
    assert max(found.trials["ndcg@10"].to_pylist()) == expected.metrics["ndcg@10"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"shrink": [1, 2]}, r"search space of shrink is \[1, 2\]; it must be one of choice, uniform, log_uniform"),
        ({"shrink": {"normal": [0, 1]}}, "search space of shrink is"),
        ({"shrink": {"choice": []}}, "shrink: choice is .*non-empty"),
        ({"shrink": {"uniform": [2, 1]}}, r"shrink: uniform is \[2, 1\]; it must be \[lowest, highest\]"),
        ({"shrink": {"uniform": [1, "2"]}}, "two numbers"),
        ({"shrink": {"log_uniform": [0, 1]}}, "both numbers must be above 0"),
        ({"shrnk": {"choice": [1]}}, "no setting 'shrnk'; did you mean 'shrink"),
    ],
)
def test_spaces_that_cannot_be_read(data, space, message):
    with pytest.raises(ValueError, match=message):
        tune("itemknn", data, trials=2, space=space, progress=False)


def test_tuning_needs_a_budget(data):
    with pytest.raises(ValueError, match="trials is 0; it must be 1 or more"):
        tune("ease", data, trials=0)


def test_draws_stay_in_their_range():
    space = {"a": {"uniform": [1, 3]}, "b": {"log_uniform": [0.01, 1.0]}, "c": {"choice": ["x", None]}}
    drawn = [draw(space, np.random.default_rng(seed)) for seed in range(100)]
    assert {point["a"] for point in drawn} == {1, 2, 3}
    assert all(0.01 <= point["b"] <= 1 for point in drawn)
    assert 30 <= sum(point["b"] < 0.1 for point in drawn) <= 70, "even in the logarithm"
    assert {point["c"] for point in drawn} == {"x", None}
