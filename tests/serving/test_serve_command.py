"""`cllm4rec serve` in a process of its own: it starts, answers, and ends in an orderly way."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from modeling_cllm4rec.serving import command
from modeling_cllm4rec.serving.command import main

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef"
RUN = "import sys; from modeling_cllm4rec.serving.command import main; sys.exit(main(sys.argv[1:]))"


class Child:
    """A server in a process of its own."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, "--model", str(folder), "--port", "0", "--device", "cpu", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.address = urlsplit(self.line.split()[-1]).netloc

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        kind = {} if body is None else {"content-type": "application/json"}
        connection.request(method, path, body, {**kind, **headers})
        answer = connection.getresponse()
        read = answer.status, json.loads(answer.read())
        connection.close()
        return read

    def end(self) -> str:
        """End it by SIGTERM and return what it wrote to the log."""
        self.process.send_signal(signal.SIGTERM)
        log = self.process.communicate(timeout=60)[1]
        assert self.process.returncode == 0, log
        return log


def test_a_server_answers_takes_a_new_model_and_ends_on_sigterm(cllm4rec_folder, lcrec_folder, tmp_path, wait):
    pytest.importorskip("prometheus_client", reason="needs the extra serve")
    link = tmp_path / "current"
    link.symlink_to(cllm4rec_folder)
    server = Child(link, CLLM4REC_API_KEY=KEY)
    try:
        assert server.line.startswith(f"serving {link} on http://127.0.0.1:")
        asked = '{"users": [7], "k": 2}'
        assert server.ask("POST", "/recommend", asked)[0] == 401
        status, answer = server.ask("POST", "/recommend", asked, authorization=f"Bearer {KEY}")
        assert (status, len(answer["results"][0]["items"])) == (200, 2)
        assert server.ask("GET", "/health", host="evil.example")[0] == 421
        assert server.ask("GET", "/health")[1]["model"]["load_seconds"] > 0
        link.unlink()
        link.symlink_to(lcrec_folder)
        server.process.send_signal(signal.SIGHUP)
        wait(lambda: server.ask("GET", "/health")[1]["model"]["model_type"] == "lcrec")
        model = server.ask("GET", "/health")[1]["model"]
        assert (model["name"], model["folder"]) == (str(link), str(lcrec_folder))
        link.unlink()
        server.process.send_signal(signal.SIGHUP)  # a link that leads nowhere
        assert server.ask("GET", "/health")[1]["model"] == model
        log = server.end()
    finally:
        server.process.kill()
    assert f"serving {link} " in log and " in place of " in log
    lines = [json.loads(line[line.index("{") :]) for line in log.splitlines() if "guard.access" in line]
    assert [(line["path"], line["status"]) for line in lines[:2]] == [("/recommend", 401), ("/recommend", 200)]
    assert KEY not in log


def test_arguments_at_fault(cllm4rec_folder, tmp_path, capsys, monkeypatch):
    def error(*words: str) -> str:
        code = main([*words])
        return f"{code} {capsys.readouterr().err}"

    folder = str(cllm4rec_folder)
    assert error("--model", folder, "--port", "65536").startswith(
        "2 cllm4rec serve: error: --port is 65536; it must lie between 0"
    )
    assert "2 cllm4rec serve: error: --queue is 3" in error("--model", folder, "--queue", "3")
    assert error("--model", str(tmp_path / "none"), "--port", "0").startswith("2 cllm4rec serve: error: --model")
    assert "--api-key-file: there is no file none; make one by" in error(
        "--model", folder, "--port", "0", "--api-key-file", "none"
    )
    (tmp_path / "key").write_text("short\n")
    assert "has fewer than 16 characters" in error("--model", folder, "--port", "0", "--api-key-file", str(tmp_path / "key"))
    assert "--connections is 0" in error("--model", folder, "--port", "0", "--connections", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"1 cllm4rec serve: error: --port: cannot listen on 127.0.0.1:{port}" in error("--model", folder, "--port", port)

    def unknown(*arguments, **more):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "--host: nowhere is no address of this machine" in error("--model", folder, "--host", "nowhere")


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(command, "NEEDED", ("no_such_module", *command.NEEDED))
    assert main(["--model", "x"]) == 1
    said = 'serve needs no-such-module, which is not installed; run: pip install "cllm4rec[serve]"'
    assert said in capsys.readouterr().err
    assert importlib.util.find_spec("no_such_module") is None


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "cllm4rec serve --model runs/mine --port 8000" in capsys.readouterr().out


def test_the_hosts_of_a_loopback_address_are_those_of_this_machine():
    pytest.importorskip("prometheus_client", reason="needs the extra serve")
    flags = command.parser().parse_args

    def hosts(address: str, *words: str) -> tuple[str, ...] | None:
        return command.settings_of(flags(["--model", "x", *words]), address).allowed_hosts

    assert hosts("127.0.0.1") == ("localhost", "127.0.0.1", "::1")
    assert hosts("127.0.0.2") == ("localhost", "127.0.0.1", "::1", "127.0.0.2")
    assert hosts("0.0.0.0") is None
    assert hosts("0.0.0.0", "--allowed-hosts", "Shop.example", "localhost") == ("shop.example", "localhost")


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(command.KEY_VARIABLE, raising=False)
    assert command.read_key(None) is None
    monkeypatch.setenv(command.KEY_VARIABLE, KEY)
    assert command.read_key(None) == KEY
    (tmp_path / "key").write_text("another key of 16\n")
    assert command.read_key(str(tmp_path / "key")) == "another key of 16"
