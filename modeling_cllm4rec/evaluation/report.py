"""The result of an evaluation: numbers, intervals and protocol, as JSON, Parquet or Markdown."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_cllm4rec.core.errors import ExistingFileError, InputError, MissingFileError
from modeling_cllm4rec.core.json_objects import read_json
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.evaluation.protocol import ALL_SCORED, Protocol
from modeling_cllm4rec.evaluation.slices import SLICES

FORMAT = "cllm4rec-evaluation-1"


@dataclass
class SliceResult:
    """Metrics over the true items of one kind; see `slices.slice_targets`.

    Attributes:
        targets: number of true items of this kind.
        users: number of users with such an item, who are in the means.
        metrics: name to mean over these users; the other true items of a user do not count.
        per_user: name to (all users,) values, NaN for a user without such an item; empty in a report that was loaded.
    """

    targets: int
    users: int
    metrics: dict[str, float]
    per_user: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict, compare=False, repr=False)


@dataclass
class BaselineResult:
    """Metrics of a baseline that was measured with a model, on the same users.

    Attributes:
        metrics, intervals: as in the report of the model.
        differences: metric -> the model's mean minus the baseline's, and the lower and upper end of its 95% bootstrap interval.
            Coverage has none.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    differences: dict[str, tuple[float, float, float]]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BaselineResult:
        """Return the result of the fields in JSON, where tuples are lists."""
        parts = [{name: tuple(ends) for name, ends in values[part].items()} for part in ("intervals", "differences")]
        return cls(values["metrics"], *parts)


@dataclass
class EvaluationReport:
    """The result of `evaluate`.

    Attributes:
        protocol: the conditions of the measurement.
        metrics: name, as in `recall@20`, to mean over users (for `coverage@k`: share of the catalogue).
        intervals: name to lower and upper end of the 95% bootstrap interval over users. Coverage has no
            interval because it is no mean over users.
        seconds: time for scoring and ranking all users, without the bootstrap.
        seed: random seed of the bootstrap.
        n_resamples: resamples of the bootstrap; 0 means no intervals.
        user_indices: (users,) the evaluated users; empty in a report that was loaded.
        per_user: name to (users,) values in the order of `user_indices`; empty in a report that was loaded.
        command: the command line of the evaluation, None if it was called from Python.
        illegal_items: number of invalid, duplicate or seen items in the lists of a search, which count as misses. None if all
            items were scored, which excludes them, and in reports without this count.
        users_without_list: number of users in the means to which the recommender gave no item.
        slices: slice -> label -> metrics over the true items of this kind; empty if none were asked for.
        baselines: name -> result of the baselines that were measured in the same run; see `verdicts.compare`.
        dataset_revision: commit of the data folder on the Hub, None for a local folder.
    """

    protocol: Protocol
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    seconds: float
    seed: int
    n_resamples: int
    user_indices: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64), compare=False, repr=False)
    per_user: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict, compare=False, repr=False)
    command: str | None = None
    illegal_items: int | None = None
    users_without_list: int = 0
    slices: dict[str, dict[str, SliceResult]] = field(default_factory=dict)
    baselines: dict[str, BaselineResult] = field(default_factory=dict)
    dataset_revision: str | None = None

    @property
    def protocol_line(self) -> str:
        """The protocol line, for a search with its number of illegal items."""
        return f"{self.protocol}{self._counts}"

    @property
    def _counts(self) -> str:
        illegal = "" if self.illegal_items is None else f"; illegal items {self.illegal_items}"
        return f"{illegal}; {self.users_without_list} users without a list" if self.users_without_list else illegal

    @property
    def users(self) -> int:
        """Number of users in the means."""
        return self.protocol.users

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the per-user values, for JSON."""
        return {
            "format": FORMAT,
            "protocol": self.protocol.to_dict(),
            "protocol_line": self.protocol_line,
            "metrics": dict(self.metrics),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "seconds": self.seconds,
            "users": self.users,
            "seed": self.seed,
            "n_resamples": self.n_resamples,
            "command": self.command,
            "illegal_items": self.illegal_items,
            "users_without_list": self.users_without_list,
            "slices": {
                name: {
                    label: {"targets": one.targets, "users": one.users, "metrics": one.metrics} for label, one in parts.items()
                }
                for name, parts in self.slices.items()
            },
            "baselines": {
                name: {
                    "metrics": one.metrics,
                    "intervals": {metric: list(ends) for metric, ends in one.intervals.items()},
                    "differences": {metric: list(ends) for metric, ends in one.differences.items()},
                }
                for name, one in self.baselines.items()
            },
            "dataset_revision": self.dataset_revision,
        }

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the report as JSON, atomically.

        Raises:
            InputError: if the name does not end in `.json`.
            ExistingFileError: if there is such a file and `overwrite` is off.
        """
        target = _free_path(path, ".json", overwrite)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic_file(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return target

    def save_per_user(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write `user_index` and one column per metric as Parquet; errors as `save`.

        Raises:
            InputError: if this report was loaded and has no per-user values.
        """
        if not self.per_user:
            raise InputError("per_user is empty: a loaded report has no per-user values; write them after evaluate()")
        target = _free_path(path, ".parquet", overwrite)
        with atomic_file(target) as temporary:
            pq.write_table(pa.table({"user_index": self.user_indices, **self.per_user}), temporary)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EvaluationReport:
        """Load a report that `save` wrote; it equals the saved one except for the per-user values.

        Raises:
            MissingFileError: if there is no such file.
            InputError: if the file is not a report.
        """
        if not Path(path).is_file():
            raise MissingFileError(f"{path}: there is no such report; `cllm4rec evaluate` writes one")
        values = read_json(Path(path), "evaluate again")
        if values.get("format") != FORMAT:
            raise InputError(f"{path} is not an evaluation report: its field format must be {FORMAT!r}")
        try:
            return cls(
                protocol=Protocol.from_dict(values["protocol"]),
                metrics=dict(values["metrics"]),
                intervals={name: (low, high) for name, (low, high) in values["intervals"].items()},
                seconds=values["seconds"],
                seed=values["seed"],
                n_resamples=values["n_resamples"],
                command=values.get("command"),
                illegal_items=values.get("illegal_items"),
                users_without_list=values.get("users_without_list", 0),
                slices={
                    name: {label: SliceResult(**one) for label, one in parts.items()}
                    for name, parts in values.get("slices", {}).items()
                },
                baselines={name: BaselineResult.from_dict(one) for name, one in values.get("baselines", {}).items()},
                dataset_revision=values.get("dataset_revision"),
            )
        except KeyError as error:
            raise InputError(f"{path} lacks the field {error}; evaluate again") from error
        except (AttributeError, TypeError, ValueError) as error:  # such as a list in place of an object
            raise InputError(f"{path} has a field of another type ({error}); evaluate again") from error

    def to_markdown(self) -> str:
        """Return Markdown tables of the metrics with their intervals, next to them the baselines, and of each slice."""
        return "\n".join([*self.metric_lines(), *self.slice_lines()])

    def metric_lines(self) -> list[str]:
        """Return the lines of the table of metrics, with a column for each baseline, and of the protocol."""
        columns = ["metric", "value", "95% interval", *self.baselines]
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for name, value in self.metrics.items():
            ends = "-"
            if name in self.intervals:
                low, high = self.intervals[name]
                ends = f"{low:.4f} to {high:.4f}"
            others = [f"{one.metrics[name]:.4f}" if name in one.metrics else "-" for one in self.baselines.values()]
            lines.append(f"| {' | '.join([name, f'{value:.4f}', ends, *others])} |")
        return [*lines, "", f"Protocol: {self.protocol_line}."]

    def slice_lines(self) -> list[str]:
        """Return the lines of a table of each slice; none where there are no slices."""
        lines: list[str] = []
        for name, parts in self.slices.items():
            lines += ["", f"Metrics {SLICES[name]}:", ""]
            lines += [f"| slice | true items | users | {' | '.join(self._sliced)} |", "|---" * (3 + len(self._sliced)) + "|"]
            for label, one in parts.items():
                cells = " | ".join(f"{one.metrics[metric]:.4f}" for metric in self._sliced)
                lines.append(f"| {label} | {one.targets} | {one.users} | {cells} |")
        return lines

    @property
    def _sliced(self) -> list[str]:
        """Metrics that slices have: all that are means over users."""
        return [name for name in self.metrics if not name.startswith("coverage")]


def comparison_table(reports: Mapping[str, EvaluationReport]) -> str:
    """Compare recommenders in one Markdown table: a row each, a column per metric, 95% intervals in brackets.

    Args:
        reports: name of the recommender to its report.

    Returns:
        The table, and the common protocol below it. Decoding may differ between models and is reported for each.

    Raises:
        InputError: if there is no report, or the reports differ in protocol or metrics.
    """
    if not reports:
        raise InputError("reports is empty; give at least one report")
    first_name, first = next(iter(reports.items()))
    for name, report in reports.items():
        if dataclasses.replace(report.protocol, decoding=first.protocol.decoding) != first.protocol:
            raise InputError(
                "reports with different protocols cannot be compared in one table; evaluate again under one protocol.\n"
                f"{first_name}: {first.protocol}\n{name}: {report.protocol}"
            )
        if list(report.metrics) != list(first.metrics):
            raise InputError(
                f"reports must have the same metrics in the same order, but {first_name} has {list(first.metrics)} "
                f"and {name} has {list(report.metrics)}"
            )
    lines = ["| model | " + " | ".join(first.metrics) + " |", "|---" * (len(first.metrics) + 1) + "|"]
    for name, report in reports.items():
        cells = [_cell(value, report.intervals.get(metric)) for metric, value in report.metrics.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    decoding = [
        f"{name}: {report.protocol.decoding}{report._counts}."
        for name, report in reports.items()
        if report.protocol.decoding != ALL_SCORED
    ]
    common = dataclasses.replace(first.protocol, decoding=ALL_SCORED) if decoding else first.protocol
    return "\n".join([*lines, "", " ".join([f"Protocol: {common}.", *decoding])])


def _cell(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.4f}" if interval is None else f"{value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"


def _free_path(path: str | os.PathLike[str], suffix: str, overwrite: bool) -> Path:
    target = Path(path)
    if target.suffix != suffix:
        raise InputError(f"path must end in {suffix}, got {str(target)!r}")
    if target.exists() and not overwrite:
        raise ExistingFileError(f"{target} exists; choose another path or pass overwrite=True")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
