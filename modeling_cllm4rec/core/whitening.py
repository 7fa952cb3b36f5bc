"""Whitening of text vectors: uncorrelated directions of mean 0 and variance 1.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def whitening(vectors: npt.NDArray[np.floating], size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean and the matrix that turn vectors v into uncorrelated ones: (v - mean) @ matrix.

    The directions are the principal components, scaled to variance 1. So all directions of the texts count the same, and not only
    the few large ones that most items share.

    Args:
        vectors: (n, d), without rows that do not count.
        size: number of directions, K.

    Returns:
        (d,) and (d, K); columns are zeros beyond the directions in which the vectors vary.

    >>> vectors = np.array([[1, 0], [-1, 0], [0, 3], [0, -3]], dtype=np.float32)
    >>> mean, matrix = whitening(vectors, 3)
    >>> (((vectors - mean) @ matrix) ** 2).round().tolist()
    [[0.0, 2.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]
    """
    given = np.asarray(vectors, dtype=np.float64)
    mean = given.mean(axis=0)
    _, values, directions = np.linalg.svd(given - mean, full_matrices=False)
    kept = min(size, int((values > values[:1] * 1e-6).sum()))  # a direction without variance cannot be scaled
    matrix = np.zeros((given.shape[1], size))
    matrix[:, :kept] = directions[:kept].T / values[:kept] * np.sqrt(len(given))
    return mean, matrix


__all__ = ["whitening"]
