"""Composing a history, and known users."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.app.person import Person, any_user, take_user
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers

CATALOGUE = Catalogue(["B0", "B1", "B2"])
USERS = KnownUsers([17, 4], np.array([0, 2, 2]), np.array([2, 0], np.int32))


@given(st.lists(st.sampled_from("abcd"), max_size=12))
def test_an_item_stands_in_a_history_if_it_was_toggled_an_odd_number_of_times(items):
    person = Person(user="ann")
    for item in items:
        person = person.toggled(item)
    assert set(person.history) == {item for item in items if items.count(item) % 2}
    assert len(set(person.history)) == len(person.history)
    assert person.user == "ann"


def test_known_users():
    assert take_user(USERS, CATALOGUE, " 17 ") == (Person(("B2", "B0"), "17"), "User 17, with 2 items.")
    person, sentence = take_user(USERS.without_histories(), CATALOGUE, "17")
    assert person == Person((), "17")
    assert "saved without histories" in sentence


@pytest.mark.parametrize(
    ("users", "user", "sentence"),
    [
        (USERS, " ", "Type the id of a user"),
        (USERS, "ann", "no user “ann” among the 2 known ones; an id looks like “17”"),
        (USERS, "5", "no user “5”"),
        (None, "5", "knows no users"),
    ],
)
def test_users_that_are_none(users, user, sentence):
    with pytest.raises(ValueError, match=sentence):
        take_user(users, CATALOGUE, user)


def test_any_user():
    assert {any_user(USERS, np.random.default_rng(seed)) for seed in range(20)} == {"17", "4"}
