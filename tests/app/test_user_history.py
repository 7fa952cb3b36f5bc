"""Composing a history, and known users."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.app.user_history import UserHistory, any_user, take_user
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers

CATALOGUE = Catalogue(["B0", "B1", "B2"])
USERS = KnownUsers([17, 4], np.array([0, 2, 2]), np.array([2, 0], np.int32))


@given(st.lists(st.sampled_from("abcd"), max_size=12))
def test_an_item_is_in_a_history_if_it_was_toggled_an_odd_number_of_times(items):
    user_history = UserHistory(user="ann")
    for item in items:
        user_history = user_history.toggled(item)
    assert set(user_history.history) == {item for item in items if items.count(item) % 2}
    assert len(set(user_history.history)) == len(user_history.history)
    assert user_history.user == "ann"


def test_known_users():
    assert take_user(USERS, CATALOGUE, " 17 ") == (UserHistory(("B2", "B0"), "17"), "User 17, with 2 items.")
    user_history, sentence = take_user(USERS.without_histories(), CATALOGUE, "17")
    assert user_history == UserHistory((), "17")
    assert "saved without histories" in sentence


@pytest.mark.parametrize(
    ("users", "user", "sentence"),
    [
        (USERS, " ", "Enter a user id"),
        (USERS, "ann", "User “ann” is not among the 2 known users. An id looks like “17”"),
        (USERS, "5", "User “5” is not among"),
        (None, "5", "has no known users"),
    ],
)
def test_users_that_are_none(users, user, sentence):
    with pytest.raises(ValueError, match=sentence):
        take_user(users, CATALOGUE, user)


def test_any_user():
    assert {any_user(USERS, np.random.default_rng(seed)) for seed in range(20)} == {"17", "4"}
