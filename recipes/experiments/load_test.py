"""Load test of `cllm4rec serve` on loopback: latency and throughput, with and without dynamic batching.

python recipes/experiments/load_test.py --model runs/beauty --output runs/beauty/load-test
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.core.catalogue import USERS_FILE, KnownUsers
from modeling_cllm4rec.core.errors import InputError, MissingFileError, RunError

EPILOG = """example:
  python recipes/experiments/load_test.py --model runs/beauty --output runs/beauty/load-test --seconds 10

Two servers are started, one with dynamic batching and one with --no-batching. Concurrent clients send requests to one server at a
time. Each client requests recommendations for one known user, waits for the response and sends the next request. Output:
load-test.md and load-test.json.
"""
CALLERS = (1, 8, 32)
JSON = {"content-type": "application/json"}
WARM_UP_SECONDS = 1.0
START_SECONDS = 300
SEED = 0


@contextmanager
def server(model: str, *flags: str) -> Iterator[str]:
    """Start a server in a separate process and yield its address."""
    command = [sys.executable, "-m", "modeling_cllm4rec", "serve", "--model", model, "--port", "0", *flags]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        words = child.stdout.readline().split()
        if not words:
            raise RunError(f"the server of {model} did not start; its output is above")
        yield words[-1]
    finally:
        child.terminate()
        child.wait(START_SECONDS)


def send_request(connection: http.client.HTTPConnection, user: Any, k: int) -> float:
    """Send one request and return its latency in seconds.

    Raises:
        RunError: the response is not a list of k items.
    """
    started = time.perf_counter()
    connection.request("POST", "/recommend", json.dumps({"users": [user], "k": k}), JSON)
    response = connection.getresponse()
    body = response.read()
    seconds = time.perf_counter() - started
    if response.status != 200 or len(json.loads(body)["results"][0]["items"]) != k:
        raise RunError(f"user {user!r}: status {response.status}, {body[:200]!r}")
    return seconds


def run_client(address: str, users: list[Any], k: int, until: float, seconds: list[float], failures: list[str]) -> None:
    """Send one request after another until `until`, a time of `time.perf_counter`."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        for user in users:
            if time.perf_counter() >= until:
                return
            seconds.append(send_request(connection, user, k))
    except (OSError, RunError, http.client.HTTPException) as error:
        failures.append(str(error) or type(error).__name__)
    finally:
        connection.close()


def batches_and_calls(address: str) -> np.ndarray:
    """Return the number of batches and of calls that the server has completed."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", "/health")
    health = json.loads(connection.getresponse().read())
    connection.close()
    return np.array([health["batches"], health["calls"]])


def measure(address: str, known: KnownUsers, callers: int, seconds: float, k: int) -> dict[str, Any]:
    """Measure one row of the table: `callers` concurrent clients for `seconds`.

    Returns:
        `callers`, `answers`, `users_per_second`, `p50_ms`, `p95_ms`, `p99_ms` (milliseconds), `calls_per_turn`.

    Raises:
        RunError: a call failed.
    """
    rng = np.random.default_rng(SEED + callers)
    most = 200_000 // callers  # more than a client can send
    users_of_clients = [known.ids.ids_of(rng.integers(len(known), size=most)) for _ in range(callers)]
    latencies: list[list[float]] = [[] for _ in range(callers)]
    failures: list[str] = []
    before, started = batches_and_calls(address), time.perf_counter()
    threads = [
        threading.Thread(target=run_client, args=(address, users, k, started + seconds, mine, failures))
        for users, mine in zip(users_of_clients, latencies, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    if failures:
        raise RunError(f"{len(failures)} of {callers} callers failed: {failures[0]}")
    turns, calls = batches_and_calls(address) - before
    milliseconds = 1000 * np.concatenate([np.array(mine) for mine in latencies])
    p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99])
    return {
        "callers": callers,
        "answers": len(milliseconds),
        "users_per_second": len(milliseconds) / elapsed,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "calls_per_turn": float(calls / turns),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    rows = "\n".join(
        f"| {cell['callers']} | {'on' if cell['batching'] else 'off'} | {cell['users_per_second']:.0f} | {cell['p50_ms']:.1f} | "
        f"{cell['p95_ms']:.1f} | {cell['p99_ms']:.1f} | {cell['calls_per_turn']:.1f} |"
        for cell in report["cells"]
    )
    return f"""# Load test

{report["model_type"]}, {report["items"]} items, k = {report["k"]}. Each caller requests recommendations for one user and
waits for the response before the next request, {report["seconds"]:g} s per row. Servers and callers share
{report["processors"]} processors (OMP_NUM_THREADS: {report["threads"]}). Seed {SEED}.

| callers | batching | users per second | p50, ms | p95, ms | p99, ms | calls per batch |
|---|---|---|---|---|---|---|
{rows}
"""


def load_test(model: str, seconds: float, callers: list[int], k: int) -> dict[str, Any]:
    """Measure all rows against two servers of one model, with batching on and off in turn.

    Raises:
        MissingFileError: the model has no users.
        InputError: seconds or callers are not positive.
        RunError: a server did not start, or a call failed.
    """
    if not seconds > 0 or not callers or min(callers) < 1:
        raise InputError(f"--seconds {seconds:g}, --callers {callers}: both must be positive")
    file = Path(model, USERS_FILE)
    if not file.is_file():
        raise MissingFileError(f"--model: {model} has no {USERS_FILE}; the test needs known users")
    known = KnownUsers.load(file)
    config = json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
    with ExitStack() as servers:
        addresses = {
            True: servers.enter_context(server(model)),
            False: servers.enter_context(server(model, "--no-batching")),
        }
        for address in addresses.values():
            measure(address, known, 2, WARM_UP_SECONDS, k)
        rows = [(number, batching) for number in callers for batching in (True, False)]
        cells = [
            {"batching": batching, **measure(addresses[batching], known, number, seconds, k)}
            for number, batching in tqdm(rows, desc="load test", unit="row")
        ]
    return {
        "model_type": config["model_type"],
        "items": config["num_items"],
        "k": k,
        "seconds": seconds,
        "processors": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "python": platform.python_version(),
        "cells": cells,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = CommandParser(prog="load_test.py", description="Measure `cllm4rec serve` on loopback.", epilog=EPILOG)
    flags.add_argument("--model", required=True, help="folder of a model with users")
    flags.add_argument("--output", required=True, help="output folder for load-test.md and load-test.json")
    flags.add_argument("--seconds", type=float, default=10.0, help="seconds per row (default: 10)")
    flags.add_argument("--callers", type=int, nargs="+", default=list(CALLERS), help="concurrent clients (default: 1 8 32)")
    flags.add_argument("--k", type=int, default=10, help="items per user (default: 10)")
    arguments = flags.parse_args(argv)

    def work() -> None:
        report = load_test(arguments.model, arguments.seconds, arguments.callers, arguments.k)
        output = Path(arguments.output)
        output.mkdir(parents=True, exist_ok=True)
        (output / "load-test.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        text = as_markdown(report)
        (output / "load-test.md").write_text(text, encoding="utf-8")
        print(text)

    return flags.run(arguments, work)


if __name__ == "__main__":
    sys.exit(main())
