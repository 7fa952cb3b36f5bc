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
from urllib.parse import urlsplit

import pytest

from modeling_cllm4rec.serving import command
from modeling_cllm4rec.serving.command import main

ROOT = Path(__file__).parents[2]
RUN = "import sys; from modeling_cllm4rec.serving.command import main; sys.exit(main(sys.argv[1:]))"


def test_a_server_answers_and_ends_on_sigterm(cllm4rec_folder, tmp_path):
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, "--model", str(cllm4rec_folder), "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith(f"serving {cllm4rec_folder} on http://127.0.0.1:")
        connection = http.client.HTTPConnection(urlsplit(line.split()[-1]).netloc, timeout=60)
        connection.request("POST", "/recommend", '{"users": [7], "k": 2}')
        assert len(json.loads(connection.getresponse().read())["results"][0]["items"]) == 2
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    finally:
        child.kill()


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
