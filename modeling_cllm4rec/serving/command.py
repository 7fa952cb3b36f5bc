"""The command `cllm4rec serve`: recommendations over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_cllm4rec.commands.addresses import address_family
from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.commands.model_flags import add_device_arguments, placement
from modeling_cllm4rec.core.errors import InputError, MissingFileError, RunError
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.hub.model_names import check_name

if TYPE_CHECKING:
    from modeling_cllm4rec.core.recommender import RecommenderModel
    from modeling_cllm4rec.serving.settings import ServiceSettings

EPILOG = """example:
  cllm4rec serve --model runs/mine --port 8000
  curl -s --json '{"users": ["ann"], "k": 5}' localhost:8000/recommend
  curl -s --json '{"histories": [["B00021DVCQ"]], "candidates": ["B00027DDOQ", "B0002VQ0WO"], "k": 1}' localhost:8000/recommend
  curl -s --json '{"items": ["B00021DVCQ"], "k": 5}' localhost:8000/similar-items
  curl -s 'localhost:8000/items?title=cream'

The page /docs describes all routes. On Ctrl-C or SIGTERM, in-flight requests are completed before shutdown. On SIGHUP, the
folder of --model is loaded again and served from then on.
"""
NEEDED = ("fastapi", "uvicorn", "prometheus_client")
KEY_VARIABLE = "CLLM4REC_API_KEY"


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(
        "serve",
        description="Answer questions over HTTP: POST /recommend, POST /similar-items, GET /items?title=, GET /health.",
        epilog=EPILOG,
    )
    flags.add_argument("--model", required=True, help="folder or Hub name of a finetuned or aligned model")
    flags.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    flags.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: 8000)")
    flags.add_argument("--batch-size", type=int, help="users per forward pass (default: 256, LC-Rec 64)")
    flags.add_argument("--no-batching", action="store_true", help="answer one call after another")
    flags.add_argument("--wait-ms", type=float, default=0.0, help="milliseconds to wait for further calls (default: 0)")
    flags.add_argument("--queue", type=int, default=1024, help="users who may wait before calls get status 503 (default: 1024)")
    flags.add_argument("--connections", type=int, default=512, help="open connections before status 503 (default: 512)")
    flags.add_argument(
        "--api-key-file", help=f"file with a key that clients must send (default: the environment variable {KEY_VARIABLE})"
    )
    flags.add_argument(
        "--allowed-hosts",
        nargs="+",
        help="names in the header Host (default: those of this machine on a loopback address, else all)",
    )
    flags.add_argument("--no-access-log", action="store_true", help="write no line to the log for each request")
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
    check_name(arguments.model)  # before torch is imported, which takes seconds
    import uvicorn

    from modeling_cllm4rec.core.console_log import hide_loading_bars
    from modeling_cllm4rec.hub.loading import load_recommender
    from modeling_cllm4rec.serving.application import make_service
    from modeling_cllm4rec.serving.protocol import server_config

    class Server(uvicorn.Server):
        """A server that replaces its model on SIGHUP."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            reloads: set[asyncio.Task[None]] = set()  # the event loop itself keeps no task alive

            def reload() -> None:
                task = asyncio.create_task(service.state.models.reload_or_log())
                reloads.add(task)
                task.add_done_callback(reloads.discard)

            if hasattr(signal, "SIGHUP"):  # Windows has none
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)

    hide_loading_bars()
    with listening(arguments.host, arguments.port) as listener:
        host, port = listener.getsockname()[:2]
        settings = settings_of(arguments, host)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is a model to replace
        place = placement(arguments)

        def load(name: str) -> RecommenderModel:
            return load_recommender(name, **place)

        started = time.perf_counter()
        # No variable holds the model: it is dropped when another one takes its place.
        service: Any = make_service(load(arguments.model), settings, load, time.perf_counter() - started)
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {arguments.model} on http://{shown}:{port}", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn shuts down and then raises the signal again
            signal.signal(number, signal.SIG_IGN)
        Server(server_config(service, settings)).run(sockets=[listener])


def settings_of(arguments: argparse.Namespace, address: str) -> ServiceSettings:
    """Return the settings of the flags for a server on an address.

    Raises:
        InputError: a value out of range.
        MissingFileError: there is no file with a key.
    """
    from modeling_cllm4rec.serving.settings import LOOPBACK, ServiceSettings

    hosts = arguments.allowed_hosts
    if hosts is None and (address == "::1" or address.startswith("127.")):
        hosts = [*LOOPBACK, address]
    return ServiceSettings(
        batch_size=arguments.batch_size,
        batching=not arguments.no_batching,
        wait_ms=arguments.wait_ms,
        queue=arguments.queue,
        connections=arguments.connections,
        api_key=read_key(arguments.api_key_file),
        allowed_hosts=None if hosts is None else tuple(dict.fromkeys(host.lower() for host in hosts)),
        access_log=not arguments.no_access_log,
    )


def read_key(file: str | None) -> str | None:
    """Return the API key of a file or of the environment, None where neither is given. A flag would show it to all users.

    Raises:
        MissingFileError: there is no such file.
        InputError: it cannot be read.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    if not Path(file).is_file():
        raise MissingFileError(f"api_key_file: there is no file {file}; make one by `openssl rand -hex 32 > {file}`")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"api_key_file: {file} cannot be read ({error}); give a text file with one line") from error


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
    if not arguments.no_access_log:
        logging.getLogger("modeling_cllm4rec.serving.guard.access").setLevel(logging.INFO)
    return flags.run(arguments, lambda: serve(arguments))
