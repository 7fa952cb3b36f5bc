"""The validation metric that early stopping and tuning maximize."""

from __future__ import annotations

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender, Searcher, evaluate


def validate(recommender: Recommender | Searcher, data: RecommendationData, metric: str, max_users: int | None = None) -> float:
    """Return the metric to maximize on validation, with train histories as inputs.

    Args:
        recommender: the recommender to validate.
        data: the data folder.
        metric: metric such as `recall@20`; several joined by + are added.
        max_users: size of a fixed random sample of users to evaluate; None evaluates all users.

    Raises:
        InputError: there is no such metric, or no user has a validation item.
    """
    names = metric.split("+")
    report = evaluate(recommender, data, "validation", metrics=names, progress=False, n_resamples=0, max_users=max_users)
    return sum(report.metrics[name] for name in names)
