"""Prompts of LC-Rec as token ids: words encoded once, items by the tokens of their indices.

This file stands alone: it is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.errors import InputError

ITEMS, QUERY = "items", "query"
"""Placeholders in a prompt's pieces: the history, and what somebody looks for."""


def semantic_id_tokens(codes: np.ndarray, first_index_token: int, codebook_size: int) -> np.ndarray:
    """Token ids of items.

    Args:
        codes: (n, H) codes of each level.

    Returns:
        (n, H) int64: code c of level h has the id `first_index_token + h * codebook_size + c`.

    Example:
        >>> semantic_id_tokens(np.array([[3, 0], [1, 2]]), first_index_token=100, codebook_size=4).tolist()
        [[103, 104], [101, 106]]
    """
    return np.asarray(codes, dtype=np.int64) + first_index_token + codebook_size * np.arange(codes.shape[1])


def items_that_fit(room: Any, num_levels: int, separator_length: int, closed: bool) -> Any:
    """How many items of a history take `room` tokens at most, of an integer or an array of them.

    Args:
        closed: whether a separator follows the last item, too.

    Example:
        >>> items_that_fit(14, num_levels=4, separator_length=1, closed=True)
        2
        >>> items_that_fit(14, num_levels=4, separator_length=1, closed=False)
        3
    """
    return (room if closed else room + separator_length) // (num_levels + separator_length)


def semantic_id_prompt(
    pieces: Sequence[Any],
    codes: np.ndarray,
    separator: Sequence[int],
    first_index_token: int,
    codebook_size: int,
    query: Sequence[int] = (),
    max_length: int | None = None,
) -> np.ndarray:
    """Put the items of a history, and a query, into a prompt.

    Args:
        pieces: lists of text token ids and the placeholders `"items"` and `"query"`.
        codes: (n, H) codes of the history's items, oldest first.
        separator: token ids between two items. After the last one, too, where the history ends the prompt: the next item
            goes on from there.
        first_index_token, codebook_size: see `semantic_id_tokens`.
        query: token ids of what somebody looks for.
        max_length: tokens that fit. What is dropped is the oldest items, each whole; all words stay.

    Returns:
        (length,) int64 token ids.

    Raises:
        InputError: the prompt asks for a history or a query that is empty, or no item of the history fits.

    Example:
        >>> codes = np.array([[0, 1], [2, 3], [1, 1]])
        >>> semantic_id_prompt([[7, 8], "items"], codes, [9], first_index_token=100, codebook_size=4, max_length=8).tolist()
        [7, 8, 102, 107, 9, 101, 105, 9]
    """
    if ITEMS in pieces and not len(codes):
        raise InputError("the prompt asks for a history, and this one is empty; give at least one item")
    if QUERY in pieces and not len(query):
        raise InputError("the prompt asks for a query, and this one has no words; say what is looked for")
    closed = pieces[-1] == ITEMS
    words = sum(0 if piece == ITEMS else len(query) if piece == QUERY else len(piece) for piece in pieces)
    if max_length is not None and ITEMS in pieces:
        fit = items_that_fit(max_length - words, codes.shape[1], len(separator), closed)
        if fit < 1:
            raise InputError(
                f"the prompt's words take {words} tokens and {max_length} fit: there is no room for an item of the history; "
                "shorten the query or the template, or use a backbone with a longer context"
            )
        codes = codes[-fit:]
    elif max_length is not None and words > max_length:
        raise InputError(f"the prompt takes {words} tokens and {max_length} fit; shorten the query or the template")
    arrays: list[np.ndarray] = []
    for piece in pieces:
        if piece == ITEMS:
            arrays.append(_list_of_items(semantic_id_tokens(codes, first_index_token, codebook_size), separator, closed))
        elif piece == QUERY:
            arrays.append(np.asarray(query, dtype=np.int64))
        elif isinstance(piece, str):
            raise InputError(f"the prompt asks for {piece!r}; a prompt holds 'items' and 'query' only")
        else:
            arrays.append(np.asarray(piece, dtype=np.int64))
    return np.concatenate(arrays)


def _list_of_items(tokens: np.ndarray, separator: Sequence[int], closed: bool) -> np.ndarray:
    """(n, H) token ids of items, with separators between them, as one row."""
    marks = np.tile(np.asarray(separator, dtype=np.int64), (len(tokens), 1))
    row = np.concatenate([tokens, marks], axis=1).reshape(-1)
    return row if closed or not len(separator) else row[: -len(separator)]


__all__ = ["ITEMS", "QUERY", "semantic_id_prompt", "semantic_id_tokens", "items_that_fit"]
