"""Prompts as token ids: text segments are tokenized once, and ID tokens are inserted between them by arithmetic.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InputError

USER, ITEM, ITEMS = "user", "item", "items"


def build_input_ids(
    segments: Sequence[Any],
    *,
    user: int | None = None,
    item: int | None = None,
    items: np.ndarray | Sequence[int] = (),
    max_length: int | None = None,
) -> np.ndarray:
    """Insert ID tokens into the segments of a prompt.

    Args:
        segments: lists of text token ids and the placeholders `"user"`, `"item"`, `"items"`.
        user, item: token ids for those placeholders.
        items: (history,) item token ids, oldest first, for `"items"`.
        max_length: tokens that fit. The oldest items are dropped; the last items and all words of the prompt stay (the released
            code cuts off the closing words).

    Returns:
        (length,) int64 token ids.

    Raises:
        InputError: no item fits, or the token of a placeholder is missing.

    Example:
        >>> build_input_ids([[1, 2], "user", [3], "items", [4]], user=10, items=[20, 21, 22], max_length=7).tolist()
        [1, 2, 10, 3, 21, 22, 4]
    """
    items = np.asarray(items, dtype=np.int64)
    if max_length is not None:
        words = sum(0 if segment == ITEMS else 1 if isinstance(segment, str) else len(segment) for segment in segments)
        room = max_length - words
        if room < 1:
            raise InputError(
                f"the prompt's own words take {words} tokens and the context holds {max_length}: "
                "no item of the history fits; shorten the template or use a backbone with a longer context"
            )
        items = items[-room:]
    parts = {USER: user, ITEM: item}
    arrays: list[np.ndarray] = []
    for segment in segments:
        if not isinstance(segment, str):
            arrays.append(np.asarray(segment, dtype=np.int64))
        elif segment == ITEMS:
            arrays.append(items)
        elif parts.get(segment) is None:
            raise InputError(f"the prompt has the placeholder {segment!r}, but its token is missing; pass {segment}=")
        else:
            arrays.append(np.asarray([parts[segment]], dtype=np.int64))
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def pad_right(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Stack rows of different lengths into (rows, longest), padded with `value` on the right.

    Example:
        >>> pad_right([np.array([1]), np.array([2, 3])], 0).tolist()
        [[1, 0], [2, 3]]
    """
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    padded = np.full((len(rows), int(lengths.max(initial=0))), value, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows) if len(rows) else []
    return padded


__all__ = ["ITEM", "ITEMS", "USER", "build_input_ids", "pad_right"]
