"""Reasons for a recommendation: the items of the history that are nearest to it in the model's own vectors."""

from __future__ import annotations

import numpy as np

from modeling_cllm4rec.core.recommender import RecommenderModel


def nearest_in_history(
    model: RecommenderModel, items: np.ndarray, history: np.ndarray, count: int = 2
) -> list[list[tuple[int, float]]]:
    """Find the items of the history whose vectors are nearest to each item.

    Args:
        items: item indices; history: item indices, which may be none.
        count: how many for each, fewer where the history is shorter.

    Returns:
        For each item, (item index of the history, cosine) with the highest cosine first; the item itself is left out.
    """
    others = np.unique(history)
    if not len(others) or not len(items):
        return [[] for _ in items]
    cosines = _unit(model.item_vectors(items)) @ _unit(model.item_vectors(others)).T
    cosines[items[:, None] == others[None]] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return [
        [(int(others[place]), float(row[place])) for place in places if row[place] > -np.inf]
        for row, places in zip(cosines, order, strict=True)
    ]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
