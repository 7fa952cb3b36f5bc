"""Run jobs, each in a process of its own; what is finished is not run again, and what fails does not stop the others."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from modeling_cllm4rec import __version__
from modeling_cllm4rec.benchmark import budgets
from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Case, Job, fingerprint, training_fingerprint, write_json
from modeling_cllm4rec.benchmark.models import baselines_of

logger = logging.getLogger(__name__)

PACKAGE_FOLDER = Path(__file__).parents[2]
WORKER = (sys.executable, "-m", "modeling_cllm4rec.benchmark.worker")


class Place(NamedTuple):
    """Where a case's models are trained, and where those are who ask."""

    train_data: Path
    asking_data: Path


def run_jobs(
    jobs: Sequence[Job],
    setting: BenchmarkConfig,
    output: Path,
    places: dict[Case, Place],
    *,
    batch_size: int = 256,
    keep_models: bool = False,
    progress: bool = True,
) -> int:
    """Run what is not finished yet; results are files in `jobs/`, of failed jobs with their `error`.

    Earlier results of the same models that were made otherwise are set aside, see `set_aside`.

    Args:
        output: the report folder.
        places: the data of each case.
        batch_size: users scored at a time.
        keep_models: leave trained language models in `runs/`; otherwise they go when all jobs are done.
        progress: show a bar of jobs.

    Returns:
        Number of failed jobs.
    """
    failed = 0
    (output / "logs").mkdir(exist_ok=True)
    set_aside(jobs, output)
    with tqdm(total=len(jobs), desc="benchmark", unit="job", disable=not progress) as bar:
        for job in jobs:
            bar.set_postfix_str(job.key)
            result = output / "jobs" / f"{job.key}.json"
            if not is_finished(result, job.fingerprint(setting)):
                error = _run_job(job, setting, output, places[job.case], batch_size)
                if error:
                    failed += 1
                    logger.warning("%s failed: %s (log: %s)", job.key, error, _log(output, job.key))
                    write_json(result, {"status": "failed", "error": error, "job": dataclasses.asdict(job)})
            bar.update()
    if not failed and not keep_models:
        shutil.rmtree(output / "runs", ignore_errors=True)
    return failed


def set_aside(jobs: Sequence[Job], output: Path) -> None:
    """Mark results that cannot be seeds of one row with these jobs: `stale` says why. Those that can be again lose the mark."""
    wanted = {(job.model, job.case): training_fingerprint(dataclasses.asdict(job)) for job in jobs}
    for path in sorted((output / "jobs").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        key = (result["job"]["model"], result["job"]["case"])
        if key not in wanted:
            continue
        why = "" if training_fingerprint(result["job"]) == wanted[key] else "run with other settings"
        if result["status"] == "done" and result["versions"]["cllm4rec"] != __version__:
            why = f"run by cllm4rec {result['versions']['cllm4rec']}"
        if why != result.get("stale", ""):
            write_json(path, {**result, "stale": why})
            logger.info("%s: %s", path.stem, f"left out, as it was {why}" if why else "is in the report again")


def is_finished(result: Path, wanted: str) -> bool:
    """Whether a result is there and was made by equal settings on equal data, with this version of the package."""
    if not result.is_file():
        return False
    found = json.loads(result.read_text(encoding="utf-8"))
    if found["status"] != "done" or found.get("stale"):
        return False
    return bool(found["fingerprint"] == wanted and found["versions"]["cllm4rec"] == __version__)


def _run_job(job: Job, setting: BenchmarkConfig, output: Path, place: Place, batch_size: int) -> str:
    """Run one job, after the search for its settings where there is one to do; the error, or nothing."""
    task: dict[str, Any] = {
        "job": dataclasses.asdict(job),
        "setting": dataclasses.asdict(setting),
        "train_data": str(place.train_data),
        "asking_data": str(place.asking_data),
        "output": str(output),
        "batch_size": batch_size,
        "tuned": None,
        "tunes": False,
    }
    if setting.tune and job.system == "baseline":
        searched: dict[str, dict[str, Any]] = {}
        chosen: dict[str, str] = {}
        for recipe in baselines_of(job.recipe):
            found, error = _search(dataclasses.replace(job, recipe=recipe), setting, output, task)
            if error:
                return f"the search for its settings failed: {error}"
            searched[recipe["name"]] = {**recipe["settings"], **found["settings"]}
            budget = {"trials": len(found["trials"]), "metric": setting.tune_metric}
            chosen[recipe["name"]] = budgets.tuned_in_words(recipe["name"], budget)
        task["tuned"] = searched.get(job.recipe["name"], searched)
        task["job"]["chosen"] = budgets.of_baseline(job.recipe["name"], chosen)
    task |= {"fingerprint": job.fingerprint(setting), "result": str(output / "jobs" / f"{job.key}.json")}
    Path(task["result"]).parent.mkdir(exist_ok=True)
    return _run_process(task, _log(output, job.key))


def _search(job: Job, setting: BenchmarkConfig, output: Path, task: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the result of the search for a baseline's settings, run once for all jobs; or the error."""
    place = output / "tuning" / f"{job.recipe['name']}-{job.case}.json"
    mark = fingerprint({"recipe": job.recipe, "case": job.case, "setting": dataclasses.asdict(setting)})
    if not is_finished(place, mark):
        place.parent.mkdir(exist_ok=True)
        changed = {"job": dataclasses.asdict(job), "tunes": True, "fingerprint": mark, "result": str(place)}
        if error := _run_process({**task, **changed}, _log(output, place.stem)):
            return {}, error
    return json.loads(place.read_text(encoding="utf-8")), ""


def _run_process(task: dict[str, Any], log: Path) -> str:
    """Return the last line of a failed process's output, or how it ended; nothing on success."""
    path = os.pathsep.join(filter(None, [str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH")]))
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            WORKER,
            input=json.dumps(task),
            text=True,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    if not done.returncode:
        return ""
    if done.returncode < 0:
        return f"ended by signal {signal.Signals(-done.returncode).name}" + (
            ", perhaps for want of memory" if -done.returncode == signal.SIGKILL else ""
        )
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with code {done.returncode}"


def _log(output: Path, name: str) -> Path:
    return output / "logs" / f"{name}.log"
