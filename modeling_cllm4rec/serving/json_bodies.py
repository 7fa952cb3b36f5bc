"""Request bodies: limits of size, time and depth, and strict JSON, for the routes of FastAPI."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.handler import BadRequest
from modeling_cllm4rec.serving.error_responses import Refused
from modeling_cllm4rec.serving.settings import BODY_SECONDS, MOST_DEPTH

CLIENT_GONE = 499
"""Status in the log of a request whose client has disconnected."""


class StrictRequest(Request):
    """A request whose body is limited and parsed strictly. `most_bytes` is read from the state of the application."""

    async def body(self) -> bytes:
        """Read the whole body.

        Raises:
            Refused: it is too large, no JSON by its header, or too slow.
        """
        if not hasattr(self, "_body"):
            try:
                self._body = await read_body(self, self.app.state.settings.most_bytes)
            except ClientDisconnect:
                raise client_gone() from None
        return self._body

    async def json(self) -> Any:
        """Return the JSON value of the body; see `parse_json`."""
        return parse_json(await self.body())


class StrictRoute(APIRoute):
    """A route whose requests are `StrictRequest`s."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of FastAPI around a strict request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


async def read_body(request: Request, most_bytes: int, seconds: float | None = None) -> bytes:
    """Read the body of a request.

    Raises:
        Refused: a body above `most_bytes` (by its header, before any of it is read), one that is no JSON by its header, or one
            that does not arrive in time.
    """
    seconds = BODY_SECONDS if seconds is None else seconds
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most_bytes:
        raise _too_large(f"{declared} bytes", most_bytes)
    kind = request.headers.get("content-type", "")
    is_empty = declared == "0" and "transfer-encoding" not in request.headers
    if kind.partition(";")[0].strip().lower() != "application/json" and not is_empty:
        # A page of another site may send a form or plain text without asking the server first, but no JSON.
        advice = "send the header `content-type: application/json`, with curl by --json in place of -d"
        raise Refused(415, BadRequest("content-type", kind, "application/json", advice), unread=True)
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
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """Parse a JSON document in UTF-8.

    Raises:
        Refused: it is none, names a key twice, is nested more than `MOST_DEPTH` deep, or holds NaN, a number beyond the floats
            (1e400) or half a surrogate pair.

    Example:
        >>> parse_json(b'{"k": 3}')
        {'k': 3}
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_without_duplicates)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        if _depth(value) > MOST_DEPTH:
            raise InputError(f"it is nested more than {MOST_DEPTH} deep")
        return value
    except (ValueError, RecursionError) as error:
        shown = body[:100].decode("utf-8", "replace")
        why = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise Refused(400, BadRequest("body", shown, "JSON in UTF-8", f"correct it: {why}")) from error


def client_gone() -> Refused:
    """Return the end of a request whose client has disconnected; nobody reads it."""
    return Refused(CLIENT_GONE, BadRequest("client", "a closed connection", "an open one", "keep it open until the answer"))


def _no_number(word: str) -> Any:
    raise InputError(f"{word} is no JSON number")


def _finite(word: str) -> float:
    number = float(word)
    if math.isinf(number):
        raise InputError(f"{word[:20]} is no finite number")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the key {twice[:50]!r} is there twice")
    return found


def _depth(value: Any) -> int:
    """Return the levels of lists and objects, at most one more than are allowed."""
    level, depth = [value], 0
    while depth <= MOST_DEPTH:
        level = [one for one in level if isinstance(one, (list, dict))]
        if not level:
            break
        depth += 1
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
    return depth


def _too_large(got: str, most_bytes: int) -> Refused:
    reason = BadRequest("body", got, f"at most {most_bytes} bytes", "split the question into several")
    return Refused(413, reason, unread=True)


__all__ = ["CLIENT_GONE", "StrictRequest", "StrictRoute", "client_gone", "parse_json", "read_body"]
