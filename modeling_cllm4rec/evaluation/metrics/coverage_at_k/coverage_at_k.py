"""Coverage@k as a module of the `evaluate` library: `evaluate.load(metric_path("coverage_at_k"))`."""

from __future__ import annotations

import datasets
import evaluate

from modeling_cllm4rec.evaluation.ranking import coverage_at_k, ranked_from_lists

_DESCRIPTION = """\
Share of the catalogue that is among the first k of at least one user. It needs no references.
"""

_INPUTS = """
Args:
    predictions: for each user the ranked item indices, best first (-1 may pad the end of a list).
    k: length of the ranked lists that is evaluated, at least 1 and at most the length of the longest list.
    num_items: size of the catalogue.
Returns:
    coverage_at_k: in [0, 1].
Examples:
    >>> metric = evaluate.load(metric_path("coverage_at_k"))
    >>> metric.compute(predictions=[[0, 1], [1, 2]], k=2, num_items=4)
    {'coverage_at_k': 0.75}
"""


class CoverageAtK(evaluate.Metric):
    """Share of the catalogue that is among the first k of at least one user."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
        )

    def _compute(self, predictions: list[list[int]], k: int, num_items: int) -> dict[str, float]:
        return {"coverage_at_k": coverage_at_k(ranked_from_lists(predictions), num_items, k)}
