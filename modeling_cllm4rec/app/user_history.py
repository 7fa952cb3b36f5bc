"""The user of the page: a history composed by clicking and, optionally, a known user."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modeling_cllm4rec.app.answers import user_index
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.core.errors import InputError


@dataclass(frozen=True)
class UserHistory:
    """A history of external item ids and, for a known user, the external user id as text.

    Example:
        >>> UserHistory().toggled("B1").toggled("B2").toggled("B1").history
        ('B2',)
    """

    history: tuple[Any, ...] = ()
    user: str | None = None

    def toggled(self, item: Any) -> UserHistory:
        """Return the history with `item` added as the latest one, or removed if the history contains it."""
        if item in self.history:
            return replace(self, history=tuple(other for other in self.history if other != item))
        return replace(self, history=(*self.history, item))


def take_user(users: KnownUsers | None, catalogue: Catalogue, user: str) -> tuple[UserHistory, str]:
    """Return the stored history of a known user and a sentence about it.

    Args:
        users: users of the model; catalogue: its items.
        user: external id as text.

    Returns:
        The history, which is empty if the model was saved without histories, and the sentence.

    Raises:
        InputError: the id is empty or unknown, or the model has no users.
    """
    user = user.strip()
    if not user:
        raise InputError("Enter a user id, or choose a random user.")
    if users is None or not len(users):
        raise InputError("This model has no known users. Compose a history instead.")
    index = user_index(users, user)
    if index is None:
        example = users.ids.ids_of([0])[0]
        raise InputError(f"User “{user}” is not among the {len(users):,} known users. An id looks like “{example}”.")
    if not users.has_histories:
        return UserHistory((), user), f"User {user}. The model was saved without histories. You can compose one."
    history = tuple(catalogue.ids.ids_of(users.history(index)))
    return UserHistory(history, user), f"User {user}, with {len(history)} items."


def any_user(users: KnownUsers, generator: np.random.Generator) -> str:
    """Return the id, as text, of a random user."""
    return str(users.ids.ids_of([int(generator.integers(len(users)))])[0])
