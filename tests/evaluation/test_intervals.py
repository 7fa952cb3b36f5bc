"""Bootstrap intervals: determinism, bounded memory, coverage of a known mean, frozen values."""

import numpy as np
import pytest
from scipy import stats

from modeling_cllm4rec.evaluation import intervals
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval, paired_difference_interval


def test_same_seed_same_interval():
    values = np.random.default_rng(0).random(200)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_equals_scipy():
    values = np.random.default_rng(1).beta(1, 5, size=400)
    ours = bootstrap_interval(values, n_resamples=10_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=5).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=6e-4)  # the standard error is .0070


def test_equals_the_normal_interval_for_many_users():
    values = np.random.default_rng(2).random(20_000)
    half = 1.96 * values.std() / np.sqrt(values.size)
    expected = (values.mean() - half, values.mean() + half)
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.1 * half)


def test_holds_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(3)
    held = 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.exponential(1.0, size=150), n_resamples=400, seed=trial)
        held += low <= 1.0 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_wider_confidence_wider_interval():
    values = np.random.default_rng(4).random(50)
    low, high = bootstrap_interval(values, confidence=0.5)
    wide_low, wide_high = bootstrap_interval(values, confidence=0.99)
    assert wide_low < low < values.mean() < high < wide_high


@pytest.mark.parametrize(
    ("users", "seed", "expected"),
    [
        (1, 0, (0.0, 0.0)),
        (7, 2, (0.14593352192362113, 0.5659830268741158)),
        (50, 0, (0.4115594059405941, 0.5645643564356436)),
        (1429, 0, (0.4813334465007033, 0.5076741334035433)),
        (5000, 3, (0.4863456930693069, 0.5024674752475248)),
    ],
)
def test_published_intervals_do_not_change(users, seed, expected):
    """The values are those of the first implementation, which drew the same users without scipy."""
    values = np.arange(users) * 7919 % 101 / 101
    assert bootstrap_interval(values, n_resamples=500, seed=seed) == pytest.approx(expected, rel=0, abs=1e-15)


@pytest.mark.parametrize("draws_per_batch", [64, 1000, 5000])
def test_batches_do_not_change_the_interval(monkeypatch, draws_per_batch):
    values = np.random.default_rng(5).random(500)
    expected = bootstrap_interval(values, n_resamples=4000)
    monkeypatch.setattr(intervals, "DRAWS_PER_BATCH", draws_per_batch)
    assert bootstrap_interval(values, n_resamples=4000) == pytest.approx(expected, rel=0, abs=1e-15)


def test_paired_difference_is_the_interval_of_the_differences():
    rng = np.random.default_rng(6)
    first = rng.random(300)
    second = first - 0.01 + rng.normal(0, 0.02, size=300)
    low, high = paired_difference_interval(first, second)
    assert (low, high) == bootstrap_interval(first - second)
    assert 0 < low < 0.01 < high < 0.02  # seen as better, although the separate intervals overlap
    assert bootstrap_interval(first)[0] < bootstrap_interval(second)[1]


def test_paired_difference_of_equals_is_zero():
    values = np.random.default_rng(7).random(30)
    assert paired_difference_interval(values, values) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": np.array([])}, "values must be a non-empty"),
        (
            {"values": np.ones((2, 2, 2))},
            r"values must be a non-empty \(users,\) or \(seeds, users\) array, got shape \(2, 2, 2\)",
        ),
        ({"values": np.array([1.0, np.nan])}, "values has 1 NaN or infinite entries of 2"),
        ({"values": np.ones(2), "confidence": 95}, "confidence must be between 0 and 1, got 95"),
        ({"values": np.ones(2), "n_resamples": 0}, "n_resamples must be at least 1, got 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**arguments)


def test_pairs_must_be_of_the_same_users():
    with pytest.raises(ValueError, match=r"must be of the same users, got shapes \(2,\) and \(3,\)"):
        paired_difference_interval(np.ones(2), np.ones(3))


def test_several_seeds_widen_the_interval_by_their_spread():
    rng = np.random.default_rng(8)
    users = rng.normal(0.5, 0.01, size=400)
    shifts = np.array([-0.1, 0.0, 0.1])
    low, high = bootstrap_interval(users + shifts[:, None], n_resamples=4000)
    # The mean of three draws from three shifts is in [-.1, .1]; both ends have the probability 1/27, above 2.5%.
    assert (low, high) == pytest.approx((0.4, 0.6), abs=0.005)
    same = bootstrap_interval(np.stack([users, users]), n_resamples=4000)
    assert same == pytest.approx(bootstrap_interval(users, n_resamples=4000), abs=2e-4)
    assert bootstrap_interval(users[None]) == bootstrap_interval(users)


def test_a_difference_of_several_seeds_pairs_users_and_draws_seeds_of_each():
    rng = np.random.default_rng(9)
    users = rng.random(500)
    ours = users + np.array([0.02, 0.03, 0.04])[:, None]
    low, high = paired_difference_interval(ours, users[None], n_resamples=4000)
    assert (low, high) == pytest.approx((0.02, 0.04), abs=1e-6)  # the users cancel: only our seeds differ
    wider = paired_difference_interval(ours, users + np.array([0.0, 0.01])[:, None], n_resamples=4000)
    # The lowest value, .02 - .01, has the probability 1 / 27 x 1 / 4, below 2.5%; the next one is (.07 - .03) / 3.
    assert wider == pytest.approx((0.04 / 3, 0.11 / 3), abs=1e-6)
    with pytest.raises(ValueError, match=r"got shapes \(3, 500\) and \(2, 400\)"):
        paired_difference_interval(ours, np.zeros((2, 400)))
    with pytest.raises(ValueError, match="values has 1 NaN or infinite entries of 1500"):
        paired_difference_interval(np.where(ours == ours[1, 7], np.nan, ours), users)
