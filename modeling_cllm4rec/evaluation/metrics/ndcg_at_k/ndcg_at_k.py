"""NDCG@k as a module of the `evaluate` library: `evaluate.load(metric_path("ndcg_at_k"))`."""

from __future__ import annotations

from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.metrics import base


class NDCGAtK(base.PerUserMetric):
    """Discounted cumulative gain of the first k (binary, 1 / log2(rank + 1)) over that of an ideal ranking."""

    metric = "ndcg_at_k"
    about = "Discounted cumulative gain of the first k (binary, 1 / log2(rank + 1)) over that of an ideal ranking."
    example = 0.3065735963827292

    def per_user(self, hit: ranking.BoolArray, sizes: ranking.IntArray, k: int) -> ranking.FloatArray:
        """Return the (users,) values of (users, K) hits and (users,) numbers of true items."""
        return ranking.ndcg_at_k(hit, sizes, k)
