"""Turns: what a further sentence changes."""

import numpy as np
import pytest

from modeling_cllm4rec.app.turns import Conversation, asked_rank, is_why, next_turn

SOAP = ("Rose soap", 4.5)


def test_words_are_joined():
    first = next_turn(Conversation(), "a soap", None, True)
    second = next_turn(first, "for dry skin", SOAP, True)
    assert second.query == "a soap, for dry skin"
    assert second.said == (("a soap", ""), ("for dry skin", ""))
    assert second.within(np.array([1.0])) is None


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        ("something cheaper", ()),
        ("Cheaper, please!", ()),
        ("a less expensive one", ()),
        ("a cheaper kit", ("a kit",)),
        ("cheaper than this", ()),
    ],
)
def test_cheaper_is_a_limit_and_the_rest_is_words(words, rest):
    turn = next_turn(Conversation(("a soap",)), words, SOAP, True)
    assert (turn.cheaper_than, turn.dearer_than, turn.words) == (4.5, None, ("a soap", *rest))
    assert turn.said[-1] == (words, "Below 4.50, the price of “Rose soap”.")
    assert turn.within(np.array([4.5, 4.4, np.nan, 9])).tolist() == [1]
    assert turn.within(None) is None


def test_dearer_and_both_limits():
    turn = next_turn(next_turn(Conversation(), "more expensive", SOAP, True), "cheaper", ("Kit", 9.0), True)
    assert turn.within(np.array([4.5, 5, 9, 10])).tolist() == [1]


def test_without_prices_it_is_words():
    turn = next_turn(Conversation(), "something cheaper", SOAP, False)
    assert turn.query == "something cheaper" and "have no prices" in turn.said[0][1]
    early = next_turn(Conversation(), "something cheaper", None, True)
    assert early.query == "something cheaper" and "no list yet" in early.said[0][1]
    with pytest.raises(ValueError, match="The price of “Kit”, the first of the list, is unknown"):
        next_turn(Conversation(), "cheaper", ("Kit", None), True)


def test_why_and_of_which():
    assert is_why("Why this one?") and is_why(" “why?”") and not is_why("the reason why") and not is_why("whyever")
    assert asked_rank("why number 3?") == 3 and asked_rank("why this one?") == 1
