"""A model next to the baselines of the same evaluation as one picture: means and 95% intervals over users."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_cllm4rec.core.errors import InputError, MissingPackageError
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.core.saved_folder import COMPARISON_FILE
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.evaluation.report import EvaluationReport

logger = logging.getLogger(__name__)

MOST_PANELS = 5
"""Metrics in the picture, the first ones of the report."""


def plot_comparison(path: str | Path, name: str, report: EvaluationReport) -> Path:
    """Plot a panel for each of the first metrics, with a row for the model and one for each baseline.

    Args:
        path: the PNG file; an existing one is replaced.
        name: of the model.
        report: an evaluation with baselines.

    Returns:
        The path.

    Raises:
        InputError: the evaluation has no baselines.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> plot_comparison("comparison.png", "CLLM4Rec", report)  # doctest: +SKIP
        PosixPath('comparison.png')
    """
    if not report.baselines:
        raise InputError("report: this evaluation has no baselines; evaluate with `--baselines popularity ease`")
    require("matplotlib", "benchmark", COMPARISON_FILE)
    with atomic_file(Path(path)) as temporary:
        _figure(name, report).savefig(temporary, format="png", dpi=110)
    return Path(path)


def keep_comparison(folder: Path, name: str, reports: Sequence[EvaluationReport]) -> Path | None:
    """Call `plot_comparison` if possible; else delete an earlier picture, which shows other numbers than the card.

    Args:
        folder: of the run; name: of the model.
        reports: the first one with baselines is drawn.
    """
    (folder / COMPARISON_FILE).unlink(missing_ok=True)
    measured = next((report for report in reports if report.baselines), None)
    if measured is None:
        return None
    try:
        return plot_comparison(folder / COMPARISON_FILE, name, measured)
    except MissingPackageError as error:
        logger.info("%s", error)
        return None


def _figure(name: str, report: EvaluationReport) -> Any:
    from matplotlib.figure import Figure

    metrics = list(report.metrics)[:MOST_PANELS]
    rows = [(name, report.metrics, report.intervals), *((one, of.metrics, of.intervals) for one, of in report.baselines.items())]
    figure = Figure(figsize=(1.5 + 2.6 * len(metrics), 1.1 + 0.35 * len(rows)), layout="constrained")
    figure.suptitle(f"{report.protocol.split}, {report.users} users", fontsize="medium")
    for number, (axis, metric) in enumerate(zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True)):
        for place, (_, means, intervals) in enumerate(rows):
            low, high = intervals.get(metric, (means[metric], means[metric]))
            error = [[means[metric] - low], [high - means[metric]]]
            axis.errorbar(means[metric], place, xerr=error, fmt="o", color="tab:gray" if place else "tab:blue", capsize=3)
        axis.set_yticks(range(len(rows)), [row[0] for row in rows] if not number else [""] * len(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)  # the model on top
        axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel(metric)
        axis.grid(axis="x", alpha=0.3)
    return figure


__all__ = ["keep_comparison", "plot_comparison"]
