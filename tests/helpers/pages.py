"""Blocks of code in the documentation, and how they are run."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from accelerate.state import AcceleratorState

from modeling_cllm4rec.commands.main import load
from modeling_cllm4rec.commands.main import main as cllm4rec

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")
LAUNCHERS = (["cllm4rec"], ["accelerate", "launch", "-m", "modeling_cllm4rec"], ["python", "-m", "modeling_cllm4rec"])
RECIPES = {
    "prepare": "prepare",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "index_items": "index-items",
    "align": "align",
    "eval": "evaluate",
    "recommend": "recommend",
    "add_items": "add-items",
    "update": "update",
}
"""Name of a file in recipes/ -> its command."""


class Block(NamedTuple):
    """A block of code with the number of its line. `run` is False for a block that is not run."""

    language: str
    code: str
    line: int
    run: bool


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page. A comment `not run: REASON` in front of a block excludes it from the run."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1, not NOT_RUN.search(text[: match.start()]))
        for match in FENCE.finditer(text)
    ]


def shell_commands(code: str) -> Iterator[list[str]]:
    """Yield the words of each command, with continued lines joined and without comments."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def our_command(words: list[str]) -> list[str] | None:
    """Return the words after `cllm4rec` for each way to start a command of this package, None for other commands."""
    words = words[len(variables_of(words)) :]
    for launcher in LAUNCHERS:
        if words[: len(launcher)] == launcher:
            return words[len(launcher) :]
    for number, word in enumerate(words):
        name = Path(word).stem
        if word == f"recipes/{name}.py" and name in RECIPES:
            return [RECIPES[name], *words[number + 1 :]]
    return None


def variables_of(words: list[str]) -> dict[str, str]:
    """Return the variables that are set in front of a command.

    >>> variables_of(["PYTHONPATH=.", "cllm4rec", "--a=b"])
    {'PYTHONPATH': '.'}
    """
    found = itertools.takewhile(lambda word: re.match(r"[A-Z_]+=", word), words)
    return {name: value for name, _, value in (word.partition("=") for word in found)}


def run_page(page: Path) -> None:
    """Run the blocks of a page in order, in the current folder. Python blocks share one namespace.

    Raises:
        AssertionError: a command failed. Exceptions of Python blocks are not caught.
    """
    names: dict[str, Any] = {}
    for block in blocks(page):
        if not block.run:
            continue
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                AcceleratorState._reset_state(reset_partial_state=True)
                exec(compile(block.code, f"{page.name}:{block.line}", "exec"), names)  # noqa: S102
        elif block.language == "bash":
            for words in shell_commands(block.code):
                run_command(words, f"{page.name}:{block.line}")


def run_command(words: list[str], place: str) -> None:
    """Run one command: a command of this package in this process, which is faster, any other in a subprocess."""
    ours = our_command(words)
    if ours is None:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{place}: {shlex.join(words)}: {done.stderr}"
        return
    AcceleratorState._reset_state(reset_partial_state=True)
    said = io.StringIO()
    variables = variables_of(words)
    places = [os.path.abspath(place) for place in variables.get("PYTHONPATH", "").split(os.pathsep) if place]
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
        mock.patch.dict(os.environ, variables),
        mock.patch.object(sys, "path", [*places, *sys.path]),
    ):
        code = cllm4rec(ours)
    assert code == 0, f"{place}: {shlex.join(words)} ended with {code}: {said.getvalue()[-500:]}"


def flags_of(command: str, *kind: str) -> set[str]:
    """Return the flags in the help of a command, or of one of its kinds."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        load(command)([*kind, "--help"])
    return set(re.findall(r"--[\w-]+", said.getvalue()))
