"""Addresses that a command listens on, checked before a model is loaded."""

from __future__ import annotations

import socket

from modeling_cllm4rec.core.errors import InputError


def address_family(host: str, port: int) -> socket.AddressFamily:
    """Return the family of an address of this machine, IPv4 or IPv6.

    Raises:
        InputError: there is no such port, or no such host.

    Example:
        >>> address_family("127.0.0.1", 8000).name
        'AF_INET'
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}; it must lie between 0 and 65535")
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise InputError(f"host: {host} is no address of this machine ({error}); use 127.0.0.1, or 0.0.0.0 for all") from error


__all__ = ["address_family"]
