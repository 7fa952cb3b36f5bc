"""MRR@k as a module of the `evaluate` library: `evaluate.load(metric_path("mrr_at_k"))`."""

from __future__ import annotations

import datasets
import evaluate

from modeling_cllm4rec.evaluation.ranking import (
    histories_from_lists,
    hits,
    mean_over_users,
    mrr_at_k,
    ranked_from_lists,
    truth_sizes,
)

_DESCRIPTION = """\
Mean reciprocal rank of the first true item; 0 for a user who has none among the first k.
Users without a true item are left out of the mean and counted in a warning.
"""

_INPUTS = """
Args:
    predictions: for each user the ranked item indices, best first (-1 may fill the end of a list).
    references: for each user the true item indices.
    k: how many of the first items count, at least 1 and at most the length of the longest list.
Returns:
    mrr_at_k: mean over users, in [0, 1].
Examples:
    >>> metric = evaluate.load(metric_path("mrr_at_k"))
    >>> metric.compute(predictions=[[4, 2, 7]], references=[[7, 9]], k=3)
    {'mrr_at_k': 0.3333333333333333}
"""


class MRRAtK(evaluate.Metric):
    """Mean reciprocal rank of the first true item; 0 for a user who has none among the first k."""

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
        return {"mrr_at_k": mean_over_users(mrr_at_k(hit, truth_sizes(truth), k))}
