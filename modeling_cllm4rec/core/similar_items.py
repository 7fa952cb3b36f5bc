"""Similar items: the cosine between the model's own vectors of items, exactly, in pieces of the catalogue.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .top_items import items_per_piece, top_candidates

VECTORS_AT_ONCE = 65536
"""Vectors of the catalogue in memory at one time."""


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return (rows, K) float32 vectors of length 1; a vector of zeros stays one.

    Example:
        >>> unit_vectors(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def most_similar(model: Any, items: np.ndarray, k: int, candidates: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the k items whose vectors have the largest cosine with those of each item, which is left out itself.

    Args:
        model: a `RecommenderModel`.
        items: (n,) item indices.
        k: how many, at most the number of candidates.
        candidates: (candidates,) sorted item indices to choose from; None means the whole catalogue.

    Returns:
        (n, k) item indices, best first and of equal ones the lower index first, -1 where there are fewer, and their (n, k)
        float32 cosines.
    """
    targets = unit_vectors(model.item_vectors(items))
    size = min(items_per_piece(len(items)), VECTORS_AT_ONCE)

    def pieces() -> Iterator[torch.Tensor]:
        for start in range(0, model.num_items, size):
            vectors = unit_vectors(model.item_vectors(np.arange(start, min(start + size, model.num_items))))
            yield torch.from_numpy(targets @ vectors.T)

    return top_candidates(pieces(), list(items[:, None]), k, candidates)


__all__ = ["most_similar", "unit_vectors"]
