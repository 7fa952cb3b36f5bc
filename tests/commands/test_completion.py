"""Completion in the shell: words of all commands, and a script that bash runs."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from modeling_cllm4rec.commands.completion import help_of, words_of_help
from modeling_cllm4rec.commands.main import all_commands, load, main


@pytest.fixture(scope="module")
def script() -> str:
    from modeling_cllm4rec.commands.completion import completion

    return completion("bash", all_commands(), load)


def complete(script: str, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    lines = "\n".join([script, f"COMP_WORDS=({' '.join(repr(word) for word in words)})", f"COMP_CWORD={len(words) - 1}"])
    lines += '\n_cllm4rec\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("cllm4rec", "fin"), ["finetune"]),
        (("cllm4rec", "prepare", "--min-r"), ["--min-rating"]),
        (("cllm4rec", "finetune", "--num-tr"), ["--num-train-epochs"]),
        (("cllm4rec", "export", "ve"), ["vectors"]),
        (("cllm4rec", "benchmark", "qual"), ["quality"]),
        (("cllm4rec", "no-command", "--x"), []),
    ],
)
def test_bash_completes(script: str, words: tuple[str, ...], offered: list[str]) -> None:
    assert complete(script, *words) == offered


def test_every_command_has_its_flags(script: str) -> None:
    for name in all_commands():
        (line,) = [line for line in script.splitlines() if line.strip().startswith(f"{name})")]
        assert "--help" in line or name in ("export", "benchmark"), line
    assert "--data" in words_of_help(help_of(load("finetune")))


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "tcsh"]) == 2
    assert "cllm4rec: error: --completion is 'tcsh'; allowed are bash and zsh" in capsys.readouterr().err
