"""Percentile bootstrap intervals over users, and over training seeds where there are several."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from modeling_cllm4rec.core.errors import InputError

FloatArray = npt.NDArray[np.float64]

DRAWS_PER_BATCH = 1 << 22
"""Largest number of user draws in memory at one time, unless one resample has more: about 70 MB."""


def bootstrap_interval(
    values: FloatArray, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean over users (`scipy.stats.bootstrap`).

    The same seed draws the same users for each metric. Time grows with users x resamples, memory with users alone.
    With several training seeds, each resample draws seeds as well as users, so that the interval holds for another training, and
    not only for other users. Of two or three seeds it is still too short, because so few show little of their spread.

    Args:
        values: (users,) one metric, without NaN; or (seeds, users), one row for each training seed.
        confidence: confidence level, in (0, 1).
        n_resamples: number of resamples.
        seed: random seed.

    Returns:
        Lower and upper end.

    Raises:
        InputError: if there is no value, a value is NaN or infinite, or an argument is out of its range.

    >>> bootstrap_interval(np.full(5, 0.25))
    (0.25, 0.25)
    """
    values = np.asarray(values, dtype=np.float64)
    _check(values, confidence, n_resamples)
    if values.ndim == 2 and len(values) > 1:
        return _interval_over_seeds([values], confidence, n_resamples, seed)
    values = values.reshape(-1)
    # One value has no spread to resample, and scipy refuses it.
    if values.size == 1:
        return float(values[0]), float(values[0])
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=n_resamples,
        batch=max(1, DRAWS_PER_BATCH // values.size),
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def paired_difference_interval(
    first: FloatArray, second: FloatArray, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Compute the interval of the mean of `first - second`, two recommenders measured on the same users in the same order.

    The difference is significant if the interval excludes 0. A comparison of two separate intervals would miss most differences.
    Other arguments and errors as `bootstrap_interval`; the two may have different numbers of training seeds.

    >>> paired_difference_interval(np.array([0.5, 1.0]), np.array([0.25, 0.75]))
    (0.25, 0.25)
    """
    matrices = [np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    if matrices[0].shape[1:] != matrices[1].shape[1:]:
        raise InputError(
            f"first and second must be of the same users, got shapes {np.shape(first)} and {np.shape(second)}; "
            "evaluate both recommenders under one protocol"
        )
    if max(map(len, matrices)) == 1:
        return bootstrap_interval((matrices[0] - matrices[1])[0], confidence, n_resamples, seed)
    for matrix in matrices:
        _check(matrix, confidence, n_resamples)
    return _interval_over_seeds(matrices, confidence, n_resamples, seed)


def _interval_over_seeds(matrices: list[FloatArray], confidence: float, n_resamples: int, seed: int) -> tuple[float, float]:
    """Compute the interval of the mean of the first (seeds, users) matrix, minus that of the second if there is one.

    A resample has the same users in both, and seeds of its own in each.
    """
    random = np.random.default_rng(seed)
    users = matrices[0].shape[1]
    means = np.empty(n_resamples)
    for number in range(n_resamples):
        drawn = random.integers(users, size=users)
        of_seeds = [matrix[:, drawn].mean(1) for matrix in matrices]
        parts = [float(values[random.integers(len(values), size=len(values))].mean()) for values in of_seeds]
        means[number] = parts[0] - sum(parts[1:])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check(values: FloatArray, confidence: float, n_resamples: int) -> None:
    if values.ndim not in (1, 2) or not values.size:
        raise InputError(f"values must be a non-empty (users,) or (seeds, users) array, got shape {values.shape}")
    if not np.isfinite(values).all():
        wrong = int((~np.isfinite(values)).sum())
        raise InputError(f"values has {wrong} NaN or infinite entries of {values.size}; exclude those users first")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence}")
    if n_resamples < 1:
        raise InputError(f"n_resamples must be at least 1, got {n_resamples}")
