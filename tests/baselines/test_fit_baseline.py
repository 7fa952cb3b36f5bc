"""All baselines by name: what they have in common."""

import builtins
import importlib.util
import json
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling_cllm4rec import baselines
from modeling_cllm4rec.baselines import BASELINES, baseline_settings, fit_baseline, tune
from modeling_cllm4rec.baselines.registry import baseline, get_baseline
from modeling_cllm4rec.baselines.tuning import draw
from modeling_cllm4rec.core.top_items import top_candidates
from modeling_cllm4rec.evaluation.evaluator import evaluate, select_users
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

QUICK = {
    "ials": {"factors": 8, "iterations": 5, "progress": False},
    "multvae": {"hidden_size": 32, "latent_size": 16, "epochs": 4, "progress": False},
    "sasrec": {"size": 16, "heads": 1, "epochs": 2, "progress": False},
    "sasrec-sampled": {"size": 16, "heads": 1, "epochs": 2, "num_samples": 16, "progress": False},
}


@pytest.fixture(scope="module")
def fitted(data, tiny_backbones):
    """Each baseline whose library is there, fitted on the small world."""
    backbone = str(tiny_backbones["gpt2"])
    tallrec = {"backbone": backbone, "positives": 8, "epochs": 1, "max_history": 2, "max_title_tokens": 6, "progress": False}
    settings = {**QUICK, "textknn": {"encoder": backbone, "progress": False}, "tallrec": tallrec}
    missing = {"ials"} if importlib.util.find_spec("implicit") is None else set()
    return {name: fit_baseline(name, data, seed=3, **settings.get(name, {})) for name in BASELINES if name not in missing}


@pytest.mark.parametrize("name", BASELINES)
def test_scores_any_history(fitted, data, name):
    if name not in fitted:
        pytest.skip("needs implicit")
    recommender = fitted[name]
    assert recommender.num_items == data.num_items
    users = np.array([4, 0, 7])
    histories = histories_from_lists([[1, 5, 3], [], [0]])
    scores = recommender.score_histories(users, histories)
    assert scores.shape == (3, data.num_items) and scores.dtype == np.float32
    assert np.isfinite(scores).all()
    one_by_one = [recommender.score_histories(users[[row]], select_users(histories, np.array([row]))) for row in range(3)]
    assert np.concatenate(one_by_one) == pytest.approx(scores, abs=1e-4)
    unseen = recommender.score_histories(None, histories)
    assert unseen.shape == scores.shape
    if name != "random":
        assert (unseen == scores).all(), "no baseline knows users, only histories"
    scores[:] = 0  # the caller may write into it
    assert recommender.score_histories(None, histories) == pytest.approx(unseen)


@pytest.mark.parametrize("name", BASELINES)
def test_histories_of_another_catalogue_are_refused(fitted, data, name):
    if name in ("random", "popularity"):
        pytest.skip("does not look at the items of a history")
    if name not in fitted:
        pytest.skip("needs implicit")
    with pytest.raises(ValueError, match=f"item indices from 0 to {data.num_items}, but the baseline was fitted on items 0"):
        fitted[name].score_histories(None, histories_from_lists([[0], [data.num_items]]))


@pytest.mark.parametrize("name", ["ials", "multvae", "sasrec-sampled"])
def test_seeds(fitted, data, name):
    if name not in fitted:
        pytest.skip("needs implicit")
    histories = data.histories("train")
    first, same, other = (
        recommender.score_histories(None, histories)
        for recommender in (fitted[name], *(fit_baseline(name, data, seed=seed, **QUICK[name]) for seed in (3, 4)))
    )
    assert first == pytest.approx(same, abs=1e-5)
    assert not np.allclose(first, other, atol=1e-3)


def test_what_a_name_fixes(fitted):
    assert fitted["ease"].recency == 0
    assert fitted["ease-recency"].recency == 0.5
    assert (fitted["ease"].weights == fitted["ease-recency"].weights).all()
    assert "recency" not in baseline_settings("ease-recency") and baseline_settings("ease")["recency"] == 0


def test_settings_that_change_nothing_are_none(data):
    assert "num_samples" in baseline_settings("sasrec-sampled") and "num_samples" not in baseline_settings("sasrec")
    assert "chunk_size" in baseline_settings("sasrec") and "chunk_size" not in baseline_settings("sasrec-sampled")
    with pytest.raises(ValueError, match="the baseline 'sasrec' has no setting 'num_samples'"):
        fit_baseline("sasrec", data, num_samples=64)


def test_unknown_names_and_settings(data):
    with pytest.raises(ValueError, match="there is no baseline 'eas'; did you mean 'ease'"):
        fit_baseline("eas", data)
    with pytest.raises(ValueError, match="'ease' has no setting 'regularisation'; did you mean 'regularization'"):
        fit_baseline("ease", data, regularisation=3.0)
    with pytest.raises(ValueError, match="'random' has no setting 'shrink'; it has none"):
        fit_baseline("random", data, shrink=3.0)
    with pytest.raises(ValueError, match="'sasrec-sampled' fixes loss='sampled'; remove loss"):
        fit_baseline("sasrec-sampled", data, loss="full")
    with pytest.raises(ValueError, match="there is no baseline 'bpr'"):
        tune("bpr", data)


def test_a_missing_library_matters_to_one_baseline_only(data, monkeypatch):
    real = builtins.__import__

    def without_implicit(name, *rest, **more):
        if name.partition(".")[0] == "implicit":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_implicit)
    with pytest.raises(ImportError, match=r'"ials" needs the library implicit: pip install implicit threadpoolctl'):
        fit_baseline("ials", data)
    fit_baseline("popularity", data)


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
    fitted = fit_baseline("multvae", data, **QUICK["multvae"], metric="recall@5+ndcg@10")
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
        ({"shrink": {"choice": []}}, "shrink: choice is .*not empty"),
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


def test_the_packaged_spaces_fit_the_baselines():
    for name, row in BASELINES.items():
        baselines.check_settings(name, row.space)


def test_the_rows_of_a_table_are_in_this_order():
    first = ["random", "popularity", "itemknn", "ease", "ease-recency", "ials", "multvae", "sasrec", "sasrec-sampled"]
    assert list(BASELINES)[: len(first)] == first


class OfOnesOwn:
    """A baseline of a user's own: the number of users of an item, with a weight."""

    def __init__(self, counts):
        self.counts, self.num_items = counts, len(counts)

    @classmethod
    def fit(cls, data, *, seed=0, weight=2.0):
        return cls(weight * np.bincount(data.histories("train").items, minlength=data.num_items).astype(np.float32))

    def score_histories(self, user_indices, histories):
        return np.tile(self.counts, (len(histories.indptr) - 1, 1))


def test_a_registered_class_is_known_everywhere(data):
    """One decorator: settings, title and summary, the names of benchmark and evaluate."""
    from modeling_cllm4rec.benchmark.models import model_names, title

    about = {"title": "My own", "summary": "a test", "deterministic": True, "space": {"weight": {"uniform": [1.0, 3.0]}}}
    baseline("my-own", **about)(OfOnesOwn)
    try:
        assert baseline_settings("my-own") == {"weight": 2.0}
        assert "my-own" in model_names() and title("my-own+ease") == "My own + EASE"
        scores = fit_baseline("my-own", data, weight=3.0).score_histories(None, histories_from_lists([[0]]))
        assert np.array_equal(scores[0], 3 * np.bincount(data.histories("train").items, minlength=data.num_items))
        with pytest.raises(ValueError, match="the name 'ease' of a baseline is taken"):
            baseline("ease", title="x", summary="y")(OfOnesOwn)
    finally:
        del BASELINES["my-own"]


def test_a_class_by_its_module(data, monkeypatch):
    module = types.ModuleType("mine")
    module.OfOnesOwn = OfOnesOwn
    module.no_fit = object()
    monkeypatch.setitem(sys.modules, "mine", module)
    assert fit_baseline("mine:OfOnesOwn", data, weight=1.0).num_items == data.num_items
    assert get_baseline("mine:OfOnesOwn").title == "OfOnesOwn"
    with pytest.raises(ValueError, match="has no setting 'wait'; did you mean 'weight'"):
        fit_baseline("mine:OfOnesOwn", data, wait=1.0)
    for name, message in (
        ("nowhere:A", "there is no module 'nowhere'; put its folder on PYTHONPATH"),
        ("mine:Absent", "the module 'mine' has no 'Absent'"),
        ("mine:no_fit", "no_fit has no fit"),
        ("popularty", "there is no baseline 'popularty'; did you mean 'popularity'"),
    ):
        with pytest.raises(ValueError, match=message):
            get_baseline(name)


def test_a_file_of_ranked_lists_is_evaluated_exactly(data, tmp_path):
    """Popularity written as lists by user has the metrics of popularity itself."""
    popularity = fit_baseline("popularity", data)
    histories = data.histories("train")
    rows = np.split(histories.items, histories.indptr[1:-1])
    best = top_candidates(torch.from_numpy(popularity.score_histories(None, histories)), rows, 10, None)[0]
    user, place = np.nonzero(best >= 0)
    ids = {
        "user_id": data.users["user_id"].take(pa.array(user)),
        "item_id": data.items["item_id"].take(pa.array(best[user, place])),
    }
    shuffled = np.random.default_rng(0).permutation(len(user))
    for by, values in (("rank", place + 1), ("score", -place.astype(float))):
        pq.write_table(pa.table({**ids, by: values}).take(pa.array(shuffled)), tmp_path / f"{by}.parquet")
        lists = fit_baseline(f"lists:{tmp_path / by}.parquet", data)
        shared = {"metrics": ["recall@10", "ndcg@10"], "progress": False, "n_resamples": 0}
        assert evaluate(lists, data, "test", **shared).metrics == evaluate(popularity, data, "test", **shared).metrics
    few = pa.table({**ids, "rank": place + 1}).slice(0, 10)
    pq.write_table(few, tmp_path / "few.parquet")
    with pytest.raises(ValueError, match=r"few.parquet has no list for \d+ of \d+ users"):
        evaluate(fit_baseline(f"lists:{tmp_path / 'few.parquet'}", data), data, "test", metrics=["recall@10"], progress=False)
    pq.write_table(few.drop_columns(["rank"]), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="ranked lists need 'rank' or 'score'"):
        fit_baseline(f"lists:{tmp_path / 'none.parquet'}", data)
