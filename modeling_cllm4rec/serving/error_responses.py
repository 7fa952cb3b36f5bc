"""Error responses: one JSON form for all of them, which also reaches a client that is still sending."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modeling_cllm4rec.core.handler import BadRequest

DRAIN_BYTES, DRAIN_SECONDS = 64_000_000, 5.0
"""Limits for draining a rejected body: without it, a client that is still sending would see a reset connection."""


class Refused(HTTPException):
    """A request that gets an error response.

    Args:
        status: HTTP status.
        reason: field, what it got, what is allowed, and what to do.
        headers: additional response headers.
        unread: whether part of the body was not read.
    """

    def __init__(self, status: int, reason: BadRequest, headers: dict[str, str] | None = None, unread: bool = False) -> None:
        super().__init__(status, str(reason), headers)
        self.reason, self.unread = reason, unread


class JSONAnswer(Response):
    """JSON in ASCII, so that ids with an unpaired surrogate can be echoed."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        return json.dumps(content, allow_nan=False).encode("ascii")


class LingeringAnswer(JSONAnswer):
    """A response that is sent at once, followed by draining the rest of the request before the connection closes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then drain the request."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        expects = any(name == b"expect" for name, _ in scope["headers"])  # such a client sends no body after an error
        try:
            async with asyncio.timeout(0 if expects else DRAIN_SECONDS):
                await _drain(receive)
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    drained = 0
    while drained < DRAIN_BYTES:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        drained += len(message["body"])


def refusal(refused: Refused) -> Response:
    """Return the response to a rejected request: `{"error": {"field", "got", "allowed", "what_to_do"}}`."""
    body = {"error": refused.reason.as_json()}
    headers = dict(refused.headers or {})
    if refused.unread:
        return LingeringAnswer(body, refused.status_code, {**headers, "connection": "close"})
    return JSONAnswer(body, refused.status_code, headers)


def as_bad_request(errors: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> BadRequest:
    """Return the first error of a schema as an error of the request.

    Args:
        errors: those of pydantic, with `type`, `loc`, `msg` and `input`.
        fields: names of the fields that the request may have.

    Example:
        >>> error = {"type": "extra_forbidden", "loc": ("body", "user"), "msg": "extra", "input": "ann"}
        >>> as_bad_request([error], ["users"]).as_json()["what_to_do"]
        "did you mean 'users'?"
    """
    error = errors[0]
    where, kind, got = error["loc"], error["type"], error["input"]
    part = "query string" if where[0] == "query" else "body"
    name = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in where[1:]).lstrip(".") or part
    words = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if name == part:
        return BadRequest(part, _shown(got), "a JSON object", "send one, such as " + json.dumps({fields[0]: ["..."]}))
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(name, fields, n=1)
        return BadRequest(part, name, ", ".join(fields), f"did you mean {near[0]!r}?" if near else "leave it out")
    if kind == "missing":
        return BadRequest(name, None, "a value", f"give {name}")
    ids = isinstance(got, list) and words.startswith("a list")
    advice = f"choose another {name}" if not ids else "split longer lists into several requests" if got else "give at least one"
    return BadRequest(name, _shown(got), words, advice)


def _shown(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


__all__ = ["JSONAnswer", "Refused", "as_bad_request", "refusal"]
