"""Clean columns of texts, for the data folder: every model reads the same texts.

Clean texts stay as they are, byte by byte. HTML tags and entities go, blanks of any kind become single spaces, texts without a
letter or digit are null, and lists that were written as texts are lists again.
"""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.corpora.item_texts import clean_text

EMPTY = ("nan", "NaN", "None", "(no genres listed)")
"""What programs, and MovieLens, write in place of a missing text."""
_UNCLEAN = "[<&\\x00-\\x1f\\x7f-\\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]|  |^ | $"
_WRITTEN = r"[\p{L}\p{N}]"

logger = logging.getLogger(__name__)


def clean_texts(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Clean (rows,) texts; those without a letter or digit, and those of `EMPTY`, become null.

    Example:
        >>> clean_texts(pa.array(["Salt &amp; <b>pepper</b>", "[]", "nan", None, "Tea"])).to_pylist()
        ['Salt & pepper', None, None, None, 'Tea']
    """
    column = column.cast(pa.large_string())
    unclean = pc.fill_null(pc.match_substring_regex(column, _UNCLEAN), False)
    if pc.any(unclean).as_py():
        cleaned = pa.array([clean_text(text) for text in column.filter(unclean).to_pylist()], pa.large_string())
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        mask = unclean.combine_chunks() if isinstance(unclean, pa.ChunkedArray) else unclean
        column = pc.replace_with_mask(whole, mask, cleaned)
    written = pc.and_(
        pc.match_substring_regex(column, _WRITTEN),
        pc.invert(pc.is_in(column, value_set=pa.array(EMPTY, pa.large_string()))),
    )
    return pc.if_else(pc.fill_null(written, False), column, None)


def clean_lists(column: pa.Array) -> pa.Array:
    """Clean (rows,) lists of texts; empty texts leave their list, and empty lists become null.

    Example:
        >>> clean_lists(pa.array([["a &amp; b", ""], []])).to_pylist()
        [['a & b'], None]
    """
    kind = pa.list_(pa.large_string())
    column = column.cast(kind)
    return _rebuilt(column, clean_texts(column.flatten()))


def _rebuilt(column: pa.Array, values: pa.Array) -> pa.Array:
    """Return lists of the same lengths with other values, without nulls among them."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(column)), lengths)
    kept = values.is_valid().to_numpy(zero_copy_only=False)
    counts = np.bincount(rows[kept], minlength=len(column)) if len(column) else np.zeros(0, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    mask = pa.array(counts == 0)
    lists = pa.ListArray.from_arrays(pa.array(offsets), values.filter(values.is_valid()))
    return pc.if_else(mask, None, lists)


def parse_lists(column: pa.Array, name: str) -> pa.Array:
    """Return a column of texts as lists, if all of its texts are lists that pandas or Python wrote, else as it is.

    Args:
        column: (rows,) texts from `clean_texts`.
        name: of the column, for the log.

    Example:
        >>> parse_lists(pa.array(["['a', 'b']", None, "['c']"]), "tags").to_pylist()
        [['a', 'b'], None, ['c']]
    """
    present = len(column) - column.null_count
    if not present:
        return column
    brackets = pc.and_(pc.starts_with(column, "["), pc.ends_with(column, "]"))
    candidates = int(pc.sum(brackets).as_py() or 0)
    if 2 * candidates < present:
        return column
    lists = [_list(text) for text in column.to_pylist()]
    parsed = sum(value is not None for value in lists)
    if parsed == present:
        return pa.array(lists, pa.list_(pa.large_string()))
    if 2 * parsed >= present:
        logger.warning(
            "column %r: %s of %s texts are lists written as text, such as %s; all stay texts, because the others are no lists",
            *(
                name,
                f"{parsed:,}",
                f"{present:,}",
                next(text for text, value in zip(column.to_pylist(), lists, strict=True) if value)[:60],
            ),
        )
    return column


def split_texts(column: pa.Array, separator: str) -> pa.Array:
    """Split (rows,) texts at a separator.

    >>> split_texts(pa.array(["Drama|Comedy", None]), "|").to_pylist()
    [['Drama', 'Comedy'], None]
    """
    return pc.split_pattern(column.cast(pa.large_string()), separator).cast(pa.list_(pa.large_string()))


def join_columns(columns: Sequence[pa.Array], as_list: bool) -> pa.Array:
    """Join (rows,) texts or lists of several columns: to one text with spaces, or to one list.

    >>> join_columns([pa.array(["Shirt", None]), pa.array([["soft", "blue"], None])], as_list=False).to_pylist()
    ['Shirt soft blue', None]
    """
    rows = []
    for values in zip(*(column.to_pylist() for column in columns), strict=True):
        parts = [part for value in values if value is not None for part in (value if isinstance(value, list) else [value])]
        parts = [part for part in parts if part]
        rows.append((parts if as_list else " ".join(parts)) if parts else None)
    return pa.array(rows, pa.list_(pa.large_string()) if as_list else pa.large_string())


def flagged_names(table: pa.Table) -> pa.Array:
    """Return for each row the names of the columns whose value is `1`.

    >>> flagged_names(pa.table({"Drama": ["1", "0"], "War": ["1", "0"]})).to_pylist()
    [['Drama', 'War'], []]
    """
    flags = np.stack([pc.equal(column, "1").to_numpy() for column in table.columns], axis=1)
    names = np.array(table.column_names, dtype=object)
    return pa.array([names[row].tolist() for row in flags.astype(bool)], pa.list_(pa.large_string()))


def _list(text: str | None) -> list[str] | None:
    """Return the texts of a list literal, `None` if it is none."""
    if text is None or not (text.startswith("[") and text.endswith("]")):
        return None
    value: Any = None
    for parse in (ast.literal_eval, json.loads):
        try:
            value = parse(text)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if not isinstance(value, list) or any(isinstance(part, (dict, list, tuple, set)) for part in value):
        return None
    return [str(part) for part in value if part is not None]
