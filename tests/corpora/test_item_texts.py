"""Clean item texts: markup and blanks go, everything else stays, and no missing text goes unnoticed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.corpora.item_texts import check_text_lengths, clean_text, item_texts


def catalogue(**columns: list) -> pa.Table:
    return pa.table({"item_id": [f"i{row}" for row in range(len(next(iter(columns.values()))))], **columns})


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("<p>Salt &amp; pepper</p>", "Salt & pepper"),
        ("Salt &amp;amp; pepper", "Salt & pepper"),
        ("one<br>two<BR/>three<br />four", "one two three four"),
        ('<a href="x.html">here</a>', "here"),
        ("&lt;b&gt;bold&lt;/b&gt;, so", "bold, so"),
        ("<ul><li>one</li><li>H<sub>2</sub>O</li></ul>", "one H2O"),
        ("<!-- hidden -->seen", "seen"),
        ("<script type='text/javascript'>var a = 1;</script>seen<style>p {}</style>", "seen"),
        ("  tabs\t and\nlines\u00a0and\u200b more\x00 ", "tabs and lines and more"),
        ("<a_12><b_3> is an index", "<a_12><b_3> is an index"),
        ("x < y and y > z", "x < y and y > z"),
        ("<bolt> M6 <3", "<bolt> M6 <3"),
        ("Zoë's 商品 🦊", "Zoë's 商品 🦊"),
        ("", ""),
    ],
)
def test_clean_text(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean


@given(st.text(st.characters(blacklist_characters="<>&", blacklist_categories=["C", "Z"]), max_size=40))
def test_a_text_without_markup_stays_as_it_is(text: str) -> None:
    assert clean_text(text) == text


@given(st.text(max_size=60))
def test_blanks_are_single_spaces(text: str) -> None:
    clean = clean_text(text)
    assert clean == " ".join(clean.split())


@pytest.mark.parametrize("piece", ["<script>", "<!--", "<a ", "<", "&lt;"])
def test_broken_markup_takes_no_time(piece: str) -> None:
    clean_text(piece * 5000)


def test_lists_are_joined_and_missing_texts_are_empty() -> None:
    items = catalogue(title=["Lamp", "<b>Tea</b>", "Pen"], description=[["Red.", "Bright."], None, ["..."]])
    texts = item_texts(items, on_missing_text="title-only")
    assert texts == {"title": ["Lamp", "Tea", "Pen"], "description": ["Red., Bright.", "", ""]}


def test_a_missing_column_is_missing_texts() -> None:
    items = catalogue(title=["Lamp"])
    assert item_texts(items, on_missing_text="title-only") == {"title": ["Lamp"], "description": [""]}
    with pytest.raises(ValueError, match=r"no column 'description', only \['title'\]; choose other fields"):
        item_texts(items)


def test_items_without_text_are_counted_and_named() -> None:
    titles = ["Lamp", None, "", " ", "<br>", "...", None, "Tea"]
    items = catalogue(title=titles, description=["text"] * 8)
    for choice in ("raise", "title-only"):
        with pytest.raises(ValueError, match=r"6 of 8 items have no title: 'i1', 'i2', 'i3', 'i4', 'i5', \.\.\.; add the texts"):
            item_texts(items, on_missing_text=choice)  # type: ignore[arg-type]


def test_items_without_description_are_an_error_unless_titles_suffice() -> None:
    items = catalogue(title=["Lamp", "Tea"], description=["Red.", None])
    message = "1 of 2 items have no description: 'i1'; .*on_missing_text='title-only' to use their titles only"
    with pytest.raises(ValueError, match=message):
        item_texts(items)
    assert item_texts(items, on_missing_text="title-only")["description"] == ["Red.", ""]


def test_missing_texts_may_be_empty() -> None:
    items = catalogue(title=["Lamp", None], description=[None, None])
    assert item_texts(items, on_missing_text="empty") == {"title": ["Lamp", ""], "description": ["", ""]}
    with pytest.raises(ValueError, match="the items have no column 'brand'"):
        item_texts(items, ["title", "brand"], on_missing_text="empty")


def test_wrong_choices() -> None:
    items = catalogue(title=["Lamp"], price=[3.5])
    with pytest.raises(ValueError, match="on_missing_text is 'skip'; it must be 'raise', 'title-only' or 'empty'"):
        item_texts(items, on_missing_text="skip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fields is 'title'; give a list"):
        item_texts(items, "title")
    with pytest.raises(ValueError, match=r"fields is \[\]; give a list"):
        item_texts(items, [])
    with pytest.raises(ValueError, match=r"'title-only', but fields is \['price'\]; add 'title' to fields"):
        item_texts(items, ["price"], "title-only")
    with pytest.raises(ValueError, match="column 'price' has type double; a text column holds strings"):
        item_texts(items, ["title", "price"])


def test_texts_that_do_not_fit_are_named() -> None:
    items = catalogue(title=["a", "b", "c"])
    check_text_lengths(items, "title", np.array([1, 2, 3]), 3)
    message = r"the title of 2 items has more than the 1 tokens .*longest has 3\): 'i1', 'i2'; set max_text_tokens to 1 or less"
    with pytest.raises(ValueError, match=message):
        check_text_lengths(items, "title", np.array([1, 2, 3]), 1)
