"""Bins of integers: of items by popularity, and of users by the length of their history."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

COLD = 5
"""Items with fewer training interactions have a separate bin."""
QUARTERS = (0.25, 0.5, 0.75)


class Bin(NamedTuple):
    """Integers from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def label(self) -> str:
        """Name, such as `5-9` or `5`."""
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def quarter_bins(values: npt.NDArray[np.integer]) -> list[Bin]:
    """Return four bins of about equal numbers of values; fewer if many values are equal.

    >>> quarter_bins(np.array([1, 1, 1, 2, 3, 4, 5, 9]))
    [Bin(low=1, high=1), Bin(low=2, high=2), Bin(low=3, high=4), Bin(low=5, high=9)]
    """
    if not len(values):
        return []
    edges = np.unique(np.quantile(values, QUARTERS, method="inverted_cdf").astype(int))
    highs = [*(int(edge) for edge in edges if edge < values.max()), int(values.max())]
    lows = [int(values.min()), *(high + 1 for high in highs[:-1])]
    return [Bin(low, high) for low, high in zip(lows, highs, strict=True)]


def popularity_bins(counts: npt.NDArray[np.integer]) -> list[Bin]:
    """Return bins of items by their training interactions: below 5, and quarters of the other items.

    >>> [part.label for part in popularity_bins(np.array([0, 4, 5, 6, 7, 30]))]
    ['0-4', '5', '6', '7', '8-30']
    """
    counts = np.asarray(counts)
    cold = [Bin(0, COLD - 1)] if (counts < COLD).any() else []
    return cold + quarter_bins(counts[counts >= COLD])
