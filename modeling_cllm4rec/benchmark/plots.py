"""Plots of a report: intervals, quality against cost, quality by popularity and by length of history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeling_cllm4rec.benchmark.results import CASES, Table
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.evaluation.slices import SLICES

COSTS = {"train_seconds": "training, seconds", "milliseconds_per_user": "milliseconds per user"}
LEAST_COST = 1e-3
"""Smallest cost on the logarithmic axis; a cost of 0 is drawn there."""


def check_plots() -> None:
    """Check that matplotlib, which draws the plots, is installed.

    Raises:
        MissingPackageError: it is not.
    """
    require("matplotlib", "benchmark", "a report with plots", "pass no_plots=True")


def draw(folder: Path, tables: list[Table]) -> dict[str, list[str]]:
    """Draw the plots of every table with numbers.

    Returns:
        Key of a table -> its plots, relative to the folder.
    """
    (folder / "plots").mkdir(exist_ok=True)
    drawn: dict[str, list[str]] = {}
    for table in tables:
        if not table.measured:
            continue
        figures = {"metrics": _metrics(table), "cost": _costs(table)}
        if not table.condition.negatives:
            figures |= {name: _slice(table, name) for name, parts in table.measured[0].slices.items() if parts}
        for name, figure in figures.items():
            place = f"plots/{table.key}-{name}.png"
            figure.savefig(folder / place, dpi=120)
            drawn.setdefault(table.key, []).append(place)
    return drawn


def draw_metrics(table: Table, output: Path) -> None:
    """Draw the means and intervals of a table as SVG; the same numbers give the same bytes.

    Args:
        output: the file; its folder is made.
    """
    from matplotlib import rc_context

    output.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": output.name, "svg.fonttype": "none"}), atomic_file(output) as temporary:
        _metrics(table).savefig(temporary, format="svg", metadata={"Date": None})


def _figure(table: Table, columns: int, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 3.5 * columns, height), layout="constrained")
    figure.suptitle(CASES[table.case] + (", SAMPLED METRICS" if table.condition.negatives else ""), fontsize="medium")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _metrics(table: Table) -> Any:
    """Draw a panel per metric and a row per model: mean and 95% interval over users."""
    rows = table.measured[::-1]
    figure, axes = _figure(table, len(table.metrics), 1.2 + 0.3 * len(rows))
    for number, (axis, metric) in enumerate(zip(axes, table.metrics, strict=True)):
        for place, row in enumerate(rows):
            mean = row.means[metric]
            ends = row.estimates.get(metric)
            error = [[mean - ends.low], [ends.high - mean]] if ends else None
            axis.errorbar(mean, place, xerr=error, fmt="o", color="tab:gray" if row.is_baseline else "tab:blue", capsize=3)
        axis.set_yticks(range(len(rows)), [row.title for row in rows] if not number else [""] * len(rows))
        axis.set_xlabel(table.label(metric))
        axis.grid(axis="x", alpha=0.3)
    return figure


def _costs(table: Table) -> Any:
    """Plot the first metric against training seconds, and against milliseconds per user."""
    metric = table.metrics[0]
    figure, axes = _figure(table, len(COSTS), 3.2)
    for axis, (name, label) in zip(axes, COSTS.items(), strict=True):
        for row in table.measured:
            cost = row.resources[name]
            if cost is not None:
                point = (max(cost, LEAST_COST), row.means[metric])
                axis.plot(*point, "o", color="tab:gray" if row.is_baseline else "tab:blue")
                axis.annotate(row.title, point, fontsize=7, xytext=(3, 3), textcoords="offset points")
        axis.set_xscale("log")
        axis.margins(x=0.25, y=0.15)
        axis.set_xlabel(label)
        axis.set_ylabel(table.label(metric))
        axis.grid(alpha=0.3)
    return figure


def _slice(table: Table, name: str) -> Any:
    """Plot the first metric in each bin, a line per model."""
    figure, (axis,) = _figure(table, 1, 3.6)
    for number, row in enumerate(table.measured):
        parts = row.slices[name]
        means = [part.mean for part in parts.values()]
        error = [[part.mean - part.low for part in parts.values()], [part.high - part.mean for part in parts.values()]]
        shift = 0.4 * (number / max(len(table.measured) - 1, 1) - 0.5)
        axis.errorbar([place + shift for place in range(len(parts))], means, yerr=error, fmt="o-", label=row.title, capsize=2)
    axis.set_xticks(range(len(table.measured[0].slices[name])), list(table.measured[0].slices[name]))
    axis.set_xlabel(SLICES[name].partition(" (")[0])
    axis.set_ylabel(table.metrics[0])
    axis.legend(fontsize=7)
    axis.grid(axis="y", alpha=0.3)
    return figure
