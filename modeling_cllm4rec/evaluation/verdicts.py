"""Differences of two recommenders on the same users, with intervals and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.evaluation.intervals import paired_difference_interval
from modeling_cllm4rec.evaluation.report import BaselineResult, EvaluationReport

FloatArray = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over users and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    users: int


def paired_difference(ours: FloatArray, theirs: FloatArray, n_resamples: int = 1000) -> Estimate:
    """Return the mean difference of two recommenders on the same users, with its 95% bootstrap interval.

    Args:
        ours, theirs: (users,) values of a metric, in the same order of users; or (seeds, users), see `intervals`.
        n_resamples: resamples of the bootstrap.

    >>> paired_difference(np.array([0.5, 1.0]), np.array([0.25, 0.75]))
    Estimate(mean=0.25, low=0.25, high=0.25, users=2)
    """
    interval = paired_difference_interval(ours, theirs, n_resamples=n_resamples)
    return Estimate(float(np.mean(ours, dtype=np.float64) - np.mean(theirs, dtype=np.float64)), *interval, np.shape(ours)[-1])


def verdict(name: str, reference: str, difference: Estimate, metric: str) -> str:
    """Return whether a model is above or below another by the interval of their difference, in words.

    >>> verdict("CLLM4Rec", "EASE", Estimate(0.0102, 0.0031, 0.0174, 100), "recall@20")
    'CLLM4Rec is above EASE by .0102 (95% interval .0031 to .0174) on recall@20.'
    >>> verdict("CLLM4Rec", "EASE", Estimate(-0.01, -0.02, 0.001, 100), "ndcg@10")
    'CLLM4Rec and EASE do not differ significantly on ndcg@10: the difference is -.0100 (95% interval -.0200 to .0010).'
    """
    mean, low, high = difference[:3]
    if low > 0:
        return f"{name} is above {reference} by {short(mean)} (95% interval {short(low)} to {short(high)}) on {metric}."
    if high < 0:
        return f"{name} is below {reference} by {short(-mean)} (95% interval {short(-high)} to {short(-low)}) on {metric}."
    return (
        f"{name} and {reference} do not differ significantly on {metric}: the difference is {short(mean)} "
        f"(95% interval {short(low)} to {short(high)})."
    )


def compare(reports: Mapping[str, EvaluationReport], name: str) -> EvaluationReport:
    """Put the results of all others, measured on the same users, into the report of one recommender, and return it.

    Args:
        reports: name of a recommender -> its report, with values of the same users.
        name: the recommender that is judged.

    Returns:
        Its report, with `baselines`. Metrics without a value per user, such as coverage, have no difference.

    Raises:
        InputError: two reports are of different users.
    """
    ours = reports[name]
    for reference, theirs in reports.items():
        if reference == name:
            continue
        if not np.array_equal(ours.user_indices, theirs.user_indices):
            raise InputError(f"{name} and {reference} were measured on different users; evaluate both on the same ones")
        differences = {
            metric: paired_difference(values, theirs.per_user[metric])
            for metric, values in ours.per_user.items()
            if metric in theirs.per_user
        }
        ends = {metric: (found.mean, found.low, found.high) for metric, found in differences.items()}
        ours.baselines[reference] = BaselineResult(dict(theirs.metrics), dict(theirs.intervals), ends)
    return ours


def verdicts(report: EvaluationReport, name: str) -> list[str]:
    """Compare a recommender with its baselines, metric by metric; return the sentence of `verdict` for each.

    Args:
        report: its report, with `baselines`.
        name: its name.
    """
    return [
        verdict(name, reference, Estimate(*difference, report.users), metric)
        for reference, one in report.baselines.items()
        for metric, difference in one.differences.items()
    ]


def plain_sentence(baselines: Mapping[str, BaselineResult]) -> str:
    """Return in one sentence where a model is below, above or not significantly different from baselines; empty without any.

    >>> popularity = BaselineResult({}, {}, {"recall@20": (-0.1, -0.2, -0.05), "ndcg@10": (0.1, -0.1, 0.2)})
    >>> plain_sentence({"popularity": popularity})
    'This model is below popularity on recall@20; not significantly different from popularity on ndcg@10.'
    """
    relations: dict[str, list[str]] = {"below": [], "above": [], "not significantly different from": []}
    for name, one in baselines.items():
        found: dict[str, list[str]] = {relation: [] for relation in relations}
        for metric, (_, low, high) in one.differences.items():
            found["below" if high < 0 else "above" if low > 0 else "not significantly different from"].append(metric)
        for relation, metrics in found.items():
            if metrics:
                relations[relation].append(f"{name} on {_listed(metrics)}")
    parts = [f"{relation} {_listed(places)}" for relation, places in relations.items() if places]
    return f"This model is {'; '.join(parts)}." if parts else ""


def _listed(words: list[str]) -> str:
    """Return words joined by commas, and the last one by "and"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def short(value: float) -> str:
    """Format a number with four digits and no leading zero; a number that rounds to zero has no sign.

    >>> short(0.187), short(-0.0012), short(1.0), short(-1e-5)
    ('.1870', '-.0012', '1.0000', '.0000')
    """
    text = f"{round(value, 4) + 0.0:.4f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and text.lstrip("-").startswith("0.") else text
