"""Rows of different lengths in one flat array, so that a batch of documents is built without a loop over documents.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np


class RaggedRows(Sequence[np.ndarray]):
    """Rows of different lengths; a sequence of arrays that are views of one.

    Args:
        values: (all,) the rows one after the other.
        indptr: (rows + 1,) row n is `values[indptr[n]:indptr[n + 1]]`.

    Example:
        >>> rows = RaggedRows(np.array([7, 8, 9]), np.array([0, 1, 3]))
        >>> [row.tolist() for row in rows], rows.padded(0).tolist()
        ([[7], [8, 9]], [[7, 0], [8, 9]])
    """

    def __init__(self, values: np.ndarray, indptr: np.ndarray) -> None:
        self.values, self.indptr = values, indptr

    @classmethod
    def of(cls, rows: Iterable[np.ndarray]) -> RaggedRows:
        """Return rows in one array of 64-bit integers; those that are so already stay as they are."""
        if isinstance(rows, RaggedRows):
            return rows
        listed = list(rows)
        values = np.concatenate(listed) if listed else np.zeros(0)
        return cls.of_lengths(values.astype(np.int64, copy=False), np.fromiter(map(len, listed), np.int64, len(listed)))

    @classmethod
    def of_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> RaggedRows:
        """Return rows by their lengths: (rows,)."""
        indptr = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        return cls(values, indptr)

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) length of each row."""
        return self.indptr[1:] - self.indptr[:-1]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, row: slice) -> list[np.ndarray]: ...

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return list(self)[row]
        number = range(len(self))[row]
        return self.values[self.indptr[number] : self.indptr[number + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        ends = self.indptr.tolist()
        return (self.values[start:end] for start, end in zip(ends, ends[1:], strict=False))

    def padded(self, value: int) -> np.ndarray:
        """Return (rows, longest), padded with `value` on the right."""
        padded = np.full(self.mask.shape, value, dtype=self.values.dtype)
        padded[self.mask] = self.values
        return padded

    @cached_property
    def mask(self) -> np.ndarray:
        """(rows, longest) True where a padded row has a value."""
        lengths = self.lengths
        return np.arange(int(lengths.max(initial=0))) < lengths[:, None]


def span_positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the positions of spans, one span after the other.

    Args:
        starts, lengths: (spans,) or of any one shape.

    Example:
        >>> span_positions(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist()
        [5, 6, 9, 10, 11]
    """
    starts, lengths = starts.reshape(-1), lengths.reshape(-1)
    ends = lengths.cumsum()
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def joined_spans(pool: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> RaggedRows:
    """Return rows that are each joined from spans of one array.

    Args:
        pool: (all,) values.
        starts, lengths: (rows, spans) of each span; a row with fewer has some of length 0.

    Example:
        >>> [row.tolist() for row in joined_spans(np.arange(9), np.array([[4, 0], [7, 1]]), np.array([[2, 1], [0, 3]]))]
        [[4, 5, 0], [1, 2, 3]]
    """
    return RaggedRows.of_lengths(pool[span_positions(starts, lengths)], lengths.sum(axis=1))


__all__ = ["RaggedRows", "joined_spans", "span_positions"]
