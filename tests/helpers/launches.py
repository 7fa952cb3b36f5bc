"""Launches of stages on several processes, and what must be equal to a run on one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "tests" / "helpers" / "stage_runs.py"
Seen = list[dict[str, Any]]


def command(runs: list[tuple[str, Any]], folder: Path, processes: int, **environment: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a launch by torchrun."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [(stage, dataclasses.asdict(arguments)) for stage, arguments in runs]
    (folder / "runs.json").write_text(json.dumps(listed))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    path = {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return [*words, str(SCRIPT), str(folder / "runs.json"), str(folder)], {**os.environ, **path, **environment}


def launch(runs: list[tuple[str, Any]], folder: Path, processes: int = 2, **environment: str) -> list[Seen]:
    """Run stages one after another on some processes, and return what each process saw of each run."""
    words, variables = command(runs, folder, processes, **environment)
    ended = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-6000:]
    return [json.loads((folder / f"{number}-of-{processes}.json").read_text()) for number in range(processes)]


def assert_same_run(one: dict[str, Any], *others: dict[str, Any], rel: float = 1e-5, swapped: float = 0.0) -> None:
    """Assert that processes that share a run saw the losses, the validation and the end that one process saw.

    Args:
        swapped: how much a metric of ranks may differ. Scores of 16 bits nearly tie, so the order of a sum swaps neighbours.
    """
    for other in others:
        assert other["nll"] == pytest.approx(one["nll"][-len(other["nll"]) :], rel=rel)
        assert other["finished"] and len(other["history"]) == len(one["history"])
        for ours, theirs in zip(one["history"], other["history"], strict=True):
            ranks = {name for name in ours if name.startswith("validation/") or name == "selection"}
            assert theirs.keys() == ours.keys()
            for name, value in ours.items():
                assert theirs[name] == pytest.approx(value, rel=10 * rel, abs=swapped if name in ranks else 0.0), name


def assert_halves(*seen: dict[str, Any]) -> None:
    """Assert that each of two processes held half of the weights and of the moments; units of odd sizes are padded."""
    for kind in ("weights", "moments"):
        assert all(0.45 < run["held"][kind][0] / run["held"][kind][1] < 0.55 for run in seen), kind
