"""The person for whom the page asks: a history composed by clicking, and perhaps a known user."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modeling_cllm4rec.app.answers import user_index
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.core.errors import InputError


@dataclass(frozen=True)
class Person:
    """A history and, where the person is a known user, the external id as text.

    Example:
        >>> Person().toggled("B1").toggled("B2").toggled("B1").history
        ('B2',)
    """

    history: tuple[Any, ...] = ()
    user: str | None = None

    def toggled(self, item: Any) -> Person:
        """With the item as the latest one; without it if it stands in the history."""
        if item in self.history:
            return replace(self, history=tuple(other for other in self.history if other != item))
        return replace(self, history=(*self.history, item))


def take_user(users: KnownUsers | None, catalogue: Catalogue, user: str) -> tuple[Person, str]:
    """A known user, with the stored history.

    Args:
        users: users of the model; catalogue: its items.
        user: external id as text.

    Returns:
        The person, and a sentence about it; the history is empty where the model was saved without histories.

    Raises:
        InputError: no id, no users, or none with this id.
    """
    user = user.strip()
    if not user:
        raise InputError("Type the id of a user, or let one be picked.")
    if users is None or not len(users):
        raise InputError("This model knows no users. Compose a history instead.")
    index = user_index(users, user)
    if index is None:
        example = users.ids.ids_of([0])[0]
        raise InputError(f"There is no user “{user}” among the {len(users):,} known ones; an id looks like “{example}”.")
    if not users.has_histories:
        return Person((), user), f"User {user}. The model was saved without histories: compose one, if you like."
    history = tuple(catalogue.ids.ids_of(users.history(index)))
    return Person(history, user), f"User {user}, with {len(history)} items."


def any_user(users: KnownUsers, generator: np.random.Generator) -> str:
    """The id, as text, of a user drawn at random."""
    return str(users.ids.ids_of([int(generator.integers(len(users)))])[0])
