"""Several baselines as one: the sum of their scores, each brought to one scale by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.evaluation.evaluator import Recommender


class EnsembleRecommender:
    """Scores items by the sum of what several recommenders score, all with the same weight.

    A recommender's scores of one history are standardized over the catalogue (mean 0, variance 1), so that no scale outweighs
    another. Who scores all items alike adds nothing.

    Args:
        recommenders: at least two, of one catalogue.

    Raises:
        InputError: fewer than two, or recommenders of catalogues of different sizes.
    """

    def __init__(self, recommenders: Sequence[Recommender]) -> None:
        if len(recommenders) < 2:
            raise InputError(f"recommenders has {len(recommenders)} of them; a sum needs two or more")
        sizes = [recommender.num_items for recommender in recommenders]
        if len(set(sizes)) > 1:
            raise InputError(f"recommenders score catalogues of {sizes} items; fit all of them on the same data")
        self.recommenders, self.num_items = tuple(recommenders), sizes[0]

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """(batch, J) sums of standardized scores, one row per history."""
        total = np.zeros((len(histories.indptr) - 1, self.num_items), dtype=np.float32)
        for recommender in self.recommenders:
            total += standardized(recommender.score_histories(user_indices, histories))
        return total


def standardized(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(batch, J) scores with mean 0 and variance 1 in each row; a row of equal scores becomes zeros.

    >>> standardized(np.array([[1.0, 3.0], [5.0, 5.0]], dtype=np.float32)).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    spread = np.sqrt(np.square(centred).mean(axis=1, keepdims=True))
    alike = scores.min(axis=1, keepdims=True) == scores.max(axis=1, keepdims=True)  # exactly: a mean may be a rounding off
    return np.where(alike, 0.0, centred / np.where(alike, 1.0, spread)).astype(np.float32)
