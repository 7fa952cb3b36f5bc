"""Sums of standardized scores."""

import numpy as np
import pytest

from modeling_cllm4rec.baselines import baseline_settings, fit_baseline, tune
from modeling_cllm4rec.baselines.ensemble import EnsembleRecommender
from modeling_cllm4rec.baselines.popularity import PopularityRecommender
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
    with pytest.raises(ValueError, match="'ease.itemknn' has no setting 'shrink'; known are ease, itemknn"):
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


def test_each_is_searched_for_by_itself(data):
    with pytest.raises(
        ValueError, match=r"settings of ease\+ials are tuned for one baseline at a time; call tune for each of ease, ials"
    ):
        tune("ease+ials", data, trials=2)


def test_what_cannot_be_summed():
    four, five = (PopularityRecommender(np.arange(items)) for items in (4, 5))
    with pytest.raises(ValueError, match="recommenders has 1 of them; a sum needs two or more"):
        EnsembleRecommender([four])
    with pytest.raises(ValueError, match=r"catalogues of \[4, 5\] items; fit all of them on the same data"):
        EnsembleRecommender([four, five])
