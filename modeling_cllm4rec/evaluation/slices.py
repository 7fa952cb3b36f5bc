"""Slices of the true items of an evaluation, which tell memory from judgement: metrics over the true items of one kind.

A model that repeats what it saw in training is good at items that continue a known transition, or that others took together with
an item of the history. Items that nobody took together with the history need a judgement, for instance of their texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.corpora.interaction_matrix import interaction_matrix

RELATION, POPULARITY, HISTORY_LENGTH = "relation", "popularity", "history_length"
SLICES = {
    RELATION: "by relation of the items that are to be found to the history, as in the training histories",
    POPULARITY: "by popularity of the items that are to be found (training interactions of an item)",
    HISTORY_LENGTH: "by length of the given history (items)",
}
"""Slices -> heading."""
TRANSITION, TOGETHER, APART = "follows the last item", "together with an item", "never together"
"""Relations: the item came right after the last item of the history, or was in one history with an item of it, or neither."""
USERS_AT_ONCE = 256
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

    def holds(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Check which values are in the bin."""
        return np.asarray((values >= self.low) & (values <= self.high))


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


def slice_targets(
    truth: Histories, given: Histories, train: Histories, num_items: int, *, ordered: bool
) -> Iterator[tuple[str, str, npt.NDArray[np.bool_]]]:
    """Yield slices of the true items as (slice, label, marks of the true items).

    Each true item has one label in each slice. Labels without an item are left out.

    Args:
        truth: true items of (users,).
        given: histories of the same users, the input of the recommender, oldest item first.
        train: training histories, also of other users.
        num_items: size of the catalogue, J.
        ordered: whether the order of histories means something. Without it no item follows another one.

    Yields:
        The marks are (pairs,) booleans, in the order of `truth.items`.

    >>> truth, given = (Histories(np.array([0, 1]), np.array([item], dtype=np.int32)) for item in (2, 0))
    >>> train = Histories(np.array([0, 3]), np.array([0, 1, 2], dtype=np.int32))
    >>> [label for _, label, _ in slice_targets(truth, given, train, 3, ordered=True)]
    ['together with an item', '0-4', '1']
    """
    marks = relation_marks(truth, given, train, num_items, ordered=ordered)
    counts = np.bincount(train.items, minlength=num_items)
    popularity = counts[truth.items]
    lengths = np.diff(given.indptr)
    length = np.repeat(lengths, np.diff(truth.indptr))
    found = [
        *((RELATION, label, marks == place) for place, label in enumerate((TRANSITION, TOGETHER, APART))),
        *((POPULARITY, part.label, part.holds(popularity)) for part in popularity_bins(counts)),
        *((HISTORY_LENGTH, part.label, part.holds(length)) for part in quarter_bins(lengths)),
    ]
    yield from (one for one in found if one[2].any())


def relation_marks(
    truth: Histories, given: Histories, train: Histories, num_items: int, *, ordered: bool
) -> npt.NDArray[np.int64]:
    """Return the relation of each true item to the history; arguments as `slice_targets`.

    Returns:
        (pairs,) integers in the order of `truth.items`: 0 `TRANSITION`, 1 `TOGETHER`, 2 `APART`.
    """
    users = np.repeat(np.arange(len(truth.indptr) - 1), np.diff(truth.indptr))
    marks = np.full(len(truth.items), 2)
    trained = interaction_matrix(train, num_items)
    histories = interaction_matrix(given, num_items)
    for start in range(0, len(truth.indptr) - 1, USERS_AT_ONCE):
        # Training histories that share an item with the given one, and then their items; (J, J) pairs would not fit in memory.
        sharing = histories[start : start + USERS_AT_ONCE] @ trained.T
        sharing.data[:] = 1
        reached = sharing @ trained
        pairs = slice(truth.indptr[start], truth.indptr[min(start + USERS_AT_ONCE, len(truth.indptr) - 1)])
        together = reached[users[pairs] - start, truth.items[pairs]]
        marks[pairs] = np.where(np.asarray(together).ravel() > 0, 1, 2)
    if ordered:
        owners = np.repeat(np.arange(len(train.indptr) - 1), np.diff(train.indptr))
        inside = owners[1:] == owners[:-1]
        known = train.items[:-1][inside].astype(np.int64) * num_items + train.items[1:][inside]
        has_history = np.diff(given.indptr)[users] > 0
        last = given.items[given.indptr[users[has_history] + 1] - 1].astype(np.int64)
        follows = np.isin(last * num_items + truth.items[has_history], known)
        marks[np.flatnonzero(has_history)[follows]] = 0
    return marks


def kept_items(truth: Histories, marks: npt.NDArray[np.bool_]) -> Histories:
    """Return the true items that are marked.

    >>> kept_items(Histories(np.array([0, 2, 3]), np.array([4, 5, 6], dtype=np.int32)), np.array([False, True, True]))
    Histories(indptr=array([0, 1, 2]), items=array([5, 6], dtype=int32))
    """
    places = np.concatenate([[0], np.cumsum(marks)])
    return Histories(places[truth.indptr].astype(np.int64), truth.items[marks])
