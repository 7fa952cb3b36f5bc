"""Messages about bad rows and values: the first few of them, by number and by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError

NAMED = 5
"""Most ids or rows that a message lists."""


def reject(column: pa.Array, bad: npt.NDArray[np.bool_], complaint: str, first_row: int = 1, advice: str = "") -> None:
    """Raise an InputError that lists the first bad rows of a column, if there are any, and says what to do.

    >>> reject(pa.array(["5", "soon"]), np.array([False, True]), "time is not a number")
    Traceback (most recent call last):
    modeling_cllm4rec.core.errors.InputError: time is not a number in row 2: 'soon'
    """
    rows = np.flatnonzero(bad)
    if len(rows):
        listed = first_of(column.take(pa.array(rows)))
        raise InputError(f"{complaint} in {row_numbers(rows, first_row)}: {listed}{f'; {advice}' if advice else ''}")


def row_numbers(rows: npt.NDArray[np.int64], first_row: int = 1) -> str:
    """Return positions as row numbers, in the words of a message.

    >>> row_numbers(np.arange(7))
    'rows 1, 2, 3, 4, 5 and 2 more'
    """
    listed = ", ".join(str(row + first_row) for row in rows[:NAMED])
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"row {listed}" if len(rows) == 1 else f"rows {listed}{more}"


def first_of(values: Any) -> str:
    """Return the first few values as text for a message.

    >>> first_of(["a", "b", "c", "d", "e", "f"])
    "'a', 'b', 'c', 'd', 'e' (and 1 more)"
    """
    listed = ", ".join(repr(value) for value in pa.array(values[:NAMED]).to_pylist())
    return listed + (f" (and {len(values) - NAMED} more)" if len(values) > NAMED else "")
