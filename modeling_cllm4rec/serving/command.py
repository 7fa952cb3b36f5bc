"""The command `cllm4rec serve`: recommendations over HTTP."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from typing import Any

from modeling_cllm4rec.commands.addresses import address_family
from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.commands.model_flags import add_device_arguments, placement
from modeling_cllm4rec.core.errors import RunError
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.hub.loading import load_recommender

EPILOG = """example:
  cllm4rec serve --model runs/mine --port 8000
  curl -s localhost:8000/recommend -d '{"users": ["ann"], "k": 5}'
  curl -s localhost:8000/recommend -d '{"histories": [["B00021DVCQ"]], "candidates": ["B00027DDOQ", "B0002VQ0WO"], "k": 1}'
  curl -s 'localhost:8000/items?title=cream'

On Ctrl-C or SIGTERM, in-flight requests are completed before shutdown.
"""
SHUTDOWN_SECONDS = 30
NEEDED = ("starlette", "uvicorn")


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(
        "serve",
        description="Answer questions over HTTP: POST /recommend, GET /items?title=, GET /health.",
        epilog=EPILOG,
    )
    flags.add_argument("--model", required=True, help="folder or Hub name of a finetuned or aligned model")
    flags.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    flags.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: 8000)")
    flags.add_argument("--batch-size", type=int, help="users per forward pass (default: 256, LC-Rec 64)")
    flags.add_argument("--no-batching", action="store_true", help="answer one call after another")
    flags.add_argument("--wait-ms", type=float, default=0.0, help="milliseconds to wait for further calls (default: 0)")
    flags.add_argument("--queue", type=int, default=1024, help="users who may wait before calls get status 503 (default: 1024)")
    add_device_arguments(flags)
    return flags


def serve(arguments: argparse.Namespace) -> None:
    """Load the model and serve until the process receives a signal.

    Raises:
        InputError: a flag out of range, or a model that cannot recommend.
        MissingFileError: there is no such model.
        MissingPackageError: a package of the extra `serve` is not installed.
        RunError: the port is taken.
    """
    for package in NEEDED:
        require(package, "serve", "serve")
    import uvicorn

    from modeling_cllm4rec.serving.service import ServiceSettings, make_service

    settings = ServiceSettings(
        batch_size=arguments.batch_size, batching=not arguments.no_batching, wait_ms=arguments.wait_ms, queue=arguments.queue
    )
    with listening(arguments.host, arguments.port) as listener:
        service: Any = make_service(load_recommender(arguments.model, **placement(arguments)), settings)
        config = uvicorn.Config(
            service,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        host, port = listener.getsockname()[:2]
        print(f"serving {arguments.model} on http://{host}:{port}", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn shuts down and then raises the signal again
            signal.signal(number, signal.SIG_IGN)
        uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """Bind the socket before the model is loaded, so that a port in use is reported at once.

    Raises:
        InputError: there is no such port, or no such address on this machine.
        RunError: the port is taken.
    """
    family = address_family(host, port)
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise RunError(f"--port: cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host") from error


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 after an orderly end."""
    flags = parser()
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    return flags.run(arguments, lambda: serve(arguments))
