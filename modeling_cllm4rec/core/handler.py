"""Requests as JSON in, items with titles and scores out, for Inference Endpoints and `cllm4rec serve`.

This file is self-contained because it is copied into every saved folder. Inference Endpoints load it by its path and not as
part of a package, so it imports none of the other files. It checks what JSON adds to a question: the names of the fields and
the limits of a request. The meaning is checked by the model (`Question.read`), whose file is loaded as part of a package.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

FIELDS = ("users", "histories", "k", "exclude_seen", "candidates")
SEARCH_FIELDS = ("query", "num_beams")
"""Fields that only a model that searches (LC-Rec) reads."""
MOST_USERS, MOST_ITEMS, MOST_BEAMS = 256, 1000, 200
"""Largest number of users in a request, `k`, and `num_beams`, so that one request does not block all others."""
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
        shown, echoed = _as_json(got)
        self.field, self.allowed, self.what_to_do = field, allowed, what_to_do
        self.got = got if echoed and len(shown) <= _SHOWN else shown[:_SHOWN] + "..." if echoed else shown[:_SHOWN]
        super().__init__(f"{field}: got {shown[:_SHOWN]}; allowed: {allowed}; {what_to_do}")

    def as_json(self) -> dict[str, Any]:
        """Return the four attributes."""
        return {"field": self.field, "got": self.got, "allowed": self.allowed, "what_to_do": self.what_to_do}


def _as_json(value: Any) -> tuple[str, bool]:
    """Return a value as JSON, and whether it can be echoed: 1e400 is read as an infinity, which JSON cannot write."""
    try:
        return json.dumps(value, allow_nan=False), True
    except ValueError:
        return repr(value), False
    except RecursionError:
        return "a deeply nested value", False


def read_question(model: Any, given: Any) -> Any:
    """Check a client's request.

    Args:
        model: a recommender of either system.
        given: `users` (external ids, whose stored histories are read) or `histories` (lists of item ids, oldest first), or both,
            one history for each user; `k` (10), `exclude_seen` (true), `candidates` (item ids to choose from). A model that
            searches also reads `query` (words, alone or with one user or history) and `num_beams`, a number
            or a list with one for each level.

    Returns:
        The `Question` that `model.read_question` returns.

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
    for name in ("users", "histories"):
        value = given.get(name)
        if isinstance(value, list) and not 1 <= len(value) <= MOST_USERS:
            raise BadRequest(name, value, f"a list of 1 to {MOST_USERS}", "split longer lists into several requests")
    for name, most in (("k", MOST_ITEMS), ("num_beams", MOST_BEAMS)):
        value = given.get(name)
        values = value if isinstance(value, list) else [value]  # the beams of each level
        if any(isinstance(one, int) and one > most for one in values):
            raise BadRequest(name, value, f"a whole number from 1 to {most}", f"choose another {name}")
    question = {name: value for name, value in given.items() if name != "query"}
    if "query" in given:
        question["queries"] = [given["query"]]
    try:
        return model.read_question(**question)
    except ValueError as error:
        if not hasattr(error, "argument"):  # its class, QuestionError, cannot be imported here
            raise
        raise _bad_request(error, given) from error


def _bad_request(error: Any, given: dict[str, Any]) -> BadRequest:
    """Return a `QuestionError` as an error of the request."""
    what_to_do = f"{error.what_to_do}, or leave them out" if error.skippable else error.what_to_do
    if error.argument.startswith("queries"):
        return BadRequest("query", given["query"], error.allowed, what_to_do)
    return BadRequest(error.argument, error.value, error.allowed, what_to_do)


def answer(model: Any, questions: Sequence[Any], batch_size: int) -> list[dict[str, Any]]:
    """Answer requests together: users with the same candidates and search settings share forward passes.

    Args:
        model: a recommender of either system.
        questions: checked requests of any clients.
        batch_size: users in one pass.

    Returns:
        For each request `{"results": [{"user", "items": [{"item", "title", "score"}, ...]}, ...]}`, users in the order of the
        request, items best first. A user with fewer unseen candidates than k gets fewer items. Padding in a shared pass can
        change a score by about 1e-6.

    Raises:
        BadRequest: a query that does not fit into the context.
    """
    results: list[list[Any]] = [[None] * len(question) for question in questions]
    groups: dict[Any, list[tuple[int, int]]] = {}
    for number, question in enumerate(questions):
        for row in range(len(question)):
            if _has_choice(model, question, row):
                groups.setdefault(_shared(question, row), []).append((number, row))
            else:
                results[number][row] = _named(model, question, row, [], [])
    for places in groups.values():
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            batch = [(questions[number], row) for number, row in part]
            for (number, row), (question, _), (items, scores) in zip(part, batch, _best(model, batch), strict=True):
                results[number][row] = _named(model, question, row, items[: question.k], scores[: question.k])
    return [{"results": rows} for rows in results]


def _shared(question: Any, row: int) -> tuple[Any, ...]:
    """Return the key of users who can share a pass."""
    candidates = None if question.candidates is None else question.candidates.tobytes()
    asking = None if question.queries is None else len(question.history(row)) > 0
    settings = [(name, tuple(value) if isinstance(value, list) else value) for name, value in question.search.items()]
    return candidates, tuple(settings), asking


def _has_choice(model: Any, question: Any, row: int) -> bool:
    """Return whether any candidate is left without the user's seen items."""
    if not question.exclude_seen:
        return True
    seen = np.unique(question.history(row))
    if question.candidates is None:
        return len(seen) < len(model.catalogue)
    return not bool(np.isin(question.candidates, seen).all())


def _best(model: Any, batch: Sequence[tuple[Any, int]]) -> Iterable[tuple[Any, Any]]:
    """Return (items, scores) of each user, best first."""
    first, _ = batch[0]
    histories = [question.history(row) for question, row in batch]
    if first.queries is None:
        users = np.array([question.user_index(row) for question, row in batch])
        prompts = model.build_prompts(users, histories)
    else:
        queries = [question.queries[row] for question, row in batch]
        try:
            prompts = model.build_query_prompts(queries, histories if len(histories[0]) else None)
        except ValueError as error:
            raise BadRequest("query", queries[0], "words that fit into the model's context", str(error)) from error
    seen = [history if question.exclude_seen else history[:0] for (question, _), history in zip(batch, histories, strict=True)]
    k = max(question.k for question, _ in batch)
    given = histories if first.queries is None else None
    best, scores = model.best_items(prompts, seen, k, first.candidates, histories=given, **first.search)
    return zip((row[row >= 0] for row in best), scores, strict=True)


def _named(model: Any, question: Any, row: int, items: Any, scores: Any) -> dict[str, Any]:
    catalogue = model.catalogue
    rows = zip(catalogue.ids.ids_of(items), catalogue.titles(items), scores, strict=False)
    return {
        "user": question.name(row),
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
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())

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
    "answer",
    "read_question",
]
