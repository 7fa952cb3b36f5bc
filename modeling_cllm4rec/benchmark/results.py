"""Tables of the results in a report folder: means over seeds, intervals over users, paired differences, verdicts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_cllm4rec.baselines import BASELINES
from modeling_cllm4rec.benchmark.ablation import RECIPE, variant_names
from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Condition, UserGroup, training_fingerprint
from modeling_cllm4rec.benchmark.models import title
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.slices import HISTORY_LENGTH, POPULARITY, RELATION, quarter_bins
from modeling_cllm4rec.evaluation.verdicts import Estimate, paired_difference, short, verdict

FloatArray = npt.NDArray[np.float64]

CASES = {
    "everyone": "Everyone",
    "unseen-people": "Users held out of training",
}
"""Evaluated users -> heading."""


@dataclass
class Row:
    """A model in a table.

    Attributes:
        model: name on the command line.
        title: name in tables.
        is_baseline: whether other rows are compared with this one.
        about: description in a few words.
        command: command line of the row.
        chosen: how the settings were chosen, in words.
        seeds: seeds of the numbers.
        means: metric -> mean over seeds.
        deviations: metric -> standard deviation over seeds (n - 1), if there are several.
        estimates: metric -> mean over users and seeds, with its interval over both; coverage has none.
        differences: metric -> difference to the reference, paired by user.
        to_baselines: metric -> title of each baseline -> difference to it, paired by user; baselines have none.
        slices: name of slices -> label -> estimate of the first metric.
        resources: cost -> mean over seeds, or the maximum for memory; None if it is unknown. See `RESOURCES`.
        settings: settings of the training of the first seed.
        errors: seed -> error.
        left_out: seed -> why its result is not in the numbers.
        per_user: `user_index` -> (users,), and metric -> (seeds, users).
    """

    model: str
    title: str
    is_baseline: bool
    about: str
    command: str
    chosen: str = ""
    seeds: list[int] = field(default_factory=list)
    means: dict[str, float] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)
    to_baselines: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    slices: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    resources: dict[str, float | None] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    protocol: Protocol | None = None
    machines: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    per_user: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Table:
    """All models under one condition.

    Attributes:
        references: metric -> title of the reference row: the best baseline, or the recipe of an ablation.
    """

    case: UserGroup
    condition: Condition
    metrics: tuple[str, ...]
    rows: list[Row]
    references: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name in file names."""
        return f"{self.case}-{self.condition.key}"

    def label(self, metric: str) -> str:
        """Return the name of a metric in tables and sentences, marked if it is sampled."""
        return f"{metric} (sampled)" if self.condition.negatives else metric

    @property
    def measured(self) -> list[Row]:
        """Rows with numbers."""
        return [row for row in self.rows if row.seeds]


def read_tables(folder: Path, n_resamples: int = 1000) -> tuple[BenchmarkConfig, list[Table]]:
    """Read all tables of a report folder.

    Raises:
        MissingFileError: the folder is no report folder, or has no result.
        InputError: a file cannot be read, or two results are of different users.
    """
    config = BenchmarkConfig.load(folder)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "jobs").glob("*.json"))]
    if not results:
        raise MissingFileError(f"{folder} holds no result yet; run the benchmark that writes into it")
    tables = []
    for case in get_args(UserGroup):
        of_case = [result for result in results if result["job"]["case"] == case]
        for condition in config.conditions if of_case else ():
            models = sorted({result["job"]["model"] for result in of_case if not result.get("stale")}, key=_order)
            rows = [
                _row(folder, [one for one in of_case if one["job"]["model"] == model], condition, config, n_resamples)
                for model in models
            ]
            table = Table(case, condition, config.metrics, rows)
            _compare(table, n_resamples)
            tables.append(table)
    return config, tables


def verdicts(table: Table) -> list[str]:
    """Return a sentence for each metric and each model that is no baseline, or each variant of an ablation."""
    return [
        verdict(row.title, table.references[metric], difference, table.label(metric))
        for row in table.measured
        if not row.is_baseline
        for metric, difference in row.differences.items()
    ]


def summary_of(row: Row, table: Table) -> str:
    """Return the verdicts of a row in one line: its training seeds, the relation to each reference, metrics and differences.

    Example:
        >>> summary_of(row, table)  # doctest: +SKIP
        'over 3 training seeds: above iALS on recall@20 (+.0077 [.0014, .0134])'
    """
    groups: dict[str, list[str]] = {}
    for metric, difference in row.differences.items():
        mean, low, high = difference[:3]
        relation = "above" if low > 0 else "below" if high < 0 else "no significant difference from"
        number = f"{'+' if mean > 0 else ''}{short(mean)} [{short(low)}, {short(high)}]"
        groups.setdefault(f"{relation} {table.references[metric]}", []).append(f"{table.label(metric)} ({number})")
    seeds = "1 training seed" if len(row.seeds) == 1 else f"{len(row.seeds)} training seeds"
    return f"over {seeds}: " + "; ".join(f"{relation} on {', '.join(metrics)}" for relation, metrics in groups.items())


def _order(model: str) -> tuple[int, str]:
    """Return the sort key of a model: baselines and variants by their tables, sums after their baselines, others by name."""
    known = [*BASELINES, *(name for names in variant_names().values() for name in names)]
    parts = [model] if model in known else model.split("+")
    return (max(known.index(part) if part in known else len(known) for part in parts), model)


def _row(folder: Path, found: list[dict[str, Any]], condition: Condition, config: BenchmarkConfig, n_resamples: int) -> Row:
    results = [one for one in found if not one.get("stale")]
    job = results[0]["job"]
    is_baseline = job["system"] == "baseline" if config.kind == "quality" else job["model"] == RECIPE
    row = Row(job["model"], title(job["model"]) if config.kind == "quality" else job["model"], is_baseline, job["about"], "")
    done = sorted((one for one in results if one["status"] == "done"), key=lambda one: one["job"]["seed"])
    row.errors = {one["job"]["seed"]: one["error"] for one in results if one["status"] == "failed"}
    row.left_out = {one["job"]["seed"]: one["stale"] for one in found if one.get("stale")}
    row.seeds = [one["job"]["seed"] for one in done]
    row.command = _command([one["job"] for one in results])
    if not done:
        return row
    if len({training_fingerprint(one["job"]) for one in done}) > 1:
        raise InputError(f"{folder}: seeds of {row.title} have different settings; run all of them again, or pass overwrite=True")
    measured = [next(one for one in result["measured"] if tuple(one["condition"]) == condition) for result in done]
    tables = [pq.read_table(folder / one["per_user"]) for one in measured]
    for table in tables[1:]:
        if not table["user_index"].equals(tables[0]["user_index"]):
            raise InputError(f"{folder}: the seeds of {row.title} were measured on different users; pass overwrite=True")
    row.protocol = Protocol.from_dict(measured[0]["protocol"])
    row.machines = [f"{one['machine']}, {one['threads']} threads" for one in done]
    row.versions, row.settings, row.chosen = done[0]["versions"], done[0]["settings"], done[0]["job"].get("chosen", "")
    row.per_user = {"user_index": tables[0]["user_index"].to_numpy()}
    for metric in config.metrics:
        of_seeds = [one["metrics"][metric] for one in measured]
        row.means[metric] = float(np.mean(of_seeds))
        if len(of_seeds) > 1:
            row.deviations[metric] = float(np.std(of_seeds, ddof=1))
        if metric in tables[0].column_names:
            row.per_user[metric] = np.stack([table[metric].to_numpy() for table in tables])
            row.estimates[metric] = _estimate(row.per_user[metric], n_resamples)
    row.slices = _slices(tables, config.metrics[0], n_resamples)
    costs = [{**one, "milliseconds_per_user": part["milliseconds_per_user"]} for one, part in zip(done, measured, strict=True)]
    row.resources = {name: join([cost.get(name) for cost in costs]) for name, join in RESOURCES.items()}
    return row


def _slices(tables: list[pa.Table], metric: str, n_resamples: int) -> dict[str, dict[str, Estimate]]:
    """Return the first metric by relation and popularity of the true items, and by length of the given history."""
    found: dict[str, dict[str, Estimate]] = {RELATION: {}, POPULARITY: {}, HISTORY_LENGTH: {}}
    for column in tables[0].column_names:
        name, is_slice, label = column.partition(":")
        if is_slice:
            values = _mean_over_seeds(tables, column)
            if not np.isnan(values).all():
                found[name][label] = _estimate(values[~np.isnan(values)], n_resamples)
    values, lengths = _mean_over_seeds(tables, metric), tables[0][HISTORY_LENGTH].to_numpy()
    for part in quarter_bins(lengths):
        found[HISTORY_LENGTH][part.label] = _estimate(values[part.holds(lengths)], n_resamples)
    return found


def _compare(table: Table, n_resamples: int) -> None:
    """Set the reference of each metric, the differences of all rows to it, and those of models to all baselines."""
    baselines = [row for row in table.measured if row.is_baseline]
    for metric in table.metrics:
        comparable = [row for row in baselines if metric in row.estimates]
        if not comparable:
            continue
        best = max(comparable, key=lambda row: row.means[metric])
        table.references[metric] = best.title
        for row in table.measured:
            if row.is_baseline and row is not best:
                row.differences[metric] = _difference(row, best, metric, n_resamples)
            elif not row.is_baseline:
                row.to_baselines[metric] = {other.title: _difference(row, other, metric, n_resamples) for other in comparable}
                row.differences[metric] = row.to_baselines[metric][best.title]


def _difference(row: Row, other: Row, metric: str, n_resamples: int) -> Estimate:
    """Return the difference of two rows, paired by user."""
    if not np.array_equal(row.per_user["user_index"], other.per_user["user_index"]):
        raise InputError(f"{row.title} and {other.title} were measured on different users; pass overwrite=True")
    return paired_difference(row.per_user[metric], other.per_user[metric], n_resamples)


def _command(jobs: list[dict[str, Any]]) -> str:
    """Return the command line of a row: that of its first job with all seeds, or with all folders of a trained model."""
    jobs = sorted(jobs, key=lambda job: job["seed"])
    flag = "--models " if jobs[0]["system"] == "folder" else "--seed "
    command = jobs[0]["command"].partition(flag)[0]
    if flag == "--models ":
        return command + flag + ",".join(job["command"].partition(flag)[2] for job in jobs)
    return command + flag + " ".join(str(job["seed"]) for job in jobs)


def _estimate(values: FloatArray, n_resamples: int) -> Estimate:
    return Estimate(float(values.mean()), *bootstrap_interval(values, n_resamples=n_resamples), values.shape[-1])


def _mean_over_seeds(tables: list[pa.Table], column: str) -> FloatArray:
    """Return the (users,) means over seeds, NaN if a user has no value."""
    values: FloatArray = np.mean([table[column].to_numpy() for table in tables], axis=0)
    return values


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _most(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


RESOURCES = {
    **dict.fromkeys(("train_seconds", "milliseconds_per_user", "wall_seconds"), _mean),
    **dict.fromkeys(("train_peak_bytes", "train_peak_device_bytes", "peak_bytes", "peak_device_bytes"), _most),
}
"""Cost of a model -> function that joins the costs of several seeds. `train_` is the cost of the training, also an earlier one.
`wall_seconds` and the other memory are costs of the process of the row, which trains if there is no trained model, and scores."""
