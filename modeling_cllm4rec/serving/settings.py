"""Settings of the service, and the limits of a request."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from modeling_cllm4rec.core.errors import InputError

MOST_BYTES = 1_000_000
"""Largest request body."""
MOST_HEADER_BYTES = 16_384
"""Largest request line and headers together."""
MOST_DEPTH = 8
"""Levels of lists and objects in a request body; a valid one has three."""
MOST_WORDS = 16
"""Words of a search for titles, each of which reads the whole catalogue."""
MOST_QUERY_CHARACTERS = 10_000
HEADER_SECONDS, BODY_SECONDS, WRITE_SECONDS = 10.0, 20.0, 30.0
"""Time limits for the headers and the body of a request, and for a client that does not read its answer."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine for itself."""


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of a service.

    Args:
        batch_size: users per forward pass; None takes the model's default.
        batching: answer concurrent calls in one pass; False answers one call after another.
        wait_ms: milliseconds that a call waits for others if the server is idle.
        queue: users who may wait before further calls get status 503; at least 256, the largest call.
        most_bytes: largest request body in bytes.
        connections: open connections; further ones get status 503.
        api_key: key that clients send as `Authorization: Bearer KEY`, except to `/health`, `/ready` and the documentation.
            Without one, `/reload` is closed.
        allowed_hosts: names that the header `Host` may have; None allows all.
        access_log: write a line of JSON to the log for each request.
    """

    batch_size: int | None = None
    batching: bool = True
    wait_ms: float = 0.0
    queue: int = 1024
    most_bytes: int = MOST_BYTES
    connections: int = 512
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] | None = None
    access_log: bool = False

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "queue": 256, "wait_ms": 0, "most_bytes": 1, "connections": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < math.inf:
                raise InputError(f"{name} is {value}; it must be {bound} or more, and a finite number")
        if self.api_key is not None and (len(self.api_key) < 16 or not self.api_key.isascii() or not self.api_key.isprintable()):
            raise InputError("api_key has fewer than 16 characters, or others than ASCII; make one by `openssl rand -hex 32`")


__all__ = ["ServiceSettings"]
