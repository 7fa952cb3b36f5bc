"""Wrong flags and missing folders are reported before torch is imported, which takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from modeling_cllm4rec.commands.main import main

try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print(code, *(name for name in ("torch", "accelerate") if name in sys.modules))
"""
NOWHERE = "no/such/folder"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--model", NOWHERE, "--data", NOWHERE], f"{NOWHERE}: there is no such data folder"),
        (["evaluate", "--modle", "x"], "unknown flag '--modle'; did you mean '--model'?"),
        (["evaluate", "--model", "x"], "the following arguments are required: --data"),
        (["recommend", "--model", NOWHERE], "is no folder with a model: there is no such folder"),
        (["recommend", "--model", "x", "--shard", "5/4", "--output", "x"], "--shard is '5/4'"),
        (["recommend", "--model", "x", "--num-workers", "2"], "--num-workers: only Ray has workers"),
        (
            ["recommend", "--model", "x", "--output", "out.csv"],
            "--output: out.csv would be a folder of Parquet files",
        ),
        (["prepare", "--text", "title=a", "--text", "brand=b"], "--text is given 2 times; put all of its values behind one"),
        (["similar-items", "--model", NOWHERE], "is no folder with a model"),
        (["pretrain", "--data", NOWHERE, "--output", "x", "--backbone", "x"], f"{NOWHERE}: there is no such data folder"),
        (["finetune", "--data", NOWHERE, "--output", "x"], f"{NOWHERE}: there is no such data folder"),
        (["align", "--data", NOWHERE, "--output", "x", "--index", "x", "--backbone", "x"], "there is no such data folder"),
        (["serve", "--modle", "x"], "unknown flag '--modle'"),
        (["app", "--modle", "x"], "unknown flag '--modle'"),
        (["push", "run", "--too", "x"], "unknown flag '--too'; did you mean '--to'"),
    ],
)
def test_an_error_needs_no_torch(words: list[str], message: str) -> None:
    ended = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True)
    assert message in ended.stderr and ended.stdout.split() == ["2"]


def test_help_that_lists_what_is_imported_is_made_when_it_is_shown() -> None:
    """The table of baselines needs torch; other flags of the command do not wait for it."""
    ended = subprocess.run([sys.executable, "-c", CODE, "evaluate", "--help"], capture_output=True, text=True, check=True)
    assert "baselines to measure as well: random, popularity" in " ".join(ended.stdout.split())
