"""Hit rate@k as a module of the `evaluate` library: `evaluate.load(metric_path("hit_rate_at_k"))`."""

from __future__ import annotations

import datasets
import evaluate

from modeling_cllm4rec.evaluation.ranking import (
    histories_from_lists,
    hit_rate_at_k,
    hits,
    mean_over_users,
    ranked_from_lists,
    truth_sizes,
)

_DESCRIPTION = """\
Share of users with a true item among the first k.
Users without a true item are left out of the mean and counted in a warning.
"""

_INPUTS = """
Args:
    predictions: for each user the ranked item indices, best first (-1 may fill the end of a list).
    references: for each user the true item indices.
    k: how many of the first items count, at least 1 and at most the length of the longest list.
Returns:
    hit_rate_at_k: mean over users, in [0, 1].
Examples:
    >>> metric = evaluate.load(metric_path("hit_rate_at_k"))
    >>> metric.compute(predictions=[[4, 2, 7]], references=[[7, 9]], k=3)
    {'hit_rate_at_k': 1.0}
"""


class HitRateAtK(evaluate.Metric):
    """Share of users with a true item among the first k."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("int64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions: list[list[int]], references: list[list[int]], k: int) -> dict[str, float]:
        truth = histories_from_lists(references)
        hit = hits(ranked_from_lists(predictions), truth)
        return {"hit_rate_at_k": mean_over_users(hit_rate_at_k(hit, truth_sizes(truth), k))}
