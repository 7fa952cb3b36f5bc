"""Clean texts of items: markup is removed, and missing or too long texts are errors."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.core.errors import InputError

OnMissingText = Literal["raise", "title-only", "empty"]
TITLE, DESCRIPTION = "title", "description"
ITEM_TEXTS = (TITLE, "brand", "categories", DESCRIPTION)
"""Text columns of the items that language models are trained on."""
BIOGRAPHY = "biography"
"""Text column of the users."""

_BLOCKS = (
    "address article aside blockquote body br button caption center col colgroup dd details dialog div dl dt embed fieldset "
    "figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html iframe img input legend li link main map meta nav "
    "noscript object ol option p param picture pre script section select source style summary svg table tbody td textarea "
    "tfoot th thead title tr ul video"
).split()
_INLINE = (
    "a abbr b bdi bdo big cite code del dfn em font i ins kbd label mark q s samp small span strike strong sub sup tt u var"
).split()
_TAG = r"</?(?:{})(?=[\s/>])[^<>]*>"
_BREAKS = re.compile(_TAG.format("|".join(_BLOCKS)) + r"|<!--.{0,5000}?-->", re.IGNORECASE | re.DOTALL)
_MARKS = re.compile(_TAG.format("|".join(_INLINE)), re.IGNORECASE)
_PROGRAM = re.compile(r"<(script|style)(?=[\s>])[^<>]{0,500}>.{0,5000}?</\1\s*>", re.IGNORECASE | re.DOTALL)
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\u2060\ufeff]+")


def clean_text(text: str) -> str:
    """Remove HTML tags and entities from a text, and replace whitespace of any kind by single spaces.

    Only names of HTML elements count as tags: `<a_12>` or `x < y` stay as they are.

    Example:
        >>> clean_text("<p>Salt &amp;amp; pepper,<br/>ground  &lt;b&gt;fresh&lt;/b&gt;</p>")
        'Salt & pepper, ground fresh'
    """
    # Twice, because catalogues often hold texts that were escaped twice (`&amp;amp;`).
    text = html.unescape(html.unescape(text))
    return _BLANKS.sub(" ", _BREAKS.sub(" ", _MARKS.sub("", _PROGRAM.sub(" ", text)))).strip()


def item_texts(
    items: pa.Table, fields: Sequence[str] = (TITLE, DESCRIPTION), on_missing_text: OnMissingText = "raise"
) -> dict[str, list[str]]:
    """Return the clean texts of a catalogue, field by field.

    Args:
        items: row j is item_index j: `item_id` and the text columns; lists of strings are joined by commas.
        fields: the text columns to read.
        on_missing_text: `"raise"`: an item without a text in any field is an error. `"title-only"`: an item without a title is
            an error; other missing texts become empty strings, and a field may have no column at all. `"empty"`: all missing
            texts become empty strings; a field without a column is an error.

    Returns:
        field -> J texts, in the order of `fields`; a text without any letter or digit counts as missing.

    Raises:
        InputError: a field is no text column, items have no text (their number and the first five are named), or an argument has
            a value that is not allowed.

    Example:
        >>> items = pa.table({"item_id": ["p", "q"], "title": ["Red lamp", "Tea"], "description": ["<b>Bright</b>.", None]})
        >>> item_texts(items, on_missing_text="title-only")
        {'title': ['Red lamp', 'Tea'], 'description': ['Bright.', '']}
    """
    if on_missing_text not in ("raise", "title-only", "empty"):
        raise InputError(f"on_missing_text is {on_missing_text!r}; it must be 'raise', 'title-only' or 'empty'")
    if isinstance(fields, str) or not fields:
        raise InputError(f"fields is {fields!r}; give a list of text columns, such as ['title', 'description']")
    if on_missing_text == "title-only" and TITLE not in fields:
        raise InputError(f"on_missing_text is 'title-only', but fields is {list(fields)}; add 'title' to fields")
    texts: dict[str, list[str]] = {}
    for field in fields:
        required = on_missing_text == "raise" or (on_missing_text == "title-only" and field == TITLE)
        if field in items.column_names:
            _check_is_text(items, field)
            texts[field] = [text if _LETTER_OR_DIGIT.search(text) else "" for text in map(clean_text, text_column(items, field))]
        elif required or on_missing_text == "empty":
            columns = [name for name in items.column_names if name != "item_id"]
            raise InputError(f"the items have no column {field!r}, only {columns}; choose other fields")
        else:
            texts[field] = [""] * items.num_rows
        missing = [row for row, text in enumerate(texts[field]) if not text]
        if required and missing:
            hint = "add the texts, or remove these items from the data"
            if field != TITLE and TITLE in fields:
                hint += ", or pass on_missing_text='title-only' to use their titles only"
            raise InputError(f"{len(missing)} of {items.num_rows} items have no {field}: {_named(items, missing)}; {hint}")
    return texts


def check_text_lengths(items: pa.Table, field: str, lengths: np.ndarray, limit: int) -> None:
    """Check that all texts fit into a limit.

    Args:
        items: the catalogue, for the message.
        field: the field, for the message.
        lengths: (J,) tokens of each item's text.
        limit: tokens that fit.

    Raises:
        InputError: texts are longer; the first five items and the longest text are named.
    """
    too_long = np.flatnonzero(np.asarray(lengths) > limit)
    if len(too_long):
        raise InputError(
            f"the {field} of {len(too_long)} items has more than the {limit} tokens that fit (the longest has {max(lengths)}): "
            f"{_named(items, too_long)}; set max_text_tokens to {limit} or less to cut them"
        )


def _check_is_text(items: pa.Table, field: str) -> None:
    """Check that a column holds strings or lists of strings."""
    kind = items[field].type
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner)):
        raise InputError(f"the items' column {field!r} has type {kind}; a text column holds strings or lists of strings")


def _named(items: pa.Table, rows: Sequence[int] | np.ndarray) -> str:
    """Return the ids of the first five of some rows, for a message."""
    ids: list[Any] = items["item_id"].take(pa.array(np.asarray(rows[:5], dtype=np.int64))).to_pylist()
    return ", ".join(map(repr, ids)) + (", ..." if len(rows) > 5 else "")
