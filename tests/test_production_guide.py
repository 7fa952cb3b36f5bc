"""The production guide from an installed wheel: train, push, load elsewhere, serve, ask, update, reload, go back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import site
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from guide_files import changing_files, frames_of
from hub_stand_in import HubStandIn
from pages import ROOT, blocks
from wheels import PIP, build_wheel

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason="needs the extra serve")

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "guides" / "production.md"
MACHINES = {
    **dict.fromkeys(("Train", "Push", "Update"), "training"),
    **dict.fromkeys(("Serve", "Promote", "Go back"), "serving"),
}
"""Heading of the guide -> the machine on which its commands run."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a virtual environment with the installed wheel, which sees the dependencies of the tests but no checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    place = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    subprocess.run([*PIP, "--python", place / "bin" / "python", "install", "--no-deps", build_wheel(folder)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    # A line of a .pth file adds a folder, but does not read the .pth files in it: an editable installation stays out.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return place


@pytest.fixture
def run_on(environment: Path, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Return a runner of code on a machine: a folder with a home of its own, and no variable of this process."""
    started: list[Path] = []

    def run(machine: str, words: list[str], hub: HubStandIn) -> str:
        folder = tmp_path / machine
        if folder not in started:
            (folder / "home").mkdir(parents=True)
            started.append(folder)
        variables = {
            "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "HF_HOME": str(folder / "home" / "hf"),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token,
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
        }
        done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=900)
        log = folder / "serve.log"
        assert done.returncode == 0, f"{words}: {done.stderr[-2000:]} {log.read_text()[-2000:] if log.exists() else ''}"
        return done.stdout

    yield run
    for folder in started:
        if (folder / "serve.pid").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((folder / "serve.pid").read_text()), 9)


def headings() -> dict[int, str]:
    """Return the number of the line of each block of the guide, and the heading above it."""
    lines, found = PAGE.read_text(encoding="utf-8").splitlines(), {}
    for block in blocks(PAGE):
        found[block.line] = next(line[3:] for line in reversed(lines[: block.line]) if line.startswith("## "))
    return found


def test_from_a_table_to_a_service_that_is_updated(
    run_on: Callable[..., str], environment: Path, synthetic_dataset: Any, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    above, said = headings(), dict[str, str]()
    assert set(above.values()) == set(MACHINES)
    with HubStandIn() as hub:
        where = run_on("training", ["python", "-c", "import modeling_cllm4rec; print(modeling_cllm4rec.__file__)"], hub).strip()
        assert Path(where).is_relative_to(environment)
        shutil.copytree(tiny_backbones["gpt2"], tmp_path / "training" / "gpt2")
        changing_files(tmp_path / "training", *frames_of(synthetic_dataset))
        for block in blocks(PAGE):
            code = block.code.replace("8000", str(port))
            words = ["python", "-c", code] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", code]
            said[above[block.line]] = said.get(above[block.line], "") + run_on(MACHINES[above[block.line]], words, hub)
        repository = hub.repositories["you/shop"]
    check_training_machine(tmp_path / "training", said, set(hub.files("you/shop")), repository.private)
    first, tonight, back = (answers(said[heading]) for heading in ("Serve", "Promote", "Go back"))
    assert [answer["results"][0]["user"] for answer in first[1:]] == [3, 0]
    assert all(len(answer["results"][0]["items"]) == 3 for answer in (*first[1:], tonight[1]))
    assert (tonight[0]["model"]["items"], tonight[0]["previous"]["items"]) == (40, 36)
    assert (back[0]["model"]["items"], back[1]["model"]["items"]) == (36, 36)
    assert back[1]["model"]["revision"] == tonight[0]["previous"]["revision"] != tonight[0]["model"]["revision"]
    assert not (tmp_path / "serving" / "data").exists()


def check_training_machine(folder: Path, said: dict[str, str], pushed: set[str], private: bool) -> None:
    card = (folder / "runs" / "first" / "README.md").read_text(encoding="utf-8")
    assert "| metric | value | 95% interval | popularity | ease+textknn |" in card and "This model is " in card
    assert "nothing was uploaded (dry run)" in said["Push"] and "left out: checkpoints/" in said["Push"]
    assert private and {"model.safetensors", "users.parquet", "README.md", "data_card.md"} <= pushed
    assert not [name for name in pushed if name.startswith(("checkpoints", "corpus", "pretrained"))]


def answers(text: str) -> list[dict[str, Any]]:
    """Return the JSON documents that a machine printed one after the other."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while (place := text.find("{", place)) >= 0:
        value, place = decoder.raw_decode(text, place)
        found.append(value)
    return found
