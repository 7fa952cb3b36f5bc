"""The process of a job: `python -m modeling_cllm4rec.benchmark.worker` with a task as a line of JSON on standard input."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from modeling_cllm4rec import __version__
from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Job, write_json
from modeling_cllm4rec.benchmark.measurement import measure
from modeling_cllm4rec.benchmark.training import train, tune_baseline
from modeling_cllm4rec.commands.command_line import RUN_FAILED
from modeling_cllm4rec.core.console_log import show_log
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.hub.machine import peak_device_memory, peak_memory
from modeling_cllm4rec.hub.model_card import LIBRARIES, machine


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Do a task and write its result into the report folder.

    Args:
        task: `job`, `config`, `training_data` and `evaluation_data` (folders), `output`, `batch_size`, `tuned` (settings or
            null), and `result`, the file of the result. With `"tunes": true` the settings of the job's baseline are searched for
            instead.

    Returns:
        The content of the result file.
    """
    job, config, output = Job(**task["job"]), BenchmarkConfig.from_dict(task["config"]), Path(task["output"])
    start = time.perf_counter()
    data = RecommendationData.load(task["training_data"])
    result: dict[str, Any] = {"fingerprint": task["fingerprint"], "status": "done"}
    if task["tunes"]:
        result |= tune_baseline(job, config, data)
    else:
        result |= _train_and_measure(job, config, data, task, output)
    result |= {
        "wall_seconds": time.perf_counter() - start,
        "peak_bytes": peak_memory(),
        "peak_device_bytes": peak_device_memory(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": {"cllm4rec": __version__, **{name: version(name) for name in LIBRARIES}},
    }
    write_json(Path(task["result"]), result)
    return result


def _train_and_measure(
    job: Job, config: BenchmarkConfig, data: RecommendationData, task: dict[str, Any], output: Path
) -> dict[str, Any]:
    trained = train(job, config, data, output / "runs", task["tuned"])
    same = task["evaluation_data"] == task["training_data"]
    evaluated = data if same else RecommendationData.load(task["evaluation_data"])
    histories = data.histories("train")
    batch_size = min(task["batch_size"], trained.batch_size or task["batch_size"])
    (output / "per_user").mkdir(exist_ok=True)
    measured = []
    for condition in config.conditions:
        found = measure(
            trained.recommender, evaluated, config, condition, histories, anonymous=job.anonymous, batch_size=batch_size
        )
        per_user = f"per_user/{job.key}.{condition.key}.parquet"
        with atomic_file(output / per_user) as temporary:
            pq.write_table(found.per_user, temporary)
        measured.append(
            {
                "condition": list(condition),
                "protocol": found.protocol.to_dict(),
                "metrics": found.metrics,
                "seconds": found.seconds,
                "milliseconds_per_user": 1e3 * found.seconds / found.protocol.users,
                "batch_size": batch_size,
                "per_user": per_user,
            }
        )
    return {
        "job": dataclasses.asdict(job),
        "settings": trained.settings,
        **{f"train_{name}": value for name, value in trained.cost._asdict().items()},
        "measured": measured,
    }


def end_with_parent() -> None:
    """End this process as soon as standard input ends, which the parent keeps open as long as it lives."""
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read(), whose lock the interpreter wants when it ends
        pass
    os._exit(RUN_FAILED)


def main() -> int:
    """Do the task on the first line of standard input; after an exception, the last line of the error output names it."""
    show_log()
    try:
        task = json.loads(sys.stdin.readline())
        threading.Thread(target=end_with_parent, daemon=True).start()
        work(task)
    except Exception as error:  # the report names it, and the other jobs go on
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
