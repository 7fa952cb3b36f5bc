"""Percentile bootstrap intervals over users."""

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

    Args:
        values: (users,) one metric, without NaN.
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
    if values.ndim != 1 or not values.size:
        raise InputError(f"values must be a non-empty (users,) array, got shape {values.shape}")
    if not np.isfinite(values).all():
        wrong = int((~np.isfinite(values)).sum())
        raise InputError(f"values has {wrong} NaN or infinite entries of {values.size}; exclude those users first")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence}")
    if n_resamples < 1:
        raise InputError(f"n_resamples must be at least 1, got {n_resamples}")
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
    Other arguments and errors as `bootstrap_interval`.

    >>> paired_difference_interval(np.array([0.5, 1.0]), np.array([0.25, 0.75]))
    (0.25, 0.25)
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise InputError(
            f"first and second must be of the same users, got shapes {first.shape} and {second.shape}; "
            "evaluate both recommenders under one protocol"
        )
    return bootstrap_interval(first - second, confidence, n_resamples, seed)
