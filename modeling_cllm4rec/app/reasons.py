"""Reasons for a recommendation: the items of the history that are near it in the model's own vectors, and its score in words."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.core.similar_items import VECTORS_AT_ONCE, unit_vectors

NEAREST_PART, NEAREST_AT_LEAST = 10, 10
"""An item is near another one if it is among the nearest tenth of the catalogue, or the ten nearest of a small one."""
NO_PROBABILITY = "Larger is better. It is no probability: only the order within this list has a meaning."
LN_P = "ln p"


class NearItem(NamedTuple):
    """An item near another one: its item index, the cosine of their vectors, and its rank in the catalogue by that."""

    item: int
    cosine: float
    rank: int


def near_in_history(model: RecommenderModel, items: np.ndarray, history: np.ndarray, count: int = 2) -> list[list[NearItem]]:
    """Find the items of the history that are near each item.

    Near is an item with a positive cosine that is among the nearest of the whole catalogue (`NEAREST_PART`). The cosine alone
    says little: in some models all vectors point the same way, in others even the nearest item of a history is far away.

    Args:
        items: item indices; history: item indices, which may be none.
        count: how many for each at most.

    Returns:
        For each item, those of the history that are near, the nearest first; the item itself is left out.
    """
    others = np.unique(history)
    if not len(others) or not len(items):
        return [[] for _ in items]
    targets = unit_vectors(model.item_vectors(items))
    cosines = targets @ unit_vectors(model.item_vectors(others)).T
    cosines[items[:, None] == others[None]] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(cosines, order, axis=1)
    ranks = _ranks(model, items, targets, best)
    limit = max(NEAREST_AT_LEAST, model.num_items // NEAREST_PART)
    return [
        [
            NearItem(int(others[place]), float(cosine), int(rank))
            for place, cosine, rank in zip(*row, strict=True)
            if cosine > 0 and rank <= limit
        ]
        for row in zip(order, best, ranks, strict=True)
    ]


def _ranks(model: RecommenderModel, items: np.ndarray, targets: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Return the (n, m) ranks, from 1, of (n, m) cosines among those of each of n items with all other items."""
    larger = np.zeros(cosines.shape, np.int64)
    for start in range(0, model.num_items, VECTORS_AT_ONCE):
        rows = np.arange(start, min(start + VECTORS_AT_ONCE, model.num_items))
        all_cosines = targets @ unit_vectors(model.item_vectors(rows)).T
        all_cosines[items[:, None] == rows[None]] = -np.inf
        # A tolerance, because another product of matrices may round the same cosine differently.
        larger += (all_cosines[:, None, :] > cosines[:, :, None] + 1e-6).sum(2)
    return larger + 1


def score_meaning(model: RecommenderModel, hybrid: bool) -> str:
    """Return what the scores of a model say, in a sentence.

    Args:
        hybrid: whether they are sums with those of its linear parts.

    Example:
        >>> score_meaning(lcrec, False)  # doctest: +SKIP
        'ln p is the logarithm of the probability of the item as the next one: -2.3 is 10%, -4.6 is 1%.'
    """
    if hybrid and model.linear_parts is not None:
        parts = len(model.linear_parts.parts)
        return f"The score is that of the language model plus those of {parts} linear models. {NO_PROBABILITY}"
    if model.score_name == LN_P:
        return f"{LN_P} is the logarithm of the probability of the item as the next one: -2.3 is 10%, -4.6 is 1%."
    if model.scores_by_vectors:
        return f"The score is the dot product of the item’s vector and the model’s state after the history. {NO_PROBABILITY}"
    return NO_PROBABILITY


def score_in_words(model: RecommenderModel, rank: int, score: float, hybrid: bool) -> str:
    """Return what the rank and the score of a recommendation say.

    Args:
        hybrid: whether the score is a sum with those of the model's linear parts.

    Example:
        >>> score_in_words(lcrec, 1, -2.3026, False)  # doctest: +SKIP
        'the likeliest of the items to choose from, with a probability of 10.0%'
    """
    likely = model.score_name == LN_P and not hybrid
    first = "the likeliest" if likely else "the best"
    place = f"{first if rank == 1 else f'number {rank}'} of the items to choose from"
    if not likely:
        return f"{place}, with a score of {score:.2f}"
    probability = math.exp(score)
    return f"{place}, with a probability of {f'{probability:.1%}' if probability >= 0.001 else f'{probability:.1e}'}"
