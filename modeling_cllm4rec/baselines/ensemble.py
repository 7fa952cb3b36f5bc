"""Sum of the standardized scores of several baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.evaluation.evaluator import Recommender, Searcher


class EnsembleRecommender:
    """Scores items by the sum of the scores of several recommenders, all with the same weight.

    The scores of a recommender for one history are standardized over the catalogue (mean 0, variance 1), so that a recommender
    of larger scores does not outweigh the others. A recommender with equal scores for all items adds nothing.

    Args:
        recommenders: at least two, of one catalogue; all of them score the catalogue.

    Raises:
        InputError: there are fewer than two, the catalogues have different sizes, or one of them has no scores.
    """

    def __init__(self, recommenders: Sequence[Recommender | Searcher]) -> None:
        if len(recommenders) < 2:
            raise InputError(f"recommenders has {len(recommenders)} of them; a sum needs two or more")
        sizes = [recommender.num_items for recommender in recommenders]
        if len(set(sizes)) > 1:
            raise InputError(f"recommenders score catalogues of {sizes} items; fit all of them on the same data")
        for recommender in recommenders:
            if not hasattr(recommender, "score_histories"):
                raise InputError(
                    f"recommenders has a {type(recommender).__name__}, which has lists and no scores; a sum needs scores"
                )
        self.recommenders = tuple(cast(Recommender, recommender) for recommender in recommenders)
        self.num_items = sizes[0]

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) sums of standardized scores, one row per history."""
        total = np.zeros((len(histories.indptr) - 1, self.num_items), dtype=np.float32)
        for recommender in self.recommenders:
            total += standardized(recommender.score_histories(user_indices, histories))
        return total


def standardized(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (batch, J) scores with mean 0 and variance 1 in each row; a row of equal scores becomes zeros.

    >>> standardized(np.array([[1.0, 3.0], [5.0, 5.0]], dtype=np.float32)).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True))
    # Equal scores are found by comparison, because the rounding of the mean leaves a tiny deviation.
    equal = scores.min(axis=1, keepdims=True) == scores.max(axis=1, keepdims=True)
    return np.where(equal, 0.0, centred / np.where(equal, 1.0, deviation)).astype(np.float32)
