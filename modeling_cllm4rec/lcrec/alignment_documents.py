"""Spans of histories: the parts of all training histories that the documents of alignment tasks are made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.corpora.data_folder import Histories

Integers = npt.NDArray[np.int64]


class Spans(NamedTuple):
    """Spans of all histories, one history after the other: the input is items[begin:end], the target items[end].

    Attributes:
        user: (spans,) user_index; begin, end: (spans,) positions in `Histories.items`.
    """

    user: Integers
    begin: Integers
    end: Integers


class Documents(NamedTuple):
    """Documents of one alignment task.

    Attributes:
        subject: (documents,) item_index of the target, or user_index where the task is about users.
        begin, end: (documents,) the history is items[begin:end] of `Histories.items`; 0 and 0 without a history.
    """

    subject: Integers
    begin: Integers
    end: Integers


def prefixes(histories: Histories) -> Spans:
    """Return a span for each item of a history but the first, after all items before it.

    Example:
        >>> histories = Histories(np.array([0, 3, 4]), np.array([7, 8, 9, 7], dtype=np.int32))
        >>> [column.tolist() for column in prefixes(histories)]
        [[0, 0], [0, 0], [1, 2]]
    """
    user = np.repeat(np.arange(len(histories.indptr) - 1), np.diff(histories.indptr))
    end = np.flatnonzero(np.arange(len(histories.items)) > histories.indptr[user])
    return Spans(user[end], histories.indptr[user[end]], end)


def last_items(histories: Histories) -> Spans:
    """Return a span for the last item of each history of two or more, after all items before it."""
    user = np.flatnonzero(np.diff(histories.indptr) > 1)
    return Spans(user, histories.indptr[user], histories.indptr[user + 1] - 1)


def windows(histories: Histories, most: int) -> Spans:
    """Return spans of at most `most` items and a target, so that each item but the first is a target in one span.

    Two spans of a history share one item: the target of the earlier span is the first item of the later one.

    Example:
        >>> histories = Histories(np.array([0, 5]), np.arange(5, dtype=np.int32))
        >>> [column.tolist() for column in windows(histories, most=3)]
        [[0, 0], [1, 0], [4, 1]]
    """
    counts = np.diff(histories.indptr)
    user = np.flatnonzero(counts > 1)
    number = -(-(counts[user] - 1) // most)
    # Windows are counted from the end, so that the last one is full and only the first may be short: recommendation
    # always reads the last items of a history.
    back = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    user = np.repeat(user, number)
    end = histories.indptr[user + 1] - 1 - most * back
    return Spans(user, np.maximum(histories.indptr[user], end - most), end)
