"""Prompts as token ids: text segments are tokenized once, and ID tokens are inserted between them by arithmetic.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InputError
from .ragged import RaggedRows, joined_spans

USER = "user"
"""Placeholder of the user in a prompt's pieces."""
ITEM = "item"
"""Placeholder of one item in a prompt's pieces."""
ITEMS = "items"
"""Placeholder of a history in a prompt's pieces."""


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
        items = items[-_room(words, max_length) :]
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


def build_batch_ids(
    templates: Sequence[Sequence[Any]],
    template: np.ndarray,
    *,
    users: np.ndarray,
    items: RaggedRows,
    max_length: int | None = None,
) -> RaggedRows:
    """Insert ID tokens into the segments of prompts, as `build_input_ids` does for one prompt.

    Args:
        templates: segments of each template.
        template: (batch,) number of each prompt's template.
        users: (batch,) token ids for the placeholder `"user"`; not read where a template has none.
        items: item token ids for `"items"`, one row a prompt.
        max_length: see `build_input_ids`.

    Raises:
        InputError: no item fits, or a template has another placeholder.

    Example:
        >>> templates = [[[1, 2], "user", "items", [4]], [[3], "items"]]
        >>> items = RaggedRows(np.array([20, 21, 22]), np.array([0, 1, 3]))
        >>> [row.tolist() for row in build_batch_ids(templates, np.array([0, 1]), users=np.array([10, 0]), items=items)]
        [[1, 2, 10, 20, 4], [3, 21, 22]]
    """
    shape = (len(templates), max(map(len, templates)))
    starts, lengths = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    is_user, is_items = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    words: list[Any] = []
    for number, segments in enumerate(templates):
        for place, segment in enumerate(segments):
            if not isinstance(segment, str):
                starts[number, place], lengths[number, place] = len(words), len(segment)
                words.extend(segment)
            elif segment not in (USER, ITEMS):
                raise InputError(f"the prompt has the placeholder {segment!r}; in a batch there are {USER!r} and {ITEMS!r}")
            else:
                (is_user if segment == USER else is_items)[number, place] = True
    lengths[is_user] = 1
    read = items.lengths
    if max_length is not None:
        fixed = lengths.sum(axis=1)[template]
        read = np.minimum(read, max_length - fixed)
        if len(read) and read.min() < 1:
            _room(int(fixed.max()), max_length)
    pool = np.concatenate([np.array(words, dtype=np.int64), users, items.values])
    first_item = len(words) + len(users) + items.indptr[1:] - read
    starts = np.where(is_user[template], len(words) + np.arange(len(users))[:, None], starts[template])
    starts = np.where(is_items[template], first_item[:, None], starts)
    return joined_spans(pool, starts, np.where(is_items[template], read[:, None], lengths[template]))


def _room(words: int, max_length: int) -> int:
    """Return the number of items that fit after the words of a prompt.

    Raises:
        InputError: there is no room.
    """
    if words >= max_length:
        raise InputError(
            f"the prompt's own words take {words} tokens and the context holds {max_length}: "
            "no item of the history fits; shorten the template or use a backbone with a longer context"
        )
    return max_length - words


def pad_right(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Stack rows of different lengths into (rows, longest), padded with `value` on the right.

    Example:
        >>> pad_right([np.array([1]), np.array([2, 3])], 0).tolist()
        [[1, 0], [2, 3]]
    """
    return RaggedRows.of(rows).padded(value)


__all__ = ["ITEM", "ITEMS", "USER", "build_batch_ids", "build_input_ids", "pad_right"]
