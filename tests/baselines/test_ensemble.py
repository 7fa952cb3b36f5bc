"""Sums of standardized scores."""

import json

import numpy as np
import pytest

from modeling_cllm4rec.baselines import baseline_settings, fit_baseline, tune
from modeling_cllm4rec.baselines.ensemble import WEIGHTS, EnsembleRecommender, standardized
from modeling_cllm4rec.baselines.popularity import PopularityRecommender
from modeling_cllm4rec.baselines.validation import validate
from modeling_cllm4rec.core.errors import MemoryLimitError
from modeling_cllm4rec.evaluation.ranking import histories_from_lists


def test_sum_of_standardized_rows(data):
    names, settings = ("ease", "itemknn"), {"ease": {"regularization": 7.0}, "itemknn": {"neighbours": 5}}
    histories = histories_from_lists([[1, 5, 3], [2]])
    singles = [fit_baseline(name, data, **settings[name]).score_histories(None, histories) for name in names]
    wanted = sum((one - one.mean(1, keepdims=True)) / one.std(1, keepdims=True) for one in singles)
    scores = fit_baseline("ease+itemknn", data, **settings).score_histories(None, histories)
    assert scores.dtype == np.float32 and scores == pytest.approx(wanted, abs=1e-4)


def test_who_scores_all_items_alike_adds_nothing(data):
    """EASE scores nothing for a user without a history: popularity alone is left."""
    scores = fit_baseline("popularity+ease", data).score_histories(None, histories_from_lists([[]]))[0]
    plain = PopularityRecommender.fit(data).scores
    assert scores == pytest.approx((plain - plain.mean()) / plain.std(), abs=1e-5)


def test_seed_reaches_each(data):
    histories = histories_from_lists([[1, 5, 3]])
    first, same, other = (fit_baseline("ease+random", data, seed=seed).score_histories(None, histories) for seed in (1, 1, 2))
    assert (first == same).all() and (first != other).any()


def test_settings_are_named_by_baseline(data):
    assert baseline_settings("ease+itemknn")["itemknn"]["shrink"] == 20.0
    with pytest.raises(ValueError, match="'ease' has no setting 'shrink'"):
        fit_baseline("ease+itemknn", data, ease={"shrink": 3.0})
    with pytest.raises(ValueError, match="'ease.itemknn' has no setting 'shrink'; known are ease, itemknn, weights"):
        fit_baseline("ease+itemknn", data, shrink=3.0)
    with pytest.raises(ValueError, match="ease is 3.0; it must be a mapping of the settings of ease"):
        fit_baseline("ease+itemknn", data, ease=3.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ease+ease", "'ease.ease' names ease twice; name each once"),
        ("ease+itemkn", "there is no baseline 'itemkn'; did you mean 'itemknn'"),
        ("ease+", "there is no baseline ''"),
    ],
)
def test_names_that_are_none(data, name, message):
    with pytest.raises(ValueError, match=message):
        fit_baseline(name, data)


def test_weights_by_hand(data):
    histories = histories_from_lists([[1, 5, 3], [2]])
    ease, itemknn = (standardized(fit_baseline(name, data).score_histories(None, histories)) for name in ("ease", "itemknn"))
    weighted = fit_baseline("ease+itemknn", data, weights={"itemknn": 0.25})
    assert weighted.score_histories(None, histories) == pytest.approx(ease + 0.25 * itemknn, abs=1e-5)
    alone = fit_baseline("ease+itemknn", data, weights={"ease": 0})
    assert alone.score_histories(None, histories) == pytest.approx(itemknn, abs=1e-5)


def test_weights_are_searched_for_on_validation(data):
    """Each weight is the best of its values while the others stay, as a search without any cache finds them."""
    found = tune("popularity+ease+itemknn", data, trials=80, metric="recall@10", progress=False)
    assert found.settings["weights"]["popularity"] == 1.0
    values = found.trials["recall@10"].to_pylist()
    settings = [json.loads(text) for text in found.trials["settings"].to_pylist()]
    assert settings[0] == {"weights": {"popularity": 1.0, "ease": 1.0, "itemknn": 1.0}} and len(set(map(str, settings))) <= 80
    for row in (0, 7, values.index(max(values))):
        again = fit_baseline("popularity+ease+itemknn", data, **settings[row])
        assert validate(again, data, "recall@10") == pytest.approx(values[row])
    assert settings[values.index(max(values))] == found.settings
    best = found.settings["weights"]
    for name in ("ease", "itemknn"):
        for weight in WEIGHTS:
            other = fit_baseline("popularity+ease+itemknn", data, weights={**best, name: weight})
            assert validate(other, data, "recall@10") <= max(values)


def test_the_budget_of_weights_is_kept(data):
    found = tune(
        "popularity+ease+itemknn", data, trials=5, metric="recall@10", progress=False, fixed={"ease": {"regularization": 7.0}}
    )
    assert found.trials.num_rows == 5 and found.trials["chosen"].to_pylist().count(True) == 1


def test_search_of_weights_refuses(data, monkeypatch):
    with pytest.raises(
        ValueError, match=r"the search of the sum ease\+ials is for its weights; tune the settings of each of ease, ials"
    ):
        tune("ease+ials", data, trials=2, space={"ease": {}})
    with pytest.raises(ValueError, match="trials is 0; it must be 1 or more"):
        tune("ease+itemknn", data, trials=0)
    monkeypatch.setattr("modeling_cllm4rec.baselines.ensemble.MAX_MEMORY_GIB", 1e-6)
    with pytest.raises(MemoryLimitError, match=r"the scores of 2 baselines for 60 users need .* set max_users to 3 or fewer"):
        tune("ease+itemknn", data, trials=2)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"ials": 1.0}, "weights of 'ease.itemknn' names 'ials'; known are ease, itemknn"),
        ({"ease": -1.0}, "weights of 'ease.itemknn': ease is -1.0; it must be a number, 0 or more"),
        ({"ease": True}, "ease is True; it must be a number, 0 or more"),
        (0.5, "weights is 0.5; it must be a mapping of the baselines to their weights"),
        ({"ease": 0, "itemknn": 0}, r"weights are \[0, 0\]; each must be 0 or more, and one above 0"),
    ],
)
def test_weights_that_are_none(data, weights, message):
    with pytest.raises(ValueError, match=message):
        fit_baseline("ease+itemknn", data, weights=weights)


def test_what_cannot_be_summed():
    four, five = (PopularityRecommender(np.arange(items)) for items in (4, 5))
    with pytest.raises(ValueError, match="recommenders has 1 of them; a sum needs two or more"):
        EnsembleRecommender([four])
    with pytest.raises(ValueError, match=r"catalogues of \[4, 5\] items; fit all of them on the same data"):
        EnsembleRecommender([four, five])
    with pytest.raises(ValueError, match="weights has 1 numbers for 2 recommenders; give one for each"):
        EnsembleRecommender([four, four], [1.0])
