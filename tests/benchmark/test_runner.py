"""Processes of jobs: what crashes is named, what is finished is not run again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from modeling_cllm4rec import __version__
from modeling_cllm4rec.benchmark import runner as running
from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Job, write_json
from modeling_cllm4rec.benchmark.runner import DataFolders, is_finished, run_jobs

JOBS = [Job(name, "baseline", 1, {"name": name, "settings": {}}) for name in ("first", "second")]
ENDINGS = {
    "import os; os.kill(os.getpid(), 9)": "ended by signal SIGKILL, perhaps for lack of memory",
    "import os; os.kill(os.getpid(), 15)": "ended by signal SIGTERM",
    "raise ValueError('too warm')": "ValueError: too warm",
    "import sys; sys.exit(3)": "ended with code 3",
}


def run(setting: BenchmarkConfig, output: Path) -> int:
    output.mkdir(exist_ok=True)
    return len(run_jobs(JOBS, setting, output, {"everyone": DataFolders(Path("data"), Path("data"))}, progress=False))


@pytest.mark.parametrize(("code", "error"), ENDINGS.items())
def test_a_crash_is_named_and_the_next_job_runs(
    monkeypatch: pytest.MonkeyPatch, setting: BenchmarkConfig, tmp_path: Path, code: str, error: str
) -> None:
    monkeypatch.setattr(running, "WORKER", (sys.executable, "-c", code))
    assert run(setting, tmp_path) == 2
    for job in JOBS:
        result = json.loads((tmp_path / "jobs" / f"{job.key}.json").read_text())
        assert (result["status"], result["error"]) == ("failed", error)
        assert result["job"]["model"] == job.model


def test_finished_jobs_are_not_run_again(monkeypatch: pytest.MonkeyPatch, setting: BenchmarkConfig, tmp_path: Path) -> None:
    code = (
        "import json, sys, pathlib; task = json.loads(sys.stdin.readline())\n"
        "if task['job']['model'] == 'second' and not pathlib.Path(task['output'], 'again').exists(): sys.exit('not yet')\n"
        "made = {'status': 'done', 'fingerprint': task['fingerprint'], 'job': task['job']}\n"
        f"made['versions'] = {{'cllm4rec': {__version__!r}}}\n"
        "pathlib.Path(task['result']).write_text(json.dumps(made))"
    )
    monkeypatch.setattr(running, "WORKER", (sys.executable, "-c", code))
    (tmp_path / "runs").mkdir()
    assert run(setting, tmp_path) == 1
    assert (tmp_path / "runs").exists()  # something may be resumed there
    first = tmp_path / "jobs" / "first-seed1.json"
    before = first.stat().st_mtime_ns
    (tmp_path / "again").touch()
    assert run(setting, tmp_path) == 0
    assert first.stat().st_mtime_ns == before
    assert not (tmp_path / "runs").exists()
    assert is_finished(first, JOBS[0].fingerprint(setting))
    assert not is_finished(first, "another")
    assert not is_finished(tmp_path / "none.json", "any")


def test_results_of_another_version_are_made_again(
    monkeypatch: pytest.MonkeyPatch, setting: BenchmarkConfig, tmp_path: Path
) -> None:
    monkeypatch.setattr(running, "WORKER", (sys.executable, "-c", "raise ValueError('run again')"))
    done = {"status": "done", "fingerprint": JOBS[0].fingerprint(setting), "versions": {"cllm4rec": "0.0.1"}}
    others = {"job": dataclasses.asdict(dataclasses.replace(JOBS[0], seed=2)), **done}
    for seed, result in ((1, {"job": dataclasses.asdict(JOBS[0]), **done}), (2, others)):
        write_json(tmp_path / "jobs" / f"first-seed{seed}.json", result)
    assert run(setting, tmp_path) == 2
    assert "run again" in json.loads((tmp_path / "jobs" / "first-seed1.json").read_text())["error"]
    assert json.loads((tmp_path / "jobs" / "first-seed2.json").read_text())["stale"] == "run by cllm4rec 0.0.1"


def test_a_search_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, setting: BenchmarkConfig, tmp_path: Path) -> None:
    monkeypatch.setattr(running, "WORKER", (sys.executable, "-c", "raise ValueError('no')"))
    jobs = [Job("ease", "baseline", 1, {"name": "ease", "settings": {}})]
    folders = {"everyone": DataFolders(Path("data"), Path("data"))}
    error = "the search for its settings failed: ValueError: no"
    assert run_jobs(jobs, dataclasses.replace(setting, tune=2), tmp_path, folders, progress=False) == {"ease-seed1": error}
    result = json.loads((tmp_path / "jobs" / "ease-seed1.json").read_text())
    assert result["error"] == error


@pytest.mark.slow
def test_the_worker_itself(data_folder: Path, tmp_path: Path) -> None:
    """A process of its own, from the command to the report; its memory is its own."""
    from modeling_cllm4rec.benchmark.command import main

    words = ["--data", str(data_folder), "--output", str(tmp_path / "r"), "--metrics", "recall@5", "--no-plots"]
    assert main(["quality", "--models", "popularity", *words]) == 0
    result = json.loads((tmp_path / "r" / "jobs" / "popularity-seed1.json").read_text())
    assert 10**8 < result["peak_bytes"] < 3 * 10**9
    assert result["versions"]["torch"] and result["machine"] and result["train_seconds"] >= 0


PARENT = """
import json, sys
from pathlib import Path
from modeling_cllm4rec.benchmark import runner
runner.WORKER = (sys.executable, "-c", sys.argv[1])
runner._run_process({}, Path(sys.argv[2]))
"""
WORKER = """
import sys, threading, time, os
from modeling_cllm4rec.benchmark.worker import end_with_parent
sys.stdin.readline()
threading.Thread(target=end_with_parent, daemon=True).start()
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, WORKER, str(log)], env=environment)
    until = time.monotonic() + 120
    while not (log.is_file() and log.read_text().strip()):
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.1)
    worker = psutil.Process(int(log.read_text()))
    assert worker.is_running()
    parent.send_signal(number)
    assert parent.wait(30) == -number
    worker.wait(30)
