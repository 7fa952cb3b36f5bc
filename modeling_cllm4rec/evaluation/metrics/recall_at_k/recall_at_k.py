"""Recall@k as a module of the `evaluate` library: `evaluate.load(metric_path("recall_at_k"))`."""

from __future__ import annotations

from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.metrics import base


class RecallAtK(base.PerUserMetric):
    """Share of a user's true items among the first k, divided by min(k, true items)."""

    metric = "recall_at_k"
    about = "Share of a user's true items among the first k, divided by min(k, true items)."
    example = 0.5

    def per_user(self, hit: ranking.BoolArray, sizes: ranking.IntArray, k: int) -> ranking.FloatArray:
        """Return the (users,) values of (users, K) hits and (users,) numbers of true items."""
        return ranking.recall_at_k(hit, sizes, k)
