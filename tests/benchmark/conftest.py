"""Jobs in this process: a process of its own takes seconds to import everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from modeling_cllm4rec.benchmark import runner as running
from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, make_config
from modeling_cllm4rec.benchmark.worker import work
from modeling_cllm4rec.corpora.data_folder import RecommendationData

METRICS = ("recall@5", "ndcg@10", "coverage@5")


@pytest.fixture
def setting(data: RecommendationData) -> BenchmarkConfig:
    return make_config(data, metrics=METRICS)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Do tasks here; the list names those that were done."""
    done: list[str] = []

    def run(task: dict[str, Any], log: Path) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        done.append(log.stem)
        try:
            work(json.loads(json.dumps(task)))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    monkeypatch.setattr(running, "_run_process", run)
    return done


@pytest.fixture
def quality(in_process: list[str], data_folder: Path, tmp_path: Path) -> Callable[..., int]:
    """`cllm4rec benchmark quality` on the small world, without plots."""
    from modeling_cllm4rec.benchmark.command import main

    def run(*words: str | Path, output: Path = tmp_path / "report", metrics: tuple[str, ...] = METRICS) -> int:
        shared = ["--data", data_folder, "--output", output, "--resamples", 50, "--no-plots"]
        return main([str(word) for word in ["quality", *shared, "--metrics", *metrics, *words]])

    return run
