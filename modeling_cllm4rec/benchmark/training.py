"""The recommender of a job: a fitted baseline, a system that is trained by its recipe, or a trained folder."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modeling_cllm4rec.baselines import WEIGHTS, baseline_settings, fit_baseline, get_baseline, members, tune
from modeling_cllm4rec.baselines.hybrid import make_hybrid
from modeling_cllm4rec.benchmark.jobs import HYBRID_OF, BenchmarkConfig, Job, fingerprint, selection_of, write_json
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.id_checks import check_same_ids
from modeling_cllm4rec.evaluation.evaluator import parse_metrics
from modeling_cllm4rec.evaluation.searching import SearchingRecommender
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.hub.machine import peak_device_memory, peak_memory
from modeling_cllm4rec.hub.model_card import read_records
from modeling_cllm4rec.systems import Stage, resolve, system_of_recipe
from modeling_cllm4rec.training.progress import Progress

FINISHED_FILE = "finished.json"
NO_SETTINGS = ("progress", "device", "planned_pairs", "max_hours")
"""Settings of baselines without an effect on numbers."""
WEIGHT_USERS = 4000
"""Most users in the search for the weights of a sum, which holds their scores in memory."""


class Cost(NamedTuple):
    """Cost of a training; None if it was not recorded.

    Attributes:
        seconds: time of all stages, including all runs of a resumed stage.
        peak_bytes: peak memory of a process up to the end of a stage.
        peak_device_bytes: the same on the accelerator.
    """

    seconds: float | None = None
    peak_bytes: int | None = None
    peak_device_bytes: int | None = None

    def and_then(self, later: Cost) -> Cost:
        """Return the cost of two stages: the sum of seconds, the maximum of memory, and None if one of them is None.

        >>> Cost(2.0, 100, 0).and_then(Cost(3.0, 70, None))
        Cost(seconds=5.0, peak_bytes=100, peak_device_bytes=None)
        """
        seconds = None if self.seconds is None or later.seconds is None else self.seconds + later.seconds
        pairs = zip(self[1:], later[1:], strict=True)
        return Cost(seconds, *(None if first is None or second is None else max(first, second) for first, second in pairs))


class Trained(NamedTuple):
    """A trained recommender.

    Attributes:
        recommender: a `Recommender` or a `Searcher`.
        cost: cost of the training.
        settings: settings of the training.
        batch_size: largest number of users per batch; None is no limit.
    """

    recommender: Any
    cost: Cost
    settings: dict[str, Any]
    batch_size: int | None = None


def tune_baseline(job: Job, config: BenchmarkConfig, data: RecommendationData) -> dict[str, Any]:
    """Search for the best settings of a baseline or the weights of a sum on validation, and return them and all trials as JSON.

    Settings of the recipe that are not drawn are the same in each trial as in the training.
    """
    start = time.perf_counter()
    name, max_users = job.recipe["name"], config.max_users
    drawn = [WEIGHTS] if len(members(name)) > 1 else list(get_baseline(name).space)
    if drawn == [WEIGHTS]:
        max_users = min(max_users or data.num_users, WEIGHT_USERS)
    fixed = {key: value for key, value in job.recipe["settings"].items() if key not in drawn}
    found = tune(name, data, config.tune, 0, config.tune_metric, fixed=fixed, max_users=max_users)
    return {"settings": found.settings, "trials": found.trials.to_pylist(), "seconds": time.perf_counter() - start}


def train(
    job: Job, config: BenchmarkConfig, data: RecommendationData, runs: Path, tuned: dict[str, Any] | None = None
) -> Trained:
    """Train the recommender of a job.

    Args:
        data: the training data.
        runs: folder for trained language models; an interrupted training in it is resumed.
        tuned: settings of a baseline in place of the recipe's.

    Raises:
        InputError: the training refuses a setting.
    """
    if job.system == "baseline":
        return train_baseline(job, config, data, tuned)
    if job.system == "folder":
        return _load_folder(Path(job.recipe["path"]), data, config)
    return _train_and_load_system(job, config, data, runs)


def train_baseline(job: Job, config: BenchmarkConfig, data: RecommendationData, tuned: dict[str, Any] | None = None) -> Trained:
    """Fit the baseline of a job, or the sum of baselines."""
    name, settings = job.recipe["name"], {**job.recipe["settings"], **(tuned or {})}
    planned = {"planned_pairs": pairs_to_score(config, data)} if "planned_pairs" in baseline_settings(name) else {}
    start = time.perf_counter()
    recommender = fit_baseline(name, data, seed=job.seed, **planned, **settings)
    cost = Cost(time.perf_counter() - start, peak_memory(), peak_device_memory())
    return Trained(recommender, cost, all_settings(name, settings))


def _train_and_load_system(job: Job, config: BenchmarkConfig, data: RecommendationData, runs: Path) -> Trained:
    folder, cost = train_system(job, data, runs)
    recommender = load_recommender(folder)
    system = system_of_recipe(job.system)
    if job.recipe[system.stages[-1].section] is None:
        resolve(system.recommend_early)(recommender, job.recipe[system.stages[0].section], folder)
    if parts := job.recipe.get(HYBRID_OF):
        start = time.perf_counter()
        make_hybrid(
            recommender,
            data,
            parts["baselines"],
            parts["settings"],
            metric=selection_of(config.metrics),
            max_users=WEIGHT_USERS,
            progress=False,
        )
        cost = cost.and_then(Cost(time.perf_counter() - start, peak_memory(), peak_device_memory()))
    return _ready(recommender, config, cost, dict(job.recipe))


def all_settings(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a baseline with an effect on numbers, with their defaults; of several joined by +, of each."""
    if len(parts := members(name)) > 1:
        weights = baseline_settings(name)[WEIGHTS] | settings.get(WEIGHTS, {})
        return {**{part: all_settings(part, settings[part]) for part in parts}, WEIGHTS: weights}
    return {key: value for key, value in baseline_settings(name).items() if key not in NO_SETTINGS} | settings


def pairs_to_score(config: BenchmarkConfig, data: RecommendationData) -> int:
    """Return the number of pairs of a user and an item that are scored in all conditions."""
    users = int((np.diff(data.histories("test").indptr) > 0).sum())
    evaluated = users if config.max_users is None else min(users, config.max_users)
    return sum(evaluated * (one.negatives + 1 if one.negatives else data.num_items) for one in config.conditions)


def train_system(job: Job, data: RecommendationData, runs: Path) -> tuple[Path, Cost]:
    """Run the stages of a system, each from the result of the previous one. Jobs with the same first stages share them.

    Returns:
        Folder of the model of the last stage that the recipe has, and the cost of all stages.
    """
    system = system_of_recipe(job.system)
    sections: list[str] = []
    folder, cost = runs, Cost(0.0, 0, 0)
    for stage in system.stages:
        settings = job.recipe[stage.section]
        if settings is None:
            break
        sections.append(stage.section)
        last = stage is system.stages[-1]
        output = runs / f"{system.name if last else stage.section}-{_short_name(job, *sections)}"
        arguments: dict[str, Any] = {"data": str(data.folder), "output": str(output), "seed": job.seed, "resume": True}
        if stage.previous:
            arguments[stage.previous] = str(folder)
        cost = cost.and_then(finished(output, functools.partial(_run_stage, stage, {**settings, **arguments})))
        folder = output / stage.folder
    return folder, cost


def _run_stage(stage: Stage, arguments: dict[str, Any]) -> float:
    """Run a stage and return its seconds, including those of earlier runs from which it was resumed."""
    start = time.perf_counter()
    _, progress = resolve(stage.run)(resolve(stage.arguments)(**arguments))
    return progress.seconds if isinstance(progress, Progress) else time.perf_counter() - start


def finished(folder: Path, work: Callable[[], float]) -> Cost:
    """Run a stage unless its folder is finished, delete its checkpoints, and return its cost.

    Args:
        folder: folder of the stage.
        work: function that runs the stage and returns its seconds.
    """
    record = folder / FINISHED_FILE
    if not record.is_file():
        cost = Cost(work(), peak_memory(), peak_device_memory())
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        write_json(record, cost._asdict())
    return Cost(**json.loads(record.read_text(encoding="utf-8")))


def _load_folder(folder: Path, data: RecommendationData, config: BenchmarkConfig) -> Trained:
    recommender = load_recommender(folder)
    check_same_ids(recommender, data, str(folder))
    records = read_records(folder)
    costs = [Cost(*(record.get(name) for name in Cost._fields)) for record in records.values()]
    cost = reduce(Cost.and_then, costs) if costs else Cost()
    settings = {stage: record["arguments"] for stage, record in records.items()}
    return _ready(recommender, config, cost, settings)


def _ready(model: Any, config: BenchmarkConfig, cost: Cost, settings: dict[str, Any]) -> Trained:
    """Return a loaded model with its cost; a search gets at least as many beams as the longest list has ranks."""
    if not model.scores_catalogue:
        longest = max(request.k for request in parse_metrics(config.metrics, model.num_items))
        # A number of beams asks for a search, also of a model that scores by its item head.
        searches = getattr(model.config, "scoring", "beam") == "beam"
        search = {"num_beams": max(longest, model.config.search_beams)} if searches else {}
        return Trained(SearchingRecommender(model, search), cost, settings, model.default_batch_size)
    return Trained(model, cost, settings)


def _short_name(job: Job, *stages: str) -> str:
    """Return a name for the result of stages of a recipe, with this seed and these users."""
    return fingerprint({"case": job.case, "seed": job.seed, **{stage: job.recipe[stage] for stage in stages}})[:12]
