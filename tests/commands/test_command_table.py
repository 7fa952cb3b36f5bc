"""`cllm4rec` itself: the table of commands, exit codes, what is said when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from modeling_cllm4rec.commands import main as table
from modeling_cllm4rec.commands.command_line import BAD_ARGUMENTS, INTERRUPTED, OK, RUN_FAILED, CommandParser, run_command
from modeling_cllm4rec.core.errors import (
    DivergedError,
    ExistingFileError,
    FileWriteError,
    InputError,
    MemoryLimitError,
    MissingFileError,
)

ROOT = Path(__file__).parents[2]


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys, time
start = time.perf_counter()
from modeling_cllm4rec.commands.main import main
assert main(["--help"]) == 0
seconds = time.perf_counter() - start
heavy = [name for name in ("torch", "transformers", "numpy", "pandas", "pyarrow", "yaml") if name in sys.modules]
print(seconds < 0.5, heavy)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "True []"
    assert all(f"\n  {name} " in done.stdout for name in table.all_commands())


def test_preparing_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys; import modeling_cllm4rec.commands.prepare; print('torch' in sys.modules, 'transformers' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", table.all_commands())
def test_each_command_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sys.exit(table.main([name, "--help"]))
    assert ended.value.code == OK
    text = capsys.readouterr().out
    assert f"usage: cllm4rec {name} " in text and f"  cllm4rec {name} " in text.split("example:")[1]


def test_no_command_and_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([]) == BAD_ARGUMENTS
    assert "usage: cllm4rec COMMAND" in capsys.readouterr().out
    assert table.main(["evalute"]) == BAD_ARGUMENTS
    assert "there is no command 'evalute'; did you mean 'evaluate'?" in capsys.readouterr().err
    assert table.main(["zzz"]) == BAD_ARGUMENTS
    assert "known are doctor, prepare" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--version"]) == OK
    assert capsys.readouterr().out.startswith("cllm4rec ")


def test_only_a_missing_dependency_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = types.ModuleType("page_of_a_test")

    def main(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named", name=argv[0])

    page.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "page_of_a_test", page)
    monkeypatch.setitem(table.COMMANDS, "app", table.Command("page_of_a_test:main", ""))
    monkeypatch.setattr(table, "declared_requirements", lambda: [Requirement("scipy>=1.15"), Requirement("pyyaml")])
    for module, said in (
        ("scipy.sparse", 'scipy is not installed; run: pip install "scipy>=1.15"'),
        ("yaml", 'pyyaml is not installed; run: pip install "pyyaml"'),
    ):
        assert table.main(["app", module]) == RUN_FAILED
        assert capsys.readouterr().err == f"cllm4rec app: error: {said}\n"
    for module in ("a_package_that_nobody_has", "modeling_cllm4rec.page"):  # a slip in the code
        with pytest.raises(ModuleNotFoundError):
            table.main(["app", module])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("k is\n 0"), BAD_ARGUMENTS),
        (MissingFileError("there is no x"), BAD_ARGUMENTS),
        (ExistingFileError("x is there"), BAD_ARGUMENTS),
        (FileWriteError("no space left on the device"), RUN_FAILED),
        (DivergedError("the loss is nan"), RUN_FAILED),
        (MemoryLimitError(), RUN_FAILED),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise error

    assert run_command("cllm4rec x", work) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("cllm4rec x: ")


@pytest.mark.parametrize("error", [KeyError("a bug"), ValueError("operands could not be broadcast"), OSError("a bug")])
def test_what_is_unforeseen_keeps_its_traceback(error: Exception) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error), match="bug|operands"):
        run_command("cllm4rec x", work)


def test_debug_shows_the_traceback_of_our_errors(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise InputError("k is 0; it must be 1 or more")

    assert run_command("cllm4rec x", work, {"k": "--k"}, debug=True) == BAD_ARGUMENTS
    said = capsys.readouterr().err
    assert "Traceback" in said and said.endswith("cllm4rec x: error: --k is 0; it must be 1 or more\n")
    monkeypatch.setenv("CLLM4REC_DEBUG", "1")
    assert run_command("cllm4rec x", work) == BAD_ARGUMENTS
    assert "Traceback" in capsys.readouterr().err


def test_flags_in_either_spelling_defaults_in_help_and_names_of_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("x")
    parser.add_argument("--batch-size", type=int, default=7, help="users in one pass")
    assert parser.parse_args(["--batch_size=3"]).batch_size == 3 == parser.parse_args(["--batch-size", "3"]).batch_size
    assert "users in one pass (default: 7)" in " ".join(parser.format_help().split())
    for words, message in (
        (["--per_device_eval_batch_size", "1"], "unknown flag '--per_device_eval_batch_size'; here it is --batch-size"),
        (["--batch-sise", "1"], "unknown flag '--batch-sise'; did you mean '--batch-size'?"),
        (["--zzz"], "unknown flag '--zzz'; see cllm4rec x --help"),
        (["stray"], "unexpected word 'stray'; put a value behind its flag"),
    ):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(words)
        assert ended.value.code == BAD_ARGUMENTS
        assert capsys.readouterr().err == f"cllm4rec x: error: {message}\n"


def test_a_reader_that_goes_away_is_no_trace() -> None:
    code = "from modeling_cllm4rec.commands.command_line import run_command; run_command('x', lambda: print('line\\n' * 10**6))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == b"line\n"
    child.stdout.close()
    assert child.stderr.read() == b""
    child.wait(timeout=30)


def test_as_a_module(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "modeling_cllm4rec", "nothing"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == BAD_ARGUMENTS and "there is no command 'nothing'" in done.stderr
