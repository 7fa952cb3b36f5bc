"""Clean texts of items: no markup, no missing ones unnoticed, nothing cut without being asked."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.core.errors import InputError

OnMissingText = Literal["raise", "title-only"]
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
_SAYS = re.compile(r"[^\W_]")
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\u2060\ufeff]+")


def clean_text(text: str) -> str:
    """A text without HTML tags and entities, blanks of any kind as single spaces.

    Only what HTML knows counts as a tag: `<a_12>` or `x < y` stay as they are.

    Example:
        >>> clean_text("<p>Salt &amp;amp; pepper,<br/>ground  &lt;b&gt;fresh&lt;/b&gt;</p>")
        'Salt & pepper, ground fresh'
    """
    text = html.unescape(html.unescape(text))
    return _BLANKS.sub(" ", _BREAKS.sub(" ", _MARKS.sub("", _PROGRAM.sub(" ", text)))).strip()


def item_texts(
    items: pa.Table, fields: Sequence[str] = (TITLE, DESCRIPTION), on_missing_text: OnMissingText = "raise"
) -> dict[str, list[str]]:
    """The clean texts of a catalogue, field by field.

    Args:
        items: row j = item_index j: `item_id` and the text columns; lists of strings are joined by commas.
        fields: the text columns to read.
        on_missing_text: `"raise"`: each item has a text in each field, or it is an error. `"title-only"`: each item has a
            title, or it is an error; what else it lacks is an empty string (and a field may have no column at all).

    Returns:
        field -> J texts, in the order of `fields`; one without any letter or digit counts as missing.

    Raises:
        InputError: a field that is no text column, items without a text (how many, the first five), a wrong choice.

    Example:
        >>> items = pa.table({"item_id": ["p", "q"], "title": ["Red lamp", "Tea"], "description": ["<b>Bright</b>.", None]})
        >>> item_texts(items, on_missing_text="title-only")
        {'title': ['Red lamp', 'Tea'], 'description': ['Bright.', '']}
    """
    if on_missing_text not in ("raise", "title-only"):
        raise InputError(f"on_missing_text is {on_missing_text!r}; allowed are 'raise' and 'title-only'")
    if isinstance(fields, str) or not fields:
        raise InputError(f"fields is {fields!r}; give a list of text columns, such as ['title', 'description']")
    if on_missing_text == "title-only" and TITLE not in fields:
        raise InputError(f"on_missing_text is 'title-only', but fields is {list(fields)}: put 'title' among the fields")
    texts: dict[str, list[str]] = {}
    for field in fields:
        must = field == TITLE or on_missing_text == "raise"
        if field in items.column_names:
            _check_is_text(items, field)
            texts[field] = [text if _SAYS.search(text) else "" for text in map(clean_text, text_column(items, field))]
        elif must:
            columns = [name for name in items.column_names if name != "item_id"]
            raise InputError(f"the items have no column {field!r}, only {columns}; choose other fields")
        else:
            texts[field] = [""] * items.num_rows
        missing = [row for row, text in enumerate(texts[field]) if not text]
        if must and missing:
            hint = "give them one, or take them out of the data"
            if field != TITLE and TITLE in fields:
                hint += ", or set on_missing_text to 'title-only': then their titles stand alone"
            raise InputError(f"{len(missing)} of {items.num_rows} items have no {field}: {_named(items, missing)}; {hint}")
    return texts


def check_text_lengths(items: pa.Table, what: str, lengths: np.ndarray, limit: int) -> None:
    """Refuse texts that do not fit.

    Args:
        what: the field, for the message; lengths: (J,) tokens of each item's text; limit: tokens that fit.

    Raises:
        InputError: naming the first five items whose text is longer, and the longest.
    """
    long = np.flatnonzero(np.asarray(lengths) > limit)
    if len(long):
        raise InputError(
            f"the {what} of {len(long)} items has more than the {limit} tokens that fit (the longest has {max(lengths)}): "
            f"{_named(items, long)}; set max_text_tokens, to {limit} at most, to have texts cut there"
        )


def _check_is_text(items: pa.Table, field: str) -> None:
    kind = items[field].type
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner)):
        raise InputError(f"the items' column {field!r} has type {kind}; a text column holds strings or lists of strings")


def _named(items: pa.Table, rows: Sequence[int] | np.ndarray) -> str:
    """The ids of the first five of some rows."""
    ids: list[Any] = items["item_id"].take(pa.array(np.asarray(rows[:5], dtype=np.int64))).to_pylist()
    return ", ".join(map(repr, ids)) + (", ..." if len(rows) > 5 else "")
