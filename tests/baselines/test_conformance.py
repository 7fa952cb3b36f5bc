"""Conformance of every registered baseline: a new baseline is tested here by being registered.

Settings that make a fit on the synthetic data quick are in `QUICK`; a baseline without an entry is fitted with its defaults.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from modeling_cllm4rec.baselines import BASELINES, baseline_settings, check_settings, fit_baseline
from modeling_cllm4rec.baselines.tuning import draw
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate, select_users
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

QUICK: dict[str, dict[str, Any]] = {
    "ials": {"factors": 8, "iterations": 5},
    "multvae": {"hidden_size": 32, "latent_size": 16, "epochs": 2},
    "sasrec": {"size": 16, "epochs": 2},
    "esasrec": {"size": 16, "epochs": 2, "num_samples": 16},
    "tallrec": {"backbone": "gpt2", "positives": 8, "epochs": 1, "max_history": 2, "max_title_tokens": 6},
}
"""Settings of the tests; a value `gpt2` is replaced by the tiny backbone."""
READS_NO_HISTORY = ("popularity", "random")
READS_USERS = ("random",)
Fit = Callable[..., Any]


@pytest.fixture(scope="module")
def quick_settings(tiny_backbones: dict[str, Path]) -> Callable[[str], dict[str, Any]]:
    def settings(name: str) -> dict[str, Any]:
        progress = {"progress": False} if "progress" in baseline_settings(name) else {}
        values = {**progress, **QUICK.get(name, {})}
        return {key: str(tiny_backbones["gpt2"]) if value == "gpt2" else value for key, value in values.items()}

    return settings


@pytest.fixture(scope="module")
def fitted(data: RecommendationData, quick_settings: Callable[[str], dict[str, Any]]) -> Fit:
    """Fit a baseline once for all tests, or skip the test if a package of an extra is not installed."""
    made: dict[str, Any] = {}

    def fit(name: str) -> Any:
        missing = [package for package in BASELINES[name].packages if find_spec(package) is None]
        if missing:
            pytest.skip(f"needs {missing[0]}")
        if name not in made:
            made[name] = fit_baseline(name, data, seed=3, **quick_settings(name))
        return made[name]

    return fit


# The small world is split at random, of which the baselines that read an order warn; their own tests check that.
pytestmark = pytest.mark.filterwarnings("ignore::modeling_cllm4rec.corpora.history_order.UnorderedHistoriesWarning")
every_baseline = pytest.mark.parametrize("name", BASELINES)


@every_baseline
def test_row(name: str) -> None:
    row = BASELINES[name]
    assert row.title and row.summary and row.summary == row.summary.strip(".")
    assert row.recommender.__doc__ and row.recommender.fit.__doc__
    assert row.source is None, "only a class or a file of a user has a source"


@every_baseline
def test_settings_are_json_and_have_defaults(name: str) -> None:
    """Settings are written into protocols, results and YAML files."""
    settings = baseline_settings(name)
    assert json.loads(json.dumps(settings, default=list)).keys() == settings.keys()
    check_settings(name, settings)
    assert not set(BASELINES[name].fixed) & set(settings)
    parameters = BASELINES[name].parameters
    assert set(BASELINES[name].fixed) | set(BASELINES[name].unused) <= set(parameters)


@every_baseline
def test_search_space_draws_settings(name: str) -> None:
    space = BASELINES[name].space
    for seed in range(5):
        drawn = draw(space, np.random.default_rng(seed))
        check_settings(name, drawn)
        assert json.loads(json.dumps(drawn)) == drawn


@every_baseline
def test_scores(fitted: Fit, data: RecommendationData, name: str) -> None:
    """Finite float32 of (batch, J), for known users and others, also for an empty history and independent of the batch."""
    recommender = fitted(name)
    assert recommender.num_items == data.num_items
    users = np.array([4, 0, 7])
    histories = histories_from_lists([[1, 5, 3], [], [0]])
    scores = recommender.score_histories(users, histories)
    assert scores.shape == (3, data.num_items) and scores.dtype == np.float32
    assert np.isfinite(scores).all()
    single = [recommender.score_histories(users[[row]], select_users(histories, np.array([row]))) for row in range(3)]
    assert np.concatenate(single) == pytest.approx(scores, abs=1e-4)
    anonymous = recommender.score_histories(None, histories)
    assert anonymous.shape == scores.shape
    assert np.array_equal(anonymous, scores) == (name not in READS_USERS), "only histories determine the scores"
    scores[:] = 0  # the caller may write into it
    assert recommender.score_histories(None, histories) == pytest.approx(anonymous)


@every_baseline
def test_ranking_excludes_seen_items_and_breaks_ties_by_index(fitted: Fit, data: RecommendationData, name: str) -> None:
    """The scores of seen items need no mask: the evaluation excludes them, and equal scores are ordered by item index."""
    from modeling_cllm4rec.evaluation.evaluator import top_k

    recommender = fitted(name)
    users = np.arange(4)
    seen = select_users(data.histories("train"), users)
    scores = recommender.score_histories(users, seen)
    ranked = top_k(scores, 10, seen)[0]
    for row in range(len(users)):
        given = seen.items[seen.indptr[row] : seen.indptr[row + 1]]
        values = scores[row].copy()
        values[given] = -np.inf
        assert ranked[row].tolist() == np.lexsort((np.arange(len(values)), -values))[:10].tolist()
        assert not set(ranked[row].tolist()) & set(given.tolist())


@every_baseline
def test_determinism_is_as_declared(
    fitted: Fit, data: RecommendationData, quick_settings: Callable[[str], dict[str, Any]], name: str
) -> None:
    """The same seed gives the same scores. Another seed does so exactly if the baseline is declared as deterministic."""
    histories = data.histories("train")
    first = fitted(name).score_histories(None, histories)
    same, other = (
        fit_baseline(name, data, seed=seed, **quick_settings(name)).score_histories(None, histories) for seed in (3, 4)
    )
    assert first == pytest.approx(same, abs=1e-5)
    assert np.array_equal(first, other) == BASELINES[name].deterministic


@every_baseline
def test_the_test_split_is_not_used(
    data: RecommendationData, fitted: Fit, quick_settings: Callable[[str], dict[str, Any]], name: str
) -> None:
    """A data folder without a test split gives the same scores."""
    histories, whole = data.histories("train"), fitted(name)
    without_test = dataclasses.replace(
        data, interactions=data.interactions.filter(pc.not_equal(data.interactions["split"], "test"))
    )
    other = fit_baseline(name, without_test, seed=3, **quick_settings(name))
    assert whole.score_histories(None, histories) == pytest.approx(other.score_histories(None, histories), abs=1e-5)


@every_baseline
def test_evaluation(fitted: Fit, data: RecommendationData, name: str) -> None:
    report = evaluate(fitted(name), data, "test", metrics=["recall@10"], n_resamples=0, max_users=10, progress=False)
    assert 0 <= report.metrics["recall@10"] <= 1 and report.illegal_items in (None, 0)


@every_baseline
def test_histories_of_another_catalogue_are_refused(fitted: Fit, data: RecommendationData, name: str) -> None:
    if name in READS_NO_HISTORY:
        return
    recommender = fitted(name)
    with pytest.raises(ValueError, match=f"item indices from 0 to {data.num_items}, but the baseline was fitted on items 0"):
        recommender.score_histories(None, histories_from_lists([[0], [data.num_items]]))
