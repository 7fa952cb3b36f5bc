"""Requests as JSON in, items with titles and scores out, for Inference Endpoints and `cllm4rec serve`.

This file is self-contained because it is copied into every saved folder. Inference Endpoints load it by its path and not as
part of a package, so it imports none of the other files.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModel

FIELDS = ("users", "histories", "k", "exclude_seen", "candidates")
SEARCH_FIELDS = ("query", "num_beams")
"""Fields that only a model that searches (LC-Rec) reads."""
MOST_PEOPLE, MOST_ITEMS, MOST_BEAMS = 256, 1000, 200
"""Largest number of users in a request, `k`, and `num_beams`, so that one request does not block all others."""
DEFAULT_K = 10
_SHOWN = 200


class BadRequest(ValueError):
    """A request that cannot be answered.

    Attributes:
        field: the wrong field.
        got: its value; of a long one, the first 200 characters of its JSON.
        allowed: the valid values.
        what_to_do: how to correct the request.

    Example:
        >>> BadRequest("k", 0, "1 to 6", "choose another k").as_json()
        {'field': 'k', 'got': 0, 'allowed': '1 to 6', 'what_to_do': 'choose another k'}
    """

    def __init__(self, field: str, got: Any, allowed: str, what_to_do: str) -> None:
        shown = json.dumps(got)
        self.field, self.allowed, self.what_to_do = field, allowed, what_to_do
        self.got = got if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
        super().__init__(f"{field}: got {shown[:_SHOWN]}; allowed: {allowed}; {what_to_do}")

    def as_json(self) -> dict[str, Any]:
        """Return the four attributes."""
        return {"field": self.field, "got": self.got, "allowed": self.allowed, "what_to_do": self.what_to_do}


class Person(NamedTuple):
    """One user of a request.

    Attributes:
        name: external user id, or the history's number.
        user_index: -1 for a user without one.
        history: (items,) item indices, oldest first.
        query: text query; None for a recommendation.
    """

    name: Any
    user_index: int
    history: np.ndarray
    query: str | None


class Question(NamedTuple):
    """A checked request: each of `users` gets `k` items, of `candidates` (sorted item indices) or of all."""

    users: list[Person]
    k: int
    exclude_seen: bool
    candidates: np.ndarray | None
    search: dict[str, int]


def read_question(model: Any, given: Any) -> Question:
    """Check a client's request.

    Args:
        model: a recommender of either system.
        given: `users` (external ids, whose stored histories are read) or `histories` (lists of item ids, oldest first), or both,
            one history for each user; `k` (10), `exclude_seen` (true), `candidates` (item ids to choose from). A model that
            searches also reads `query` (words, alone or with one user or history) and `num_beams`.

    Raises:
        BadRequest: anything else.
    """
    if not isinstance(given, dict):
        raise BadRequest("body", given, "a JSON object", 'send {"users": [...]} or {"histories": [[...]]}')
    fields = [*FIELDS, *SEARCH_FIELDS] if not model.scores_catalogue else list(FIELDS)
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "leave it out"
            if name in SEARCH_FIELDS:
                hint = "this model scores all items at once and reads no queries; leave it out, or ask an LC-Rec model"
            raise BadRequest("body", name, ", ".join(fields), hint)
    candidates = _read_candidates(model, given.get("candidates"))
    choices = len(model.catalogue) if candidates is None else len(candidates)
    search = _read_search(given)
    k = _whole_number("k", given.get("k", DEFAULT_K), min(choices, MOST_ITEMS))
    if not model.scores_catalogue and k > (beams := search.get("num_beams", model.config.search_beams)):
        raise BadRequest("k", k, f"1 to num_beams, {beams}", f"give num_beams of {k} or more, or a smaller k")
    exclude_seen = given.get("exclude_seen", True)
    if not isinstance(exclude_seen, bool):
        raise BadRequest("exclude_seen", exclude_seen, "true or false", "send one of them, without quotes")
    return Question(_read_users_and_histories(model, given), k, exclude_seen, candidates, search)


def _read_users_and_histories(model: Any, given: dict[str, Any]) -> list[Person]:
    users, histories, query = given.get("users"), given.get("histories"), given.get("query")
    if "query" in given and (not isinstance(query, str) or not query.strip()):
        raise BadRequest("query", query, "a text with words", "send words to search for")
    if users is None and histories is None:
        if query is None:
            expected = '"users": [...] or "histories": [[...]]' + (' or "query": "..."' if not model.scores_catalogue else "")
            raise BadRequest("body", sorted(given), expected, "name users or histories")
        return [Person(0, -1, np.zeros(0, np.int64), query)]
    for name, value in (("users", users), ("histories", histories)):
        if value is not None and (not isinstance(value, list) or not 1 <= len(value) <= MOST_PEOPLE):
            raise BadRequest(name, value, f"a list of 1 to {MOST_PEOPLE}", "split longer lists into several requests")
    if users is not None and histories is not None and len(users) != len(histories):
        raise BadRequest("histories", f"{len(histories)} histories, {len(users)} users", "as many", "give each user a history")
    names: Sequence[Any] = users if users is not None else range(len(histories or []))
    if query is not None and len(names) > 1:
        raise BadRequest("query", f"a query for {len(names)} users", "one user", "send one request for each of them")
    indices = np.full(len(names), -1) if users is None else _read_users(model, users)
    if histories is None:
        if model.users.items is None:
            raise BadRequest(
                "users", users, "users together with histories", "this model keeps no histories; also give histories"
            )
        read = [model.users.history(int(index)) for index in indices]
    else:
        read = [_read_ids(model.catalogue.ids, f"histories[{row}]", history) for row, history in enumerate(histories)]
    for row, history in enumerate(read):
        if not len(history) and (not model.reads_users or indices[row] < 0):
            where = f"users[{row}]" if histories is None else f"histories[{row}]"
            raise BadRequest(where, [], "a history with at least one item", "this model cannot read an empty one")
    return [Person(name, int(i), items, query) for name, i, items in zip(names, indices, read, strict=True)]


def _read_users(model: Any, users: list[Any]) -> np.ndarray:
    if model.users is None:
        raise BadRequest("users", users, "histories", "this model knows no users; send histories")
    return _read_ids(model.users.ids, "users", users)


def _read_candidates(model: Any, given: Any) -> np.ndarray | None:
    if given is None:
        return None
    found = np.unique(_read_ids(model.catalogue.ids, "candidates", given))
    if not len(found):
        raise BadRequest("candidates", given, "at least one item id", "leave the field out to choose among all items")
    return found


def _read_search(given: dict[str, Any]) -> dict[str, int]:
    if "num_beams" not in given:
        return {}
    return {"num_beams": _whole_number("num_beams", given["num_beams"], MOST_BEAMS)}


def _whole_number(field: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadRequest(field, value, f"a whole number from 1 to {most}", f"choose another {field}")
    return value


def _read_ids(ids: Any, field: str, given: Any) -> np.ndarray:
    """Return the indices of external ids; `ids` is the catalogue's or the users' `IdMap`."""
    if not isinstance(given, list):
        raise BadRequest(field, given, "a list of ids", "put the ids in [ ]")
    kind, words = (str, "strings") if ids.is_text else (int, "whole numbers")
    wrong = [value for value in given if not isinstance(value, kind) or isinstance(value, bool)]
    if wrong:
        raise BadRequest(field, wrong[:5], words, f"the {ids.name}s of this model are {words}; send them as such")
    found: np.ndarray = ids.indices_of(given, "skip")
    if (found < 0).any():
        unknown = list(dict.fromkeys(value for value, index in zip(given, found, strict=True) if index < 0))
        known = f"the {len(ids)} {ids.name}s that the model knows"
        raise BadRequest(field, unknown[:5], known, f"correct the {len(unknown)} unknown ones, or leave them out")
    return found


def answer(model: Any, questions: Sequence[Question], batch_size: int) -> list[dict[str, Any]]:
    """Answer requests together: users with the same candidates and search settings share forward passes.

    Args:
        model: a recommender of either system.
        questions: requests of any clients.
        batch_size: users in one pass.

    Returns:
        For each request `{"results": [{"user", "items": [{"item", "title", "score"}, ...]}, ...]}`, users in the order of the
        request, items best first. A user with fewer unseen candidates than k gets fewer items. Padding in a shared pass can
        change a score by about 1e-6.

    Raises:
        BadRequest: a query that does not fit into the context.
    """
    results: list[list[Any]] = [[None] * len(question.users) for question in questions]
    groups: dict[Any, list[tuple[int, int]]] = {}
    for number, question in enumerate(questions):
        for row, user in enumerate(question.users):
            if _has_choice(model, question, user):
                groups.setdefault(_shared(question, user), []).append((number, row))
            else:
                results[number][row] = _named(model, question, user, [], [])
    for places in groups.values():
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            batch = [(questions[number], questions[number].users[row]) for number, row in part]
            for (number, row), (question, user), (items, scores) in zip(part, batch, _best(model, batch), strict=True):
                results[number][row] = _named(model, question, user, items[: question.k], scores[: question.k])
    return [{"results": rows} for rows in results]


def _shared(question: Question, user: Person) -> tuple[Any, ...]:
    """Return the key of users who can share a pass."""
    candidates = None if question.candidates is None else question.candidates.tobytes()
    asking = None if user.query is None else (len(user.history) > 0, question.exclude_seen)
    return candidates, tuple(question.search.items()), asking


def _has_choice(model: Any, question: Question, user: Person) -> bool:
    """Return whether any candidate is left without the user's seen items."""
    if not question.exclude_seen:
        return True
    seen = np.unique(user.history)
    if question.candidates is None:
        return len(seen) < len(model.catalogue)
    return not bool(np.isin(question.candidates, seen).all())


def _best(model: Any, batch: Sequence[tuple[Question, Person]]) -> Iterable[tuple[Any, Any]]:
    """Return (items, scores) of each user, best first."""
    first, first_user = batch[0]
    k = max(question.k for question, _ in batch)
    if first_user.query is not None:
        return _searched(model, batch, k)
    users = np.array([user.user_index for _, user in batch])
    prompts = model.build_prompts(users, [user.history for _, user in batch])
    seen = [user.history if question.exclude_seen else user.history[:0] for question, user in batch]
    best, scores = model.best_items(prompts, seen, k, first.candidates, **first.search)
    return zip((row[row >= 0] for row in best), scores, strict=True)


def _searched(model: Any, batch: Sequence[tuple[Question, Person]], k: int) -> Iterable[tuple[Any, Any]]:
    first, first_user = batch[0]
    ids = model.catalogue.ids
    queries = [user.query for _, user in batch]
    histories = [ids.ids_of(user.history) for _, user in batch] if len(first_user.history) else None
    candidates = None if first.candidates is None else ids.ids_of(first.candidates)
    try:
        table = model.search(queries, k, histories, candidates, first.exclude_seen, **first.search).table
    except ValueError as error:
        raise BadRequest("query", queries[0], "words that fit into the model's context", str(error)) from error
    user = table["user"].to_numpy()
    items, scores = ids.indices_of(table["item"].to_pylist()), table["score"].to_numpy()
    return [(items[user == row], scores[user == row]) for row in range(len(batch))]


def _named(model: Any, question: Question, user: Person, items: Any, scores: Any) -> dict[str, Any]:
    catalogue = model.catalogue
    rows = zip(catalogue.ids.ids_of(items), catalogue.titles(items), scores, strict=False)
    return {
        "user": user.name,
        "items": [{"item": item, "title": title, "score": float(score)} for item, title, score in rows],
    }


class EndpointHandler:
    """The handler that Inference Endpoints build once from a model's folder and call for each request.

    Example:
        >>> handler = EndpointHandler("runs/beauty")  # doctest: +SKIP
        >>> handler({"inputs": {"histories": [["B00021DVCQ"]], "k": 3}})  # doctest: +SKIP
    """

    def __init__(self, path: str = "") -> None:
        # The folder's own code is run: this file is part of it.
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
        self.model.check_ready()
        if torch.cuda.is_available():
            self.model.to("cuda")

    def __call__(self, data: Any) -> dict[str, Any]:
        """Answer one request.

        Args:
            data: `{"inputs": request}`; the request as in `read_question`.

        Returns:
            `{"results": [...]}` as in `answer`.

        Raises:
            BadRequest: with the field, its value, the valid values, and how to correct it.
        """
        if not isinstance(data, dict) or list(data) != ["inputs"]:
            got = sorted(data) if isinstance(data, dict) else data
            raise BadRequest("body", got, '{"inputs": {...}}', "put the whole request under inputs")
        question = read_question(self.model, data["inputs"])
        return answer(self.model, [question], self.model.default_batch_size)[0]


__all__ = [
    "BadRequest",
    "EndpointHandler",
    "Person",
    "Question",
    "answer",
    "read_question",
]
