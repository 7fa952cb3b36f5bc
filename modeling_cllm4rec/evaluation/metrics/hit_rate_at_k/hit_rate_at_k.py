"""Hit rate@k as a module of the `evaluate` library: `evaluate.load(metric_path("hit_rate_at_k"))`."""

from __future__ import annotations

from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.metrics import base


class HitRateAtK(base.PerUserMetric):
    """Share of users with a true item among the first k."""

    metric = "hit_rate_at_k"
    about = "Share of users with a true item among the first k."
    example = 1.0

    def per_user(self, hit: ranking.BoolArray, sizes: ranking.IntArray, k: int) -> ranking.FloatArray:
        """Return the (users,) values of (users, K) hits and (users,) numbers of true items."""
        return ranking.hit_rate_at_k(hit, sizes, k)
