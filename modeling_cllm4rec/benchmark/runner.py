"""Runs jobs in separate processes. Finished jobs are not run again, and a failed job does not stop the others."""

from __future__ import annotations

import contextlib
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
from modeling_cllm4rec.baselines import get_baseline, members
from modeling_cllm4rec.benchmark import budgets
from modeling_cllm4rec.benchmark.jobs import (
    BenchmarkConfig,
    Job,
    UserGroup,
    file_name,
    fingerprint,
    training_fingerprint,
    write_json,
)
from modeling_cllm4rec.benchmark.models import baselines_of

logger = logging.getLogger(__name__)

PACKAGE_FOLDER = Path(__file__).parents[2]
WORKER = (sys.executable, "-m", "modeling_cllm4rec.benchmark.worker")


class DataFolders(NamedTuple):
    """Data folders of a group of evaluated users.

    Attributes:
        training: data of the training users.
        evaluation: data of the evaluated users.
    """

    training: Path
    evaluation: Path


def run_jobs(
    jobs: Sequence[Job],
    config: BenchmarkConfig,
    output: Path,
    folders: dict[UserGroup, DataFolders],
    *,
    batch_size: int = 256,
    keep_models: bool = False,
    progress: bool = True,
) -> dict[str, str]:
    """Run all jobs that are not finished and write their results into `jobs/`, those of failed jobs with their `error`.

    Earlier results of the same models with other settings are marked, see `mark_stale`.

    Args:
        output: the report folder.
        folders: evaluated users -> their data folders.
        batch_size: users per batch.
        keep_models: keep trained language models in `runs/`; otherwise they are deleted when all jobs are finished.
        progress: show a progress bar of jobs.

    Returns:
        Failed job -> its error.
    """
    failed: dict[str, str] = {}
    (output / "logs").mkdir(exist_ok=True)
    mark_stale(jobs, output)
    with tqdm(total=len(jobs), desc="benchmark", unit="job", disable=not progress) as bar:
        for job in jobs:
            bar.set_postfix_str(job.key)
            result = output / "jobs" / f"{job.key}.json"
            if not is_finished(result, job.fingerprint(config)):
                error = _run_job(job, config, output, folders[job.case], batch_size)
                if error:
                    failed[job.key] = error
                    logger.warning("%s failed: %s (log: %s)", job.key, error, _log(output, job.key))
                    write_json(result, {"status": "failed", "error": error, "job": dataclasses.asdict(job)})
            bar.update()
    if not failed and not keep_models:
        shutil.rmtree(output / "runs", ignore_errors=True)
    return failed


def mark_stale(jobs: Sequence[Job], output: Path) -> None:
    """Mark results that cannot share a row with these jobs, with the reason in `stale`, and unmark those that can again."""
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
    """Return whether there is a result of equal settings, equal data and this version of the package."""
    if not result.is_file():
        return False
    found = json.loads(result.read_text(encoding="utf-8"))
    if found["status"] != "done" or found.get("stale"):
        return False
    return bool(found["fingerprint"] == wanted and found["versions"]["cllm4rec"] == __version__)


def _run_job(job: Job, config: BenchmarkConfig, output: Path, data: DataFolders, batch_size: int) -> str:
    """Run the search for the settings of a job, if there is one, and the job; return the error, or an empty text."""
    task: dict[str, Any] = {
        "job": dataclasses.asdict(job),
        "config": dataclasses.asdict(config),
        "training_data": str(data.training),
        "evaluation_data": str(data.evaluation),
        "output": str(output),
        "batch_size": batch_size,
        "tuned": None,
        "tunes": False,
    }
    if config.tune and job.system == "baseline":
        searched: dict[str, dict[str, Any]] = {}
        chosen: dict[str, str] = {}
        recipes = baselines_of(job.recipe)
        if len(recipes) > 1:  # the weights come last, with the settings that were found for each
            recipes.append({**job.recipe, "settings": searched})
        for recipe in recipes:
            name = recipe["name"]
            if len(members(name)) == 1 and not get_baseline(name).space:
                searched[name] = recipe["settings"]
                continue
            found, error = _search(dataclasses.replace(job, recipe=recipe), config, output, task)
            if error:
                return f"the search for its settings failed: {error}"
            budget = {"trials": len(found["trials"]), "metric": config.tune_metric}
            chosen[name] = budgets.tuned_in_words(name, budget)
            if len(members(name)) > 1:
                searched |= found["settings"]
            else:
                searched[name] = {**recipe["settings"], **found["settings"]}
        task["tuned"] = searched.get(job.recipe["name"], searched)
        task["job"]["chosen"] = budgets.of_baseline(job.recipe["name"], chosen)
    task |= {"fingerprint": job.fingerprint(config), "result": str(output / "jobs" / f"{job.key}.json")}
    Path(task["result"]).parent.mkdir(exist_ok=True)
    return _run_process(task, _log(output, job.key))


def _search(job: Job, config: BenchmarkConfig, output: Path, task: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the result of the search for the settings of a baseline, which runs once for all jobs, or the error."""
    result = output / "tuning" / f"{file_name(job.recipe['name'])}-{job.case}.json"
    mark = fingerprint({"recipe": job.recipe, "case": job.case, "setting": dataclasses.asdict(config)})
    if not is_finished(result, mark):
        result.parent.mkdir(exist_ok=True)
        changed = {"job": dataclasses.asdict(job), "tunes": True, "fingerprint": mark, "result": str(result)}
        if error := _run_process({**task, **changed}, _log(output, result.stem)):
            return {}, error
    return json.loads(result.read_text(encoding="utf-8")), ""


def _run_process(task: dict[str, Any], log: Path) -> str:
    """Run a task in a separate process; return the last line of its output or its signal if it failed, or an empty text."""
    path = os.pathsep.join(filter(None, [str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH")]))
    with log.open("w", encoding="utf-8") as file:
        environment = {**os.environ, "PYTHONPATH": path}
        process = subprocess.Popen(
            WORKER, stdin=subprocess.PIPE, text=True, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        assert process.stdin is not None
        try:
            # The pipe stays open: it ends when this process is gone, however it ended.
            with contextlib.suppress(BrokenPipeError):  # the worker has ended already
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
    if not code:
        return ""
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name}" + (
            ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
        )
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with code {code}"


def _log(output: Path, name: str) -> Path:
    return output / "logs" / f"{name}.log"
