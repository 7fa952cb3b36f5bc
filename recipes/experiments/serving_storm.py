"""`cllm4rec serve` among bad neighbours: good callers must lose nothing while others misbehave and models are replaced.

python recipes/experiments/serving_storm.py --model runs/one --other runs/two --output reports/serving-storm
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from load_test import JSON, SEED, START_SECONDS

from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.core.catalogue import USERS_FILE, KnownUsers
from modeling_cllm4rec.core.errors import InputError, MissingFileError, RunError
from modeling_cllm4rec.hub.loading import load_recommender

EPILOG = """example:
  python recipes/experiments/serving_storm.py --model runs/one --other runs/two --output reports/serving-storm

Each caller asks for one user after another and compares every answer with those of both models. At the same time neighbours
send bad bodies, half requests, slow headers, close half of their connection, hang up, are killed, and two reloads take turns:
POST /reload and SIGHUP. Output: serving-storm.json and serving-storm.md.
"""
KEY = "a key for one measurement"
AUTHORIZED = {**JSON, "authorization": f"Bearer {KEY}"}
BAD_BODIES = (
    b"{",
    b'{"users": [1e400]}',
    b'{"k": 1, "k": 2}',
    b"[" * 5000,
    b'{"users": "ann"}',
    b"\xff",
    b'{"users": [], "k": 1}',
)
RELOAD_SECONDS, KILL_SECONDS = 4.0, 1.0
CHILD = """import http.client, sys
while True:
    connection = http.client.HTTPConnection(sys.argv[1], timeout=60)
    connection.request("POST", "/recommend", sys.argv[2], {"content-type": "application/json", "authorization": sys.argv[3]})
    connection.getresponse().read()
"""


class Storm:
    """One server, its callers and their neighbours.

    Args:
        address: host and port of the server.
        process: the server.
        expected: user -> the possible answers, one for each model.
        k: items for each user.
        seconds: length of the measurement.
    """

    def __init__(self, address: str, process: Any, expected: dict[Any, list[list[Any]]], k: int, seconds: float) -> None:
        self.address, self.process, self.expected, self.k = address, process, expected, k
        self.until = time.perf_counter() + seconds
        self.latencies: list[float] = []
        self.lost: list[str] = []
        self.counts: Counter[str] = Counter()

    def running(self) -> bool:
        """Return whether there is time left."""
        return time.perf_counter() < self.until

    def body(self, user: Any) -> str:
        """Return the request for a user."""
        return json.dumps({"users": [user], "k": self.k})

    def call(self, number: int) -> None:
        """Ask for one user after another over one connection; anything but a right answer is a loss."""
        rng, users = np.random.default_rng([SEED, number]), list(self.expected)
        connection = http.client.HTTPConnection(self.address, timeout=120)
        while self.running():
            user = users[int(rng.integers(len(users)))]
            started = time.perf_counter()
            try:
                connection.request("POST", "/recommend", self.body(user), AUTHORIZED)
                answer = connection.getresponse()
                read = answer.read()
                if answer.status != 200:
                    raise RunError(f"status {answer.status}: {read[:200]!r}")
                items = [row["item"] for row in json.loads(read)["results"][0]["items"]]
                if items not in self.expected[user]:
                    raise RunError(f"user {user!r} got {items}")
                self.latencies.append(time.perf_counter() - started)
            except (OSError, RunError, http.client.HTTPException) as error:
                self.lost.append(f"{type(error).__name__}: {error}")
                connection.close()
        connection.close()

    def send_bad_bodies(self, number: int) -> None:
        """Send bodies that must get status 400."""
        while self.running():
            connection = http.client.HTTPConnection(self.address, timeout=120)
            connection.request("POST", "/recommend", BAD_BODIES[self.counts["bad bodies"] % len(BAD_BODIES)], AUTHORIZED)
            self.expect("bad bodies", connection.getresponse().status == 400)
            connection.close()
            time.sleep(0.05)

    def raw(self, data: bytes) -> socket.socket:
        """Open a connection and send bytes."""
        client = socket.create_connection(tuple(self.address.split(":")), timeout=120)  # type: ignore[arg-type]
        client.sendall(data)
        return client

    def request(self) -> bytes:
        """Return a whole request as bytes."""
        body = self.body(next(iter(self.expected))).encode()
        head = f"POST /recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAuthorization: Bearer {KEY}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def send_slowly(self, number: int) -> None:
        """Send a request byte by byte until the server ends the connection."""
        while self.running():
            client = self.raw(b"")
            try:
                for byte in self.request():
                    client.sendall(bytes([byte]))
                    time.sleep(0.2)
                    if not self.running():
                        break
            except OSError:
                self.counts["slow clients ended by the server"] += 1
            client.close()

    def close_half(self, number: int) -> None:
        """Send a request, close the sending side, and wait for the answer."""
        while self.running():
            client = self.raw(self.request())
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while part := client.recv(65536):
                answer += part
            self.expect("half-closed clients", b"HTTP/1.1 200 OK" in answer)
            client.close()
            time.sleep(0.2)

    def hang_up(self, number: int) -> None:
        """Send a request, or half of one, and reset the connection."""
        while self.running():
            data = self.request()
            client = self.raw(data[: len(data) // (1 + number % 2)])
            time.sleep(0.05)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            self.counts["clients that hung up"] += 1
            time.sleep(0.05)

    def kill_clients(self, number: int) -> None:
        """Kill processes that wait for an answer."""
        words = [sys.executable, "-c", CHILD, self.address, self.body(next(iter(self.expected))), f"Bearer {KEY}"]
        while self.running():
            child = subprocess.Popen(words, stderr=subprocess.DEVNULL)
            time.sleep(KILL_SECONDS)
            child.kill()
            child.wait()
            self.counts["clients killed"] += 1

    def reload(self, names: list[str]) -> None:
        """Replace the model by each name in turn, and by SIGHUP."""
        turn = 0
        while self.running():
            time.sleep(RELOAD_SECONDS)
            if turn % 3 == 2:
                self.process.send_signal(signal.SIGHUP)
                self.counts["reloads by SIGHUP"] += 1
            else:
                connection = http.client.HTTPConnection(self.address, timeout=START_SECONDS)
                connection.request("POST", "/reload", json.dumps({"model": names[turn % 2]}), AUTHORIZED)
                answer = connection.getresponse()
                self.expect("reloads by POST", answer.status in (200, 409), answer.read())
                connection.close()
            turn += 1

    def expect(self, what: str, right: bool, about: bytes = b"") -> None:
        """Count an answer to a neighbour; a wrong one is a loss."""
        self.counts[what] += 1
        if not right:
            self.lost.append(f"{what}: {about[:200]!r}")


def answers_of(model: Any, users: list[Any], k: int) -> dict[Any, list[Any]]:
    """Return the items of each user."""
    found = model.recommend(users=users, k=k)
    return {user: found.items(user) for user in users}


def storm(model: str, other: str, seconds: float, callers: int, k: int, num_users: int) -> dict[str, Any]:
    """Measure one server.

    Returns:
        `answers`, `lost` and its first reasons, `p50_ms`, `p95_ms`, `p99_ms`, `neighbours` and the server's exit code.

    Raises:
        MissingFileError: the model has no users.
        InputError: seconds or callers are not positive.
        RunError: the server did not start.
    """
    if not seconds > 0 or callers < 1:
        raise InputError(f"--seconds {seconds:g}, --callers {callers}: both must be positive")
    if not Path(model, USERS_FILE).is_file():
        raise MissingFileError(f"--model: {model} has no {USERS_FILE}; the test needs known users")
    known = KnownUsers.load(Path(model, USERS_FILE))
    picked = np.random.default_rng(SEED).choice(len(known), min(num_users, len(known)), replace=False)
    users = known.ids.ids_of(picked)
    both = [answers_of(load_recommender(name, device="cpu"), users, k) for name in (model, other)]
    expected = {user: [answers[user] for answers in both] for user in users}
    command = [sys.executable, "-m", "modeling_cllm4rec", "serve", "--model", model, "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "CLLM4REC_API_KEY": KEY}
    process = subprocess.Popen(
        [*command, "--no-access-log"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if not words:
        raise RunError(f"the server of {model} did not start: {process.communicate()[1]}")
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr or ()))
    reader.start()
    found = Storm(urlsplit(words[-1]).netloc, process, expected, k, seconds)
    work: list[tuple[Callable[..., None], Any]] = [(found.call, number) for number in range(callers)]
    work += [(found.send_bad_bodies, 0), *((found.send_slowly, number) for number in range(8)), (found.close_half, 0)]
    work += [(found.hang_up, 0), (found.hang_up, 1), (found.kill_clients, 0), (found.reload, [other, model])]
    threads = [threading.Thread(target=function, args=(argument,)) for function, argument in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.send_signal(signal.SIGTERM)
    process.wait(START_SECONDS)
    reader.join()
    p50, p95, p99 = np.percentile(1000 * np.array(found.latencies), [50, 95, 99])
    return {
        "callers": callers,
        "seconds": seconds,
        "k": k,
        "items": json.loads(Path(model, "config.json").read_text(encoding="utf-8"))["num_items"],
        "answers": len(found.latencies),
        "lost": len(found.lost),
        "reasons": found.lost[:5],
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "neighbours": dict(found.counts),
        "exit_code": process.returncode,
        "tracebacks": sum(line.startswith("Traceback") for line in log),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    neighbours = ", ".join(f"{count} {name}" for name, count in report["neighbours"].items())
    columns = [report[name] for name in ("callers", "seconds", "answers", "lost", "p50_ms", "p95_ms", "p99_ms", "tracebacks")]
    return f"""| callers | seconds | answers | lost | p50, ms | p95, ms | p99, ms | tracebacks |
|---|---|---|---|---|---|---|---|
| {" | ".join(f"{value:.0f}" for value in columns)} |

Neighbours: {neighbours}. {report["items"]} items, k = {report["k"]}, exit code {report["exit_code"]}.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command: 1 if an answer was lost."""
    flags = CommandParser(prog="serving_storm.py", description="Measure `cllm4rec serve` among bad neighbours.", epilog=EPILOG)
    flags.add_argument("--model", required=True, help="folder of a model with users")
    flags.add_argument("--other", required=True, help="folder of another model with the same users and items")
    flags.add_argument("--output", required=True, help="output folder for the report")
    flags.add_argument("--seconds", type=float, default=60.0, help="length (default: 60)")
    flags.add_argument("--callers", type=int, default=32, help="good callers (default: 32)")
    flags.add_argument("--k", type=int, default=10, help="items per user (default: 10)")
    flags.add_argument("--users", type=int, default=100, help="users who are asked for (default: 100)")
    arguments = flags.parse_args(argv)

    def work() -> None:
        report = storm(arguments.model, arguments.other, arguments.seconds, arguments.callers, arguments.k, arguments.users)
        output = Path(arguments.output)
        output.mkdir(parents=True, exist_ok=True)
        (output / "serving-storm.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (output / "serving-storm.md").write_text(as_markdown(report), encoding="utf-8")
        print(as_markdown(report))
        if report["lost"] or report["tracebacks"] or report["exit_code"]:
            raise RunError(f"{report['lost']} answers were lost, first {report['reasons']}; {report['tracebacks']} tracebacks")

    return flags.run(arguments, work)


if __name__ == "__main__":
    sys.exit(main())
