"""Prompts of LC-Rec as token ids: words are encoded once, items are the tokens of their semantic IDs.

This file is copied into every saved folder.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.errors import InputError

ITEMS = "items"
"""Placeholder of the history in a template."""
QUERY = "query"
"""Placeholder of the query in a template."""


def semantic_id_tokens(codes: np.ndarray, first_index_token: int, codebook_size: int) -> np.ndarray:
    """Return the tokens of items' semantic IDs.

    Args:
        codes: (n, H) codes of each level.

    Returns:
        (n, H) int64: code c of level h has the id `first_index_token + h * codebook_size + c`.

    Example:
        >>> semantic_id_tokens(np.array([[3, 0], [1, 2]]), first_index_token=100, codebook_size=4).tolist()
        [[103, 104], [101, 106]]
    """
    return np.asarray(codes, dtype=np.int64) + first_index_token + codebook_size * np.arange(codes.shape[1])


def check_index_tokens(vocabulary: Mapping[str, int], first_index_token: int, num_levels: int, codebook_size: int) -> None:
    """Check that a tokenizer has the tokens of a model's semantic IDs under their ids.

    Args:
        vocabulary: word -> token id of the tokenizer.
        first_index_token, num_levels, codebook_size: of the model.

    Raises:
        InputError: it has one of them under another id, or not at all.
    """
    for token in range(first_index_token, first_index_token + num_levels * codebook_size):
        level, code = divmod(token - first_index_token, codebook_size)
        word = f"<{string.ascii_lowercase[level]}_{code}>"
        if vocabulary.get(word) != token:
            raise InputError(
                f"first_index_token is {first_index_token}, so {word} should be token {token}, but the tokenizer has "
                f"{vocabulary.get(word)}: it is not the tokenizer of this model; copy the model's folder again, or for a new "
                "model add the tokens of semantic IDs first (tokenization_lcrec.add_semantic_id_tokens)"
            )


def items_that_fit(room: Any, num_levels: int, separator_length: int, closed: bool) -> Any:
    """Return the most items of a history that fit into `room` tokens, an integer or an array.

    Args:
        closed: whether a separator also follows the last item.

    Example:
        >>> items_that_fit(14, num_levels=4, separator_length=1, closed=True)
        2
        >>> items_that_fit(14, num_levels=4, separator_length=1, closed=False)
        3
    """
    return (room if closed else room + separator_length) // (num_levels + separator_length)


def semantic_id_prompt(
    segments: Sequence[Any],
    codes: np.ndarray,
    separator: Sequence[int],
    first_index_token: int,
    codebook_size: int,
    query: Sequence[int] = (),
    max_length: int | None = None,
) -> np.ndarray:
    """Build a prompt from the items of a history, a query, or both.

    Args:
        segments: lists of text token ids and the placeholders `"items"` and `"query"`.
        codes: (n, H) codes of the history's items, oldest first.
        separator: token ids between two items. They also follow the last item where the history ends the prompt, because
            the next item continues the list.
        first_index_token, codebook_size: see `semantic_id_tokens`.
        query: token ids of the query.
        max_length: tokens that fit. The oldest items are dropped, each as a whole; all words stay.

    Returns:
        (length,) int64 token ids.

    Raises:
        InputError: a placeholder for a history or a query that is empty, or no item of the history fits.

    Example:
        >>> codes = np.array([[0, 1], [2, 3], [1, 1]])
        >>> semantic_id_prompt([[7, 8], "items"], codes, [9], first_index_token=100, codebook_size=4, max_length=8).tolist()
        [7, 8, 102, 107, 9, 101, 105, 9]
    """
    if ITEMS in segments and not len(codes):
        raise InputError("the history is empty, and the prompt has a place for one; give at least one item")
    if QUERY in segments and not len(query):
        raise InputError("the query has no words, and the prompt has a place for one; describe the item to search for")
    closed = segments[-1] == ITEMS
    words = sum(0 if segment == ITEMS else len(query) if segment == QUERY else len(segment) for segment in segments)
    if max_length is not None and ITEMS in segments:
        fit = items_that_fit(max_length - words, codes.shape[1], len(separator), closed)
        if fit < 1:
            raise InputError(
                f"the prompt's words take {words} tokens and {max_length} fit, so no item of the history fits; "
                "shorten the query or the template, or use a backbone with a longer context"
            )
        codes = codes[-fit:]
    elif max_length is not None and words > max_length:
        raise InputError(f"the prompt takes {words} tokens and {max_length} fit; shorten the query or the template")
    arrays: list[np.ndarray] = []
    for segment in segments:
        if segment == ITEMS:
            arrays.append(_list_of_items(semantic_id_tokens(codes, first_index_token, codebook_size), separator, closed))
        elif segment == QUERY:
            arrays.append(np.asarray(query, dtype=np.int64))
        elif isinstance(segment, str):
            raise InputError(f"the prompt has the placeholder {segment!r}; it must be 'items' or 'query'")
        else:
            arrays.append(np.asarray(segment, dtype=np.int64))
    return np.concatenate(arrays)


def _list_of_items(tokens: np.ndarray, separator: Sequence[int], closed: bool) -> np.ndarray:
    """Join (n, H) token ids of items, with separators between them, into one row."""
    marks = np.tile(np.asarray(separator, dtype=np.int64), (len(tokens), 1))
    row = np.concatenate([tokens, marks], axis=1).reshape(-1)
    return row if closed or not len(separator) else row[: -len(separator)]


__all__ = ["ITEMS", "QUERY", "check_index_tokens", "items_that_fit", "semantic_id_prompt", "semantic_id_tokens"]
