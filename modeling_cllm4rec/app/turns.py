"""Turns of a conversation about one history: further words, "something cheaper", "why this one?". All answers are real items."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError

CHEAPER = re.compile(r"\b(cheaper|less expensive|lower price|costs? less)\b", re.IGNORECASE)
DEARER = re.compile(r"\b(more expensive|pricier|dearer|higher price|costs? more)\b", re.IGNORECASE)
WHY = re.compile(r"^\W*why\b", re.IGNORECASE)
NUMBER = re.compile(r"\d+")
FILLER = frozenset(
    "a an and any anything but i is it like me much one ones please show some something than that the this want with".split()
)
"""Words around a comparison of prices that describe no item."""


@dataclass(frozen=True)
class Conversation:
    """Everything that earlier turns asked for.

    Attributes:
        words: descriptions, oldest first. A query joins them, so that a later turn refines the earlier ones.
        cheaper_than, dearer_than: limits on the price, None for none.
        said: the turns as they were typed, each with how it was understood.

    Example:
        >>> Conversation().with_words("a soap").with_words("for dry skin").query
        'a soap, for dry skin'
    """

    words: tuple[str, ...] = ()
    cheaper_than: float | None = None
    dearer_than: float | None = None
    said: tuple[tuple[str, str], ...] = ()

    @property
    def query(self) -> str:
        """Return all descriptions as one."""
        return ", ".join(self.words)

    def with_words(self, words: str, understood: str = "") -> Conversation:
        """Return the conversation with a further description."""
        return replace(self, words=(*self.words, words), said=(*self.said, (words, understood)))

    def answered(self, words: str, answer: str) -> Conversation:
        """Return the conversation with a question that changed nothing, and its answer."""
        return replace(self, said=(*self.said, (words, answer)))

    def within(self, prices: npt.NDArray[np.float64] | None) -> np.ndarray | None:
        """Return the (items,) item indices within the limits on the price, of items with a known one; None without limits."""
        if prices is None or (self.cheaper_than is None and self.dearer_than is None):
            return None
        below = np.inf if self.cheaper_than is None else self.cheaper_than
        above = -np.inf if self.dearer_than is None else self.dearer_than
        return np.flatnonzero((prices < below) & (prices > above))


def is_why(words: str) -> bool:
    """Return whether a turn asks for a reason.

    Example:
        >>> is_why("Why this one?"), is_why("a reason why")
        (True, False)
    """
    return WHY.search(words) is not None


def asked_rank(words: str) -> int:
    """Return the rank that a question names, 1 where it names none.

    Example:
        >>> asked_rank("why number 3?"), asked_rank("why this one?")
        (3, 1)
    """
    number = NUMBER.search(words)
    return int(number[0]) if number else 1


def next_turn(
    conversation: Conversation, words: str, reference: tuple[str, float | None] | None, has_prices: bool
) -> Conversation:
    """Return the conversation after a turn that asks for other items.

    A turn that compares prices sets a limit, if there are prices and an item to compare with; what else it says joins the query.
    Without prices all of its words do.

    Args:
        words: the turn.
        reference: title and price (None if unknown) of the first item of the last answer; None before the first answer.
        has_prices: whether the catalogue has numeric prices.

    Raises:
        InputError: a comparison with an item that has no price.

    Example:
        >>> cheaper = next_turn(Conversation(), "something cheaper", ("Rose soap", 4.5), has_prices=True)
        >>> cheaper.cheaper_than, cheaper.query
        (4.5, '')
    """
    below, above = CHEAPER.search(words), DEARER.search(words)
    if not (below or above):
        return conversation.with_words(words)
    if not has_prices:
        return conversation.with_words(words, "The items have no prices here, so the model reads this as words.")
    if reference is None:
        return conversation.with_words(words, "There is no list yet to compare prices with, so the model reads this as words.")
    title, price = reference
    if price is None:
        raise InputError(f"The price of “{title}”, the first of the list, is unknown, so nothing can be compared with it.")
    changed = replace(conversation, cheaper_than=price) if below else replace(conversation, dearer_than=price)
    rest = DEARER.sub(" ", CHEAPER.sub(" ", words))
    if set(re.findall(r"\w+", rest.lower())) - FILLER:
        changed = replace(changed, words=(*changed.words, " ".join(rest.split())))
    return changed.answered(words, f"{'Below' if below else 'Above'} {price:,.2f}, the price of “{title}”.")
