"""Request bodies with a size limit, and error responses as JSON that reach a client that is still sending."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.handler import BadRequest

MOST_BYTES = 1_000_000
BODY_SECONDS = 20.0
"""Time limit for receiving a body."""
DRAIN_BYTES, DRAIN_SECONDS = 64_000_000, 5.0
"""Limits for draining a rejected body: without it, a client that is still sending would see a reset connection."""


class Refused(Exception):
    """A request that gets an error response.

    Args:
        status: HTTP status.
        reason: field, what it got, what is allowed, and what to do.
        headers: additional response headers.
        unread: whether part of the body was not read.
    """

    def __init__(self, status: int, reason: BadRequest, headers: dict[str, str] | None = None, unread: bool = False) -> None:
        super().__init__(str(reason))
        self.status, self.reason, self.headers, self.unread = status, reason, headers, unread


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
    if refused.unread:
        return LingeringAnswer(body, refused.status, {**(refused.headers or {}), "connection": "close"})
    return JSONAnswer(body, refused.status, refused.headers)


async def read_json(request: Request, most_bytes: int = MOST_BYTES, seconds: float = BODY_SECONDS) -> Any:
    """Read the JSON value of a request body.

    Raises:
        Refused: a body above `most_bytes` (by its header, before any of it is read), one that does not arrive within
            `seconds`, or one that is no JSON.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most_bytes:
        raise _too_large(f"{declared} bytes", most_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise _too_large(f"more than {most_bytes} bytes", most_bytes)
    except TimeoutError:
        late = BadRequest("body", f"{len(body)} bytes in {seconds:g} s", "a whole body by then", "send it faster, or less of it")
        raise Refused(408, late, {"connection": "close"}) from None
    return parse_json(bytes(body))


def parse_json(body: bytes) -> Any:
    """Parse a JSON document in UTF-8.

    Raises:
        Refused: it is none, or holds what JSON does not allow (NaN), or nothing can be done with (half a surrogate pair).

    Example:
        >>> parse_json(b'{"k": 3}')
        {'k': 3}
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_no_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except (ValueError, RecursionError) as error:
        shown = body[:100].decode("utf-8", "replace")
        why = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise Refused(400, BadRequest("body", shown, "JSON in UTF-8", f"correct it: {why}")) from error


def _no_number(word: str) -> Any:
    raise InputError(f"{word} is no JSON number")


def _too_large(got: str, most_bytes: int) -> Refused:
    reason = BadRequest("body", got, f"at most {most_bytes} bytes", "split the question into several")
    return Refused(413, reason, unread=True)


__all__ = ["JSONAnswer", "Refused", "parse_json", "read_json", "refusal"]
