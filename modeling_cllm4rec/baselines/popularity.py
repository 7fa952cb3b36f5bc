"""Popularity and random scores, the lower bounds of every comparison."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.baselines.registry import baseline
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.interaction_matrix import FitOn, fitting_histories

UInt64Array = npt.NDArray[np.uint64]


@baseline("popularity", title="popularity", summary="number of users", deterministic=True, order=1)
class PopularityRecommender:
    """Scores each item by its number of training users, the same for all users.

    Args:
        counts: (J,) number of training users of each item.

    >>> recommender = PopularityRecommender(np.array([3, 0, 5]))
    >>> recommender.score_histories(None, Histories(np.array([0, 1]), np.array([2], dtype=np.int32))).tolist()
    [[3.0, 0.0, 5.0]]
    """

    def __init__(self, counts: npt.NDArray[np.integer]) -> None:
        if np.ndim(counts) != 1 or not np.size(counts):
            raise InputError(f"counts must be a non-empty (items,) array, got shape {np.shape(counts)}")
        self.num_items = len(counts)
        self.scores = np.asarray(counts, dtype=np.float32)

    @classmethod
    def fit(cls, data: RecommendationData, *, seed: int = 0, fit_on: FitOn = "train") -> Self:
        """Count the interactions of a data folder.

        Args:
            seed: unused, because nothing is random.
            fit_on: the splits that are fitted.
        """
        return cls(np.bincount(fitting_histories(data, fit_on).items, minlength=data.num_items))

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) counts, one row per history."""
        return np.tile(self.scores, (len(histories.indptr) - 1, 1))


@baseline("random", title="random", summary="random scores", order=0)
class RandomRecommender:
    """Scores items uniformly at random in [0, 1).

    A row depends only on the seed, the user and the set of items in the history, not on the batch or on earlier calls.

    Args:
        num_items: size of the catalogue, J.
        seed: start of the random numbers.

    >>> histories = Histories(np.array([0, 1, 2]), np.array([2, 2], dtype=np.int32))
    >>> scores = RandomRecommender(num_items=5, seed=1).score_histories(np.array([0, 1]), histories)
    >>> scores.shape, bool((scores[0] == scores[1]).any())
    ((2, 5), False)
    """

    def __init__(self, num_items: int, seed: int = 0) -> None:
        if num_items < 1:
            raise InputError(f"num_items must be at least 1, got {num_items}")
        if seed < 0:
            raise InputError(f"seed must be at least 0, got {seed}")
        self.num_items = num_items
        self.seed = seed

    @classmethod
    def fit(cls, data: RecommendationData, *, seed: int = 0) -> Self:
        """Return random scores for the items of a data folder."""
        return cls(data.num_items, seed)

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) scores; `user_indices` (batch,) may be None for users without an index."""
        item_hashes = _scrambled(np.asarray(histories.items).astype(np.uint64))
        sums: UInt64Array = np.zeros(len(item_hashes) + 1, dtype=np.uint64)
        np.cumsum(item_hashes, out=sums[1:])
        rows: UInt64Array = sums[histories.indptr[1:]] - sums[histories.indptr[:-1]]
        users: UInt64Array = np.zeros(len(rows), dtype=np.uint64)
        if user_indices is not None:
            users = np.asarray(user_indices).astype(np.uint64) + np.uint64(1)
        keys = _scrambled(_scrambled(users + _scrambled(np.array([self.seed], dtype=np.uint64))) + rows)
        items: UInt64Array = np.arange(self.num_items, dtype=np.uint64)
        # A hash of (row, item) in place of a generator makes each score independent of the order of the calls.
        random = _scrambled(keys[:, None] + items)
        return (random >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def _scrambled(numbers: UInt64Array) -> UInt64Array:
    """Apply the SplitMix64 output function, which maps neighbouring 64-bit numbers to unrelated ones."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
