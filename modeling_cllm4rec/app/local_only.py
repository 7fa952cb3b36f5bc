"""Pages that load nothing from other hosts, whatever they say, but for pictures of items where they are switched on."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def policy(image_hosts: Sequence[str] = ()) -> str:
    """Return the Content-Security-Policy of the page: everything from this host only, pictures also from the given ones.

    Example:
        >>> policy(["https://images.example"])
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; img-src 'self' data: blob: https://images.example"
    """
    return f"{POLICY}; img-src 'self' data: blob: {' '.join(image_hosts)}" if image_hosts else POLICY


class LocalOnly:
    """Middleware that sends a Content-Security-Policy: scripts, fonts, pictures and connections of this host only.

    Args:
        app: the application.
        image_hosts: hosts of pictures that the browser may load as well.
    """

    def __init__(self, app: ASGIApp, image_hosts: Sequence[str] = ()) -> None:
        self.app, self.policy = app, policy(image_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; add the header to what comes back."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = self.policy
            await send(message)

        await self.app(scope, receive, send_with_policy)
