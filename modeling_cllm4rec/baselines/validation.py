"""What early stopping and the search for settings both go by."""

from __future__ import annotations

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender, evaluate


def validate(recommender: Recommender, data: RecommendationData, metric: str, max_users: int | None = None) -> float:
    """Return the metric to maximize on validation, with train histories as inputs.

    Args:
        recommender: scores histories.
        data: the data folder.
        metric: such as `recall@20`; of several joined by + the sum.
        max_users: evaluate on a fixed random sample of so many users; None takes all.

    Raises:
        InputError: a metric that does not exist, or nobody has a validation item.
    """
    names = metric.split("+")
    report = evaluate(recommender, data, "validation", metrics=names, progress=False, n_resamples=0, max_users=max_users)
    return sum(report.metrics[name] for name in names)
