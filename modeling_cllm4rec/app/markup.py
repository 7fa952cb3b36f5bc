"""Lists of items as HTML: real lists and buttons, which keyboards and screen readers know; every text escaped.

A button names what it does in `data-action` and with which item in `data-item`; `page.js` sends both to the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from modeling_cllm4rec.app.answers import Answer, Near, Recommended, ShownModel
from modeling_cllm4rec.app.turns import Conversation

_CROSS = '<span aria-hidden="true">✕</span>'


def note(sentence: str, kind: str = "hint") -> str:
    """Return a sentence for the reader, which screen readers announce.

    Args:
        kind: `"hint"` or `"problem"`.

    Example:
        >>> note("1 < 2")
        '<p class="note hint" role="status">1 &lt; 2</p>'
    """
    return f'<p class="note {kind}" role="status">{escape(sentence)}</p>' if sentence else ""


def button(action: str, item: Any, label: str, content: str, kind: str, pressed: bool | None = None) -> str:
    """Return a button for an action on an item.

    Args:
        label: text for screen readers; content: visible HTML; kind: its CSS class.
        pressed: state of a button that switches something on and off.
    """
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    return (
        f'<button type="button" class="{kind}" data-action="{action}" data-item="{escape(str(item))}"'
        f' aria-label="{escape(label)}"{state}>{content}</button>'
    )


def found_list(items: Sequence[tuple[Any, str]], total: int, chosen: Sequence[Any], query: str) -> str:
    """Return the search results: a list of buttons that add an item to the history or remove it.

    Args:
        items: external ids and titles, best first; total: how many there are in all.
        chosen: external ids in the history.
    """
    if not query.strip():
        return ""
    if not total:
        return note(f"No title holds “{query.strip()}”. Try fewer or shorter words.", "problem")
    rows = []
    for item, title in items:
        inside = item in chosen
        label = f"{title}: {'take out of' if inside else 'add to'} the history"
        sign = '<span class="sign" aria-hidden="true">' + ("✓" if inside else "+") + "</span>"
        rows.append("<li>" + button("toggle", item, label, sign + _named(item, title), "row", inside) + "</li>")
    more = f"{total:,} found" + (f", the first {len(items)} shown" if total > len(items) else "")
    return f'<ul class="plain" aria-label="Items found">{"".join(rows)}</ul>' + note(more)


def history_list(items: Sequence[tuple[Any, str]]) -> str:
    """Return the history, oldest first, each item with a button that removes it."""
    if not items:
        return note("Nothing yet. Items that you add appear here, the oldest first.")
    rows = [f"<li>{_named(item, title)}{button('remove', item, f'Remove {title}', _CROSS, 'icon')}</li>" for item, title in items]
    return f'<ol class="plain history" aria-label="History">{"".join(rows)}</ol>'


def turns_list(conversation: Conversation) -> str:
    """Return the turns so far, each with how it was understood."""
    if not conversation.said:
        return ""
    rows = []
    for said, how in conversation.said:
        understood = f' <span class="understood">{escape(how)}</span>' if how else ""
        rows.append(f'<li><span class="said">{escape(said)}</span>{understood}</li>')
    return f'<ol class="plain turns" aria-label="Turns" aria-live="polite">{"".join(rows)}</ol>'


def answer_lists(answers: Sequence[tuple[ShownModel, Answer]], written: Mapping[tuple[int, str], str]) -> str:
    """Return the lists of all models side by side.

    Args:
        answers: the answer of each model.
        written: sentences of content LMs by (number of the model, external id as text).
    """
    ranks = [{row.item: row.rank for row in answer.rows} for _, answer in answers]
    parts = []
    for number, (shown, answer) in enumerate(answers):
        head = (
            f'<header><h3>{escape(shown.system)} <span class="id">{escape(shown.name)}</span></h3>'
            + (f'<p class="time">{answer.milliseconds:,.0f} ms</p>' if answer.rows else "")
            + "</header>"
            + (f'<p class="meaning">{escape(shown.score_meaning(answer))}</p>' if answer.rows else "")
        )
        rows = []
        for row in answer.rows:
            also = [
                f"also № {other[row.item]} of {answers[place][0].system}"
                for place, other in enumerate(ranks)
                if place != number and row.item in other
            ]
            score = f"<small>{escape(shown.score_name(answer))}</small> {row.score:.2f}"
            rows.append(_recommended(number, shown, row, score, also, written.get((number, str(row.item)))))
        body = f'<ol class="plain">{"".join(rows)}</ol>' if rows else ""
        kind = "hint" if rows else "problem"
        heading = escape(f"{shown.system} {shown.name}")
        parts.append(f'<section aria-label="{heading}">{head}{note(answer.message, kind)}{body}</section>')
    return f'<div class="answers">{"".join(parts)}</div>'


def _recommended(number: int, shown: ShownModel, row: Recommended, score: str, also: list[str], sentence: str | None) -> str:
    why = "" if row.near is None else _near_list(row.near)
    if sentence is not None:
        why += f'<p class="why">In the model’s words</p><blockquote role="status">{escape(sentence)}</blockquote>'
    elif shown.writer is not None:
        words = button(f"write-{number}", row.item, f"What does the model say of {row.title}?", "In the model’s words", "link")
        why += words
    price = "" if row.price is None else f'<span class="price">{row.price:,.2f}</span>'
    badge = f'<span class="badge">{escape("; ".join(also))}</span>' if also else ""
    return (
        f'<li class="card"><span class="rank">{row.rank}</span>{_picture(row.image)}'
        f'<div class="what">{_named(row.item, row.title)}{price}{badge}{why}</div>'
        f'<span class="score">{score}</span></li>'
    )


def _picture(address: str | None) -> str:
    if address is None:
        return ""
    # Without a referrer, the host of the picture does not learn from which page it was asked for.
    return f'<img class="picture" src="{escape(address)}" alt="" loading="lazy" referrerpolicy="no-referrer">'


def _near_list(near: Sequence[Near]) -> str:
    if not near:
        return '<p class="why">Nothing near in the history</p>'
    rows = [
        f'<li>{escape(other.title)} <b title="cosine, and rank among all items">{other.cosine:.2f}, № {other.rank:,}</b></li>'
        for other in near
    ]
    return f'<p class="why">Nearest in the history</p><ul class="plain near">{"".join(rows)}</ul>'


def _named(item: Any, title: str) -> str:
    return f'<span class="named"><span class="title">{escape(title)}</span> <span class="id">{escape(str(item))}</span></span>'
