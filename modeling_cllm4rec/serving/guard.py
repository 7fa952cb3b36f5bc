"""The outermost layer of the service: request ids, access log, metrics, `Host`, the API key, and errors that nobody foresaw."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modeling_cllm4rec.core.handler import BadRequest
from modeling_cllm4rec.serving.error_responses import Refused, refusal
from modeling_cllm4rec.serving.metrics import Metrics
from modeling_cllm4rec.serving.settings import MOST_HEADER_BYTES, ServiceSettings

log = logging.getLogger(__name__)
access = logging.getLogger(f"{__name__}.access")
OPEN_PATHS = ("/health", "/ready", "/docs", "/openapi.json")
"""Paths that need no API key."""
REQUEST_ID = "x-request-id"
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        settings: settings of the service.
        metrics: counts the requests.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; no exception leaves but that of a cancelled task."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        started, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        self.metrics.running.inc()
        try:
            refused = self._refused(scope)
            if refused is None:
                await self.app(scope, receive, answer)
            else:
                await refusal(refused)(scope, receive, answer)
        except Exception as error:
            log.exception("request %s failed", request_id)
            if status:  # the answer has begun: only the connection can be ended
                raise
            advice = f"the server's log says what went wrong; tell its owner the request id {request_id}"
            reason = BadRequest("server", type(error).__name__, "an answer", advice)
            await refusal(Refused(500, reason))(scope, receive, answer)
        finally:
            self.metrics.running.dec()
            self._record(scope, request_id, status, time.perf_counter() - started)

    def _refused(self, scope: Scope) -> Refused | None:
        """Return why a request is refused by its headers alone."""
        headers, hosts = Headers(scope=scope), self.settings.allowed_hosts
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in headers.raw)
        if size > MOST_HEADER_BYTES:  # uvicorn limits headers that come in parts only
            reason = BadRequest("headers", f"{size} bytes", f"at most {MOST_HEADER_BYTES} bytes", "send shorter headers")
            return Refused(431, reason, unread=True)
        host = headers.get("host", "")
        if hosts is not None and host_name(host) not in hosts:
            advice = "ask by one of these names, or start the server with --allowed-hosts"
            return Refused(421, BadRequest("host", host, ", ".join(hosts), advice), unread=True)
        key = self.settings.api_key
        if key is None or scope["path"] in OPEN_PATHS:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode()):
            return None
        reason = BadRequest("authorization", "no valid key", "the API key", "send the header `authorization: Bearer KEY`")
        return Refused(401, reason, {"www-authenticate": "Bearer"}, unread=True)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if route != "other" else "other"  # a client may send any word
        self.metrics.count_request(route, method, status, seconds)
        if self.settings.access_log:
            client = scope.get("client") or ("", 0)
            line = {
                "request_id": request_id,
                "client": client[0],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
            access.info(json.dumps(line))


def host_name(host: str) -> str:
    """Return the name in a header `Host`, without its port.

    Example:
        >>> host_name("LOCALHOST:8000"), host_name("[::1]:8000"), host_name("::1")
        ('localhost', '::1', '')
    """
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]*))(?::\d{1,5})?", host.lower())
    return "" if found is None else found[1] or found[2] or ""


__all__ = ["Guard", "host_name"]
