"""A recommendation question and its one check, for Python, the shell, the HTTP service, Inference Endpoints and the page.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from .catalogue import IdMap, KnownUsers, OnUnknown
from .errors import InputError

_SHOWN = 200


class QuestionError(InputError):
    """Report one argument of a question.

    Attributes:
        argument: its name, `histories[3]` for one history.
        value: the given value.
        allowed: the valid values.
        what_to_do: how to correct the question.
        skippable: whether `on_unknown="skip"` would leave the value out.

    Example:
        >>> print(QuestionError("k", 0, "a whole number from 1 to 6", "choose another k"))
        k is 0; allowed: a whole number from 1 to 6; choose another k
    """

    def __init__(self, argument: str, value: Any, allowed: str, what_to_do: str, skippable: bool = False) -> None:
        self.argument, self.value, self.allowed, self.what_to_do, self.skippable = argument, value, allowed, what_to_do, skippable
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
        skip = ", or pass on_unknown='skip' to leave them out" if skippable else ""
        super().__init__(f"{argument} is {shown}; allowed: {allowed}; {what_to_do}{skip}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy an error between processes by its parts: by default an exception is made again from its message alone."""
        return type(self), (self.argument, self.value, self.allowed, self.what_to_do, self.skippable)


@dataclass(frozen=True, eq=False)
class Question:
    """A checked question of n users; `read` builds it from external ids.

    Attributes:
        names: (n,) external user ids, or the numbers of the given histories or queries. Users that were left out are missing.
        k: number of items for each user.
        user_indices: (n,) user indices; None for unknown users.
        histories: n arrays of item indices, oldest first; None for the histories that `known` stores.
        queries: n texts; None for a question without words.
        known: the model's users.
        exclude_seen: whether items of the history are left out.
        candidates: sorted item indices to choose from; None for the whole catalogue.
        search: settings of the model's own search.
    """

    names: pa.Array
    k: int
    user_indices: np.ndarray | None = None
    histories: list[np.ndarray] | None = None
    queries: list[str] | None = None
    known: KnownUsers | None = None
    exclude_seen: bool = True
    candidates: np.ndarray | None = None
    search: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> Any:
        """Return the external user id, or the number of the history or query."""
        return self.names[row].as_py()

    def user_index(self, row: int) -> int:
        """Return the user index, -1 for an unknown user."""
        return -1 if self.user_indices is None else int(self.user_indices[row])

    def history(self, row: int) -> np.ndarray:
        """Return (items,) item indices, oldest first: those given, or those stored."""
        if self.histories is not None:
            return self.histories[row]
        if self.known is None:
            return np.zeros(0, np.int64)
        return self.known.history(self.user_index(row))

    @classmethod
    def read(
        cls,
        model: Any,
        users: Sequence[Any] | None = None,
        histories: Sequence[Sequence[Any]] | None = None,
        queries: Sequence[str] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "raise",
        **search: Any,
    ) -> Question:
        """Check a question in external ids. A user named twice is answered twice.

        Args:
            model: a `RecommenderModel`.
            users: external user ids; without `histories`, their stored histories are read.
            histories: external item ids, oldest first, one list per user; without `users`, those of unknown users.
            queries: texts, one per user; only for a model that reads queries, which then needs no history.
            k: number of items, at most the number of candidates.
            exclude_seen: leave items of the history out.
            candidates: external item ids to choose from; None means the whole catalogue.
            on_unknown: `"raise"` or `"skip"`: skipping leaves unknown users, items and candidates out, and users with
                nothing left that the model could read.
            search: settings of the model's own search.

        Raises:
            QuestionError: anything else; it names the argument, the value, the valid values, and the way out.
            InputError: the model has no catalogue.
        """
        catalogue = model.require_catalogue()
        _check_on_unknown(on_unknown)
        for argument, value in (("users", users), ("histories", histories), ("queries", queries), ("candidates", candidates)):
            if value is not None:
                _check_list(argument, value, "texts" if argument == "queries" else "ids")
        histories = None if histories is None else _plain(histories)
        queries = None if queries is None else _plain(queries)
        _check_switch("exclude_seen", exclude_seen)
        _check_queries(model, queries)
        size = _size(model, users, histories, queries)
        chosen = _read_candidates(catalogue.ids, candidates, on_unknown)
        items = len(catalogue) if chosen is None else len(chosen)
        check_whole_number("k", k, items, "the items to choose from")
        model.check_search(int(k), **search)
        rows, known, user_indices = np.arange(size), None, None
        if users is not None:
            known = _known_users(model, users, histories)
            user_indices = _indices(known.ids, "users", users, on_unknown)
            rows = rows[user_indices >= 0]
        read: dict[int, np.ndarray] | None = None
        if histories is not None:
            given = {row: _read_history(catalogue.ids, row, histories[row], on_unknown) for row in rows.tolist()}
            needs_items = users is None or not model.reads_users
            read = {row: history for row, history in given.items() if len(history) or not needs_items}
            if on_unknown == "raise" and len(read) < len(given):
                row = next(row for row in given if row not in read)
                raise QuestionError(f"histories[{row}]", [], "a history with at least one known item", "give it an item", True)
            rows = np.array(list(read), dtype=np.int64)
        elif user_indices is not None:
            rows = rows[model.readable(user_indices[rows], on_unknown)]
        indices = None if user_indices is None else user_indices[rows]
        return cls(
            names=pa.array(rows) if known is None else known.ids.array.take(pa.array(indices)),
            k=int(k),
            user_indices=indices,
            histories=None if read is None else [read[row] for row in rows.tolist()],
            queries=None if queries is None else [queries[row] for row in rows.tolist()],
            known=known,
            exclude_seen=bool(exclude_seen),
            candidates=chosen,
            search=search,
        )


@dataclass(frozen=True, eq=False)
class ItemQuestion:
    """A checked question for the items that are similar to n items; `read` builds it from external ids.

    Attributes:
        items: (n,) item indices.
        k: number of similar items for each.
        candidates: sorted item indices to choose from; None for the whole catalogue.
    """

    items: np.ndarray
    k: int
    candidates: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def read(
        cls,
        model: Any,
        items: Sequence[Any],
        k: int = 10,
        candidates: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "raise",
    ) -> ItemQuestion:
        """Check a question in external ids. An item named twice is answered twice.

        Args:
            model: a `RecommenderModel`.
            items: external item ids.
            k: number of similar items, at most the number of candidates.
            candidates: external item ids to choose from; None means the whole catalogue.
            on_unknown: `"raise"` or `"skip"`, which leaves unknown items and candidates out.

        Raises:
            QuestionError: anything else; it names the argument, the value, the valid values, and the way out.
            InputError: the model has no catalogue.
        """
        catalogue = model.require_catalogue()
        _check_on_unknown(on_unknown)
        for argument, value in (("items", items), ("candidates", candidates)):
            if value is not None or argument == "items":
                _check_list(argument, value, "ids")
        found = _indices(catalogue.ids, "items", items, on_unknown)
        chosen = _read_candidates(catalogue.ids, candidates, on_unknown)
        check_whole_number("k", k, len(catalogue) if chosen is None else len(chosen), "the items to choose from")
        return cls(found[found >= 0], int(k), chosen)


def _check_on_unknown(on_unknown: Any) -> None:
    if on_unknown not in ("raise", "skip"):
        raise QuestionError("on_unknown", on_unknown, "'raise' and 'skip'", "choose one of them")


def check_whole_number(argument: str, value: Any, most: int | None = None, meaning: str = "") -> None:
    """Check that a value is a whole number from 1 to `most`; `meaning` says what there are `most` of.

    Raises:
        QuestionError: it is another number, a boolean, or no number.

    Example:
        >>> check_whole_number("k", 2.5, 6)
        Traceback (most recent call last):
        ...
        modeling_cllm4rec.core.questions.QuestionError: k is 2.5; allowed: a whole number from 1 to 6; choose another k
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if whole and value >= 1 and (most is None or value <= most):
        return
    allowed = "a whole number of 1 or more" if most is None else f"a whole number from 1 to {most}"
    raise QuestionError(argument, value, f"{allowed}, {meaning}" if meaning else allowed, f"choose another {argument}")


def _check_switch(argument: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise QuestionError(argument, value, "true or false", "give one of them, without quotes")


def _check_list(argument: str, value: Any, of: str) -> None:
    """Check that a value has an order and a length, and is no text."""
    if (
        isinstance(value, (str, bytes, dict, set, frozenset))
        or not hasattr(value, "__len__")
        or not hasattr(value, "__getitem__")
    ):
        raise QuestionError(
            argument, value, f"a list of {of}", "put it in [ ]" if isinstance(value, (str, int)) else "give a list"
        )


def _check_queries(model: Any, queries: Sequence[Any] | None) -> None:
    if queries is None:
        return
    if not model.reads_queries:
        raise QuestionError(
            "queries",
            list(queries),
            "users or histories",
            "this model reads no queries; leave them out, or ask an LC-Rec model aligned with the task itemsearch",
        )
    for number, query in enumerate(queries):
        if not isinstance(query, str) or not any(character.isalnum() for character in query):
            raise QuestionError(f"queries[{number}]", query, "a text with words", "say in words what is looked for")


def _size(model: Any, users: Any, histories: Any, queries: Any) -> int:
    """Return the number of users that were asked for."""
    given = {
        name: value for name, value in (("queries", queries), ("users", users), ("histories", histories)) if value is not None
    }
    if not given:
        expected = "users, histories, or both" + (", or queries" if model.reads_queries else "")
        raise QuestionError("users", None, expected, "name users or histories")
    first, *others = given
    size = len(given[first])
    for name in others:
        if len(given[name]) != size:
            raise QuestionError(
                name, _plain(given[name]), f"a list of {size}, one for each of the {first}", f"give as many {name} as {first}"
            )
    return size


def _known_users(model: Any, users: Sequence[Any], histories: Any) -> KnownUsers:
    known: KnownUsers | None = model.users
    if known is None:
        raise QuestionError("users", _plain(users), "histories", "this model knows no users; give histories instead")
    if histories is None and len(users) and not known.has_histories:
        raise QuestionError(
            "users", _plain(users), "users together with histories", "this model keeps no histories; also give histories"
        )
    return known


def _read_candidates(ids: IdMap, candidates: Sequence[Any] | None, on_unknown: OnUnknown) -> np.ndarray | None:
    if candidates is None:
        return None
    found = _indices(ids, "candidates", candidates, on_unknown)
    found = np.unique(found[found >= 0])
    if not len(found):
        raise QuestionError(
            "candidates", _plain(candidates), "at least one known item id", "leave candidates out to choose among all items"
        )
    return found


def _read_history(ids: IdMap, row: int, history: Any, on_unknown: OnUnknown) -> np.ndarray:
    _check_list(f"histories[{row}]", history, "ids")
    indices = _indices(ids, f"histories[{row}]", history, on_unknown)
    return indices[indices >= 0]


def _indices(ids: IdMap, argument: str, given: Sequence[Any], on_unknown: OnUnknown) -> np.ndarray:
    """Return the indices of external ids, -1 for unknown ones that are to be left out."""
    values = _plain(given)
    if wrong := ids.wrongly_typed(values):
        kind = "strings" if ids.is_text else "whole numbers"
        raise QuestionError(argument, wrong[:5], kind, f"the {ids.name}s of this model are {kind}; give them as such")
    found = ids.indices_of(values, "skip")
    if on_unknown == "raise" and (found < 0).any():
        unknown = list(dict.fromkeys(value for value, index in zip(values, found, strict=True) if index < 0))
        known = f"the {len(ids)} {ids.name}s that the model knows"
        raise QuestionError(argument, unknown[:5], known, f"correct the unknown ids, {len(unknown)} in all", skippable=True)
    return found


def _plain(given: Any) -> list[Any]:
    """Return a list of Python's own values."""
    for method in ("to_pylist", "tolist"):  # pyarrow; NumPy and pandas
        if hasattr(given, method):
            return list(getattr(given, method)())
    return [one.item() if isinstance(one, np.generic) else one for one in given]


__all__ = ["ItemQuestion", "Question", "QuestionError", "check_whole_number"]
