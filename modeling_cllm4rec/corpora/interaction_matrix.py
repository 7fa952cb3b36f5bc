"""Histories as sparse matrices, for fitting and scoring of linear baselines."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData

FitOn = Literal["train", "train+validation"]
"""Splits that a baseline is fitted on. A baseline with early stopping on validation is fitted on `train` only."""


class ItemWeights(NamedTuple):
    """A linear model of items from items.

    Attributes:
        matrix: (J, J) dense or `scipy.sparse`; entry (i, j) is added to the score of item j for item i of a history.
        recency: the item t steps before the last one of a history has the weight (1 + t) ** -recency.
        max_history: number of last items of a history that count; None for all.
    """

    matrix: Any
    recency: float = 0.0
    max_history: int | None = None


def fitting_histories(data: RecommendationData, fit_on: FitOn) -> Histories:
    """Return the histories that a baseline is fitted on.

    Raises:
        InputError: `fit_on` has another value.
    """
    if fit_on not in get_args(FitOn):
        raise InputError(f"fit_on is {fit_on!r}; allowed are {' and '.join(map(repr, get_args(FitOn)))}")
    return data.histories(*fit_on.split("+"))


def interaction_matrix(histories: Histories, num_items: int, recency: float = 0.0) -> sparse.csr_array:
    """Return the matrix with one row per history; an item that occurs twice is counted twice.

    Args:
        histories: (batch,) histories, oldest item first.
        num_items: size of the catalogue, J.
        recency: the item t steps before the last one has the value (1 + t) ** -recency, which is 1 for recency 0.

    Returns:
        (batch, J) float32.

    Raises:
        InputError: an item index is not in [0, J).

    >>> histories = Histories(np.array([0, 2]), np.array([2, 0], dtype=np.int32))
    >>> interaction_matrix(histories, 4, recency=1.0).toarray().tolist()
    [[1.0, 0.0, 0.5, 0.0]]
    """
    check_items(histories, num_items)
    indptr = np.asarray(histories.indptr, dtype=np.int64)
    values: npt.NDArray[np.float32] = np.ones(len(histories.items), dtype=np.float32)
    if recency:
        steps_back = np.repeat(indptr[1:], np.diff(indptr)) - 1 - np.arange(len(values))
        values = ((1.0 + steps_back) ** -recency).astype(np.float32)
    return sparse.csr_array((values, np.array(histories.items), indptr), shape=(len(indptr) - 1, num_items))


def check_items(histories: Histories, num_items: int) -> None:
    """Check that histories are of a catalogue of `num_items` items.

    Raises:
        InputError: an item index is not in [0, num_items).
    """
    items = histories.items
    if len(items) and not 0 <= items.min() <= items.max() < num_items:
        raise InputError(
            f"histories hold item indices from {items.min()} to {items.max()}, but the baseline was fitted on items 0 to "
            f"{num_items - 1}; give histories of the same catalogue"
        )
