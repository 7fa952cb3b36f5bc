"""MRR@k as a module of the `evaluate` library: `evaluate.load(metric_path("mrr_at_k"))`."""

from __future__ import annotations

from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.metrics import base


class MRRAtK(base.PerUserMetric):
    """Mean reciprocal rank of the first true item; 0 for users without a true item among the first k."""

    metric = "mrr_at_k"
    about = "Mean reciprocal rank of the first true item; 0 for users without a true item among the first k."
    example = 0.3333333333333333

    def per_user(self, hit: ranking.BoolArray, sizes: ranking.IntArray, k: int) -> ranking.FloatArray:
        """Return the (users,) values of (users, K) hits and (users,) numbers of true items."""
        return ranking.mrr_at_k(hit, sizes, k)
