"""The HTTP service around one model, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from modeling_cllm4rec import __version__
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.handler import BadRequest, answer, read_question
from modeling_cllm4rec.serving.dynamic_batching import Batcher, QueueFull
from modeling_cllm4rec.serving.error_responses import MOST_BYTES, JSONAnswer, Refused, read_json, refusal

log = logging.getLogger(__name__)
ROUTES = ("POST /recommend", "GET /items?title=WORDS", "GET /health")
MOST_FOUND, DEFAULT_FOUND = 100, 20
CLIENT_GONE = 499
"""Status in the log of a request whose client has disconnected."""


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of a service.

    Args:
        batch_size: users per forward pass; None takes the model's default.
        batching: answer concurrent calls in one pass; False answers one call after another.
        wait_ms: milliseconds that a call waits for others if the server is idle.
        queue: users who may wait before further calls get status 503; at least 256, the largest call.
        most_bytes: largest request body in bytes.
    """

    batch_size: int | None = None
    batching: bool = True
    wait_ms: float = 0.0
    queue: int = 1024
    most_bytes: int = MOST_BYTES

    def __post_init__(self) -> None:
        for name, value, least in (("batch_size", self.batch_size, 1), ("queue", self.queue, 256), ("wait_ms", self.wait_ms, 0)):
            if value is not None and not least <= value < math.inf:
                raise InputError(f"{name} is {value}; it must be {least} or more, and a finite number")


def make_service(model: Any, settings: ServiceSettings | None = None) -> Starlette:
    """Build the ASGI application: `POST /recommend`, `GET /items?title=`, `GET /health`.

    Args:
        model: a recommender of either system (`hub.loading.load_recommender`).
        settings: settings; None takes the defaults.

    Raises:
        InputError: the model cannot recommend or has no catalogue.
    """
    model.check_ready()
    service = _Service(model.eval(), settings or ServiceSettings())
    model.warm_up()
    return Starlette(
        routes=[
            Route("/recommend", service.recommend, methods=["POST"]),
            Route("/items", service.items, methods=["GET"]),
            Route("/health", service.health, methods=["GET"]),
        ],
        exception_handlers={
            Refused: lambda _, error: refusal(error),
            BadRequest: lambda _, error: refusal(Refused(400, error)),
            QueueFull: _busy,
            HTTPException: _no_such_route,
            ClientDisconnect: lambda *_: Response(status_code=CLIENT_GONE),
            Exception: _failed,
        },
        lifespan=service.lifespan,
    )


class _Service:
    """The routes and their shared queue."""

    def __init__(self, model: Any, settings: ServiceSettings) -> None:
        self.model, self.settings = model, settings
        size = settings.batch_size or model.default_batch_size
        self.batcher = Batcher(
            functools.partial(answer, model, batch_size=size),
            max_batch_size=size,
            capacity=settings.queue,
            batching=settings.batching,
            wait_s=settings.wait_ms / 1000,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        turns = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            turns.cancel()
            self.batcher.close()

    async def recommend(self, request: Request) -> Response:
        question = read_question(self.model, await read_json(request, self.settings.most_bytes))
        found = await _unless_gone(request, self.batcher.ask(question))
        return JSONAnswer(found)

    def items(self, request: Request) -> Response:
        for name in request.query_params:
            if name not in ("title", "limit"):
                raise BadRequest("query string", name, "title, limit", "ask as /items?title=cream&limit=20")
        words = request.query_params.get("title", "").split()
        if not words:
            raise BadRequest("title", request.query_params.get("title"), "words of a title", "ask as /items?title=cream")
        limit = request.query_params.get("limit", str(DEFAULT_FOUND))
        if not limit.isdecimal() or not 1 <= int(limit) <= MOST_FOUND:
            raise BadRequest("limit", limit, f"1 to {MOST_FOUND}", "choose another limit, or narrow the title")
        table = self.model.catalogue.table
        if "title" not in table.column_names:
            raise BadRequest("title", " ".join(words), "item ids", "this model's catalogue has no titles")
        found = table.filter(_has_words(table["title"], words)).select(["item_id", "title"])
        rows = found.slice(0, int(limit)).rename_columns(["item", "title"]).to_pylist()
        return JSONAnswer({"items": rows, "found": found.num_rows})

    async def health(self, request: Request) -> Response:
        model, batcher = self.model, self.batcher
        return JSONAnswer(
            {
                "status": "ok",
                "version": __version__,
                "model_type": model.config.model_type,
                "items": len(model.catalogue),
                "users": 0 if model.users is None else len(model.users),
                "calls": batcher.calls,
                "turns": batcher.batches,
                "people_waiting": batcher.users_waiting,
            }
        )


def _has_words(titles: pa.ChunkedArray, words: list[str]) -> pa.ChunkedArray:
    """Return a mask of titles that contain every word, ignoring case."""
    found = [pc.match_substring(titles, word, ignore_case=True) for word in words]
    return functools.reduce(pc.and_, found)


async def _unless_gone(request: Request, asking: Coroutine[Any, Any, Any]) -> Any:
    """Return the answer, or raise `ClientDisconnect` when the client disconnects, so that a waiting call is never computed."""
    answer_task, disconnected = asyncio.ensure_future(asking), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answer_task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not answer_task.done():
            raise ClientDisconnect()
        return answer_task.result()
    finally:
        answer_task.cancel()
        disconnected.cancel()


def _busy(request: Request, error: Any) -> Response:
    reason = BadRequest("queue", error.waiting, f"{error.capacity} users waiting", "ask again in a second")
    return refusal(Refused(503, reason, {"retry-after": "1"}))


def _no_such_route(request: Request, error: Any) -> Response:
    got = f"{request.method} {request.url.path}"
    return refusal(Refused(error.status_code, BadRequest("path", got, ", ".join(ROUTES), "ask one of these"), error.headers))


def _failed(request: Request, error: Exception) -> Response:
    reason = BadRequest("server", type(error).__name__, "an answer", "the server's log says what went wrong; tell its owner")
    return refusal(Refused(500, reason))


__all__ = ["ServiceSettings", "make_service"]
