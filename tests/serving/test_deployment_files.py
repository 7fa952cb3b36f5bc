"""The files in deploy/: they parse, and what they name exists. Images are not built here."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from modeling_cllm4rec.serving.command import parser

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile and their words."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]  # type: ignore[misc]


def served(words: list[str]) -> object:
    """Parse the words behind `serve` as the command does."""
    assert words[0] == "serve"
    return parser().parse_args(words[1:])


def test_the_dockerfile_copies_what_exists_and_is_not_root():
    found = instructions()
    assert {name for name, _ in found} <= {
        "ARG",
        "FROM",
        "ENV",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    copied = [word for name, words in found if name == "COPY" and "--from" not in words for word in words.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == set(copied)
    last = [name for name, _ in found].index("FROM", 2)
    assert [words for name, words in found[last:] if name == "USER"] == ["10001:10001"]
    assert found[0] == ("ARG", "BASE=python:3.12-slim") and [words for name, words in found if name == "FROM"] == [
        "${BASE} AS build",
        "${BASE}",
    ]


def test_the_container_starts_the_server():
    found = dict(instructions())
    assert yaml.safe_load(found["ENTRYPOINT"]) == ["cllm4rec"]
    arguments = served(yaml.safe_load(found["CMD"]))
    assert (arguments.model, arguments.host, str(arguments.port)) == ("/models/current", "0.0.0.0", found["EXPOSE"])
    health = yaml.safe_load(found["HEALTHCHECK"].partition("CMD ")[2])
    assert "http://127.0.0.1:8000/health" in health[2]
    compile(health[2], "HEALTHCHECK", "exec")


def test_the_compose_file_starts_the_server():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    server = compose["services"]["server"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    arguments = served(server["command"])
    assert arguments.api_key_file == "/run/secrets/api-key" and server["secrets"] == list(compose["secrets"])
    assert arguments.model.startswith(server["volumes"][0].split(":")[1])
    assert server["ports"] == [f"127.0.0.1:8000:{arguments.port}"] and "localhost" in arguments.allowed_hosts
    assert server["read_only"] and server["cap_drop"] == ["ALL"]


def test_the_unit_starts_and_reloads_the_server():
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "cllm4rec.service")
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/bin/cllm4rec")
    arguments = served(words)
    name = unit["Service"]["LoadCredential"].partition(":")[0]
    assert arguments.api_key_file == f"${{CREDENTIALS_DIRECTORY}}/{name}"
    assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (DEPLOY / "cllm4rec.service").read_text().replace("/opt/cllm4rec/bin/cllm4rec", "/bin/true")
    (tmp_path / "cllm4rec.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "cllm4rec.service")], capture_output=True, text=True, timeout=60
    )
    wrong = [line for line in done.stderr.splitlines() if "cllm4rec.service" in line]
    assert not wrong, done.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "cllm4rec.service"])
def test_commands_in_the_comments_name_files_that_exist(name):
    comments = [line for line in (DEPLOY / name).read_text().splitlines() if line.startswith("#")]
    files = re.findall(r"deploy/[\w.-]+", " ".join(comments))
    assert files and all((ROOT / file).is_file() for file in files)
