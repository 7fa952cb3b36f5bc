"""The base class of the metrics of single users as modules of the `evaluate` library."""

from __future__ import annotations

from typing import ClassVar

import datasets
import evaluate

from modeling_cllm4rec.evaluation.ranking import (
    BoolArray,
    FloatArray,
    IntArray,
    histories_from_lists,
    hits,
    mean_over_users,
    ranked_from_lists,
    truth_sizes,
)

ITEM_LISTS = datasets.Sequence(datasets.Value("int64"))
INPUTS = """
Args:
    predictions: for each user the ranked item indices, best first (-1 may pad the end of a list).
    references: for each user the true item indices.
    k: length of the ranked lists that is evaluated, at least 1 and at most the length of the longest list.
Returns:
    {metric}: mean over users, in [0, 1]. Users without a true item are excluded and counted in a warning.
Examples:
    >>> metric = evaluate.load(metric_path("{metric}"))
    >>> metric.compute(predictions=[[4, 2, 7]], references=[[7, 9]], k=3)
    {{'{metric}': {example}}}
"""


class PerUserMetric(evaluate.Metric):
    """A metric with one value per user; the result is the mean over users.

    `evaluate.load` takes the first `evaluate.Metric` in the namespace of a metric's file. That file must therefore import this
    module and not this class.

    Attributes:
        metric: name of the result.
        about: one sentence that defines the metric.
        example: result of the example in the documentation.
    """

    metric: ClassVar[str]
    about: ClassVar[str]
    example: ClassVar[float]

    def per_user(self, hit: BoolArray, sizes: IntArray, k: int) -> FloatArray:
        """Return the (users,) values of (users, K) hits and (users,) numbers of true items."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.about,
            citation="",
            inputs_description=INPUTS.format(metric=self.metric, example=self.example),
            features=datasets.Features({"predictions": ITEM_LISTS, "references": ITEM_LISTS}),
        )

    def _compute(self, predictions: list[list[int]], references: list[list[int]], k: int) -> dict[str, float]:
        truth = histories_from_lists(references)
        hit = hits(ranked_from_lists(predictions), truth)
        return {self.metric: mean_over_users(self.per_user(hit, truth_sizes(truth), k))}
