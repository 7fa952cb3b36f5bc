"""HTTP/1.1 of uvicorn with limits that it lacks: connections, slow headers, slow readers, half-closed connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from modeling_cllm4rec.core.handler import BadRequest
from modeling_cllm4rec.serving.error_responses import DRAIN_SECONDS, JSONAnswer, Refused, refusal
from modeling_cllm4rec.serving.settings import HEADER_SECONDS, MOST_HEADER_BYTES, WRITE_SECONDS, ServiceSettings

PROBE_SECONDS = 0.05
WHOLE_REQUEST = (h11.DONE, h11.MUST_CLOSE)
"""States of a client whose request has arrived whole."""
SHUTDOWN_SECONDS = 30


def server_config(app: ASGIApp, settings: ServiceSettings) -> uvicorn.Config:
    """Return the configuration of uvicorn for the service."""
    return uvicorn.Config(
        app,
        http=GuardedProtocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        limit_concurrency=settings.connections,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


class GuardedProtocol(H11Protocol):
    """A connection.

    `limit_concurrency` of `uvicorn.Config` is the number of open connections, of which further ones get status 503.

    A client may close its sending side after the request and still wait for the answer. TCP shows the same for a client that has
    gone away. So such a client gets an interim `100 Continue`, which a waiting client skips (RFC 9110, section 15.2); the machine
    of a client that is gone answers it with a reset.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.most_connections, self.limit_concurrency = self.limit_concurrency, None
        self._headers_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._half_closed = self._discards = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection and wait for its first request."""
        super().connection_made(transport)
        if self.most_connections is not None and len(self.connections) > self.most_connections:
            reason = BadRequest("connections", len(self.connections), f"{self.most_connections} open", "ask again in a second")
            self.app = refusal(Refused(503, reason, {"retry-after": "1", "connection": "close"}))
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._discards:
            return
        super().data_received(data)
        self._expect_headers()

    def on_response_complete(self) -> None:
        """Go on with the next request, or close after the last one of a client that sends no more."""
        super().on_response_complete()
        if self._half_closed and self.cycle.response_complete:
            self.transport.close()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection of a client that sends no more but may wait for its answer."""
        if self.cycle is None or self.cycle.response_complete or self.conn.their_state not in WHOLE_REQUEST:
            return None
        self._half_closed = True
        if self.conn.our_state is h11.SEND_RESPONSE and self.scope["http_version"] != "1.0":
            self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue")) or b"")
        self._probe()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in (self._headers_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for a client that does not read its answer, for some time."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has too long headers, in the form of all errors."""
        reason = BadRequest("request", msg, "HTTP/1.1 with short headers", "correct the request line or the headers")
        answer = JSONAnswer({"error": reason.as_json()}, 400, {"connection": "close"})
        response = h11.Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        # Closed at once, a connection with unread data is reset, and the client may lose the answer.
        self._discards = True
        self.transport.write_eof()
        self.loop.call_later(DRAIN_SECONDS, self.transport.abort)

    def _expect_headers(self) -> None:
        """Start the clock of a request whose headers are not complete, stop it otherwise."""
        waits = self.conn.their_state is h11.IDLE
        if waits and self._headers_timer is None:
            self._headers_timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)
        elif not waits and self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _too_slow(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()

    def _probe(self) -> None:
        """End the request of a client whose machine has answered with a reset."""
        if self.cycle.response_complete or self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        self.loop.call_later(PROBE_SECONDS, self._probe)


__all__ = ["GuardedProtocol", "server_config"]
