"""An approximate nearest-neighbour index of item vectors (usearch), and its recall."""

from __future__ import annotations

import time
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.core.top_items import top_items

INDEX_FILE = "items.usearch"
"""File of the approximate index in an export of vectors."""
Metric = Literal["ip", "cos"]
"""Similarity of the index: inner product, or cosine."""
CONNECTIVITY, EFFORT_ADDING, EFFORT_SEARCHING = 32, 256, 256
"""Neighbours per vector in the graph, and vectors visited when adding and searching. The dot product is not a metric, so the
graph needs larger values than usearch's defaults (16, 128, 64)."""


class Recall(NamedTuple):
    """Recall and latency of an index.

    Attributes:
        recall: mean share of the exact k best items among the k that the index finds, in [0, 1].
        k: length of the lists.
        queries: number of queries.
        exact_ms, approximate_ms: milliseconds per query, all queries in one batch.
    """

    recall: float
    k: int
    queries: int
    exact_ms: float
    approximate_ms: float


def build_index(vectors: np.ndarray, metric: Metric = "ip") -> Any:
    """Return a `usearch.index.Index` over (J, K) vectors; key j is item_index j.

    Args:
        metric: `"ip"` for the dot product, `"cos"` for the cosine.

    Raises:
        MissingPackageError: usearch is not installed.

    Example:
        >>> index = build_index(np.eye(3, dtype=np.float32))  # doctest: +SKIP
    """
    require("usearch", "vectors", "an index of vectors")
    from usearch.index import Index

    index = Index(
        ndim=vectors.shape[1],
        metric=metric,
        dtype="f32",
        connectivity=CONNECTIVITY,
        expansion_add=EFFORT_ADDING,
        expansion_search=EFFORT_SEARCHING,
    )
    index.add(np.arange(len(vectors)), vectors, threads=1)  # with one thread the graph is deterministic
    return index


def measure_recall(index: Any, vectors: np.ndarray, queries: np.ndarray, k: int) -> Recall:
    """Compare the index with the exact k best items by dot product.

    Args:
        index: of `build_index`.
        vectors: (J, K) of all items; queries: (queries, K); both of length 1 for an index by cosine.
        k: length of the lists, at most J.
    """
    started = time.perf_counter()
    exact = top_items(torch.from_numpy(queries) @ torch.from_numpy(vectors).T, k)[0].numpy()
    halfway = time.perf_counter()
    found = np.asarray(index.search(queries, k, threads=1).keys).reshape(len(queries), -1)
    ended = time.perf_counter()
    return Recall(
        recall=recall_of(exact, found),
        k=k,
        queries=len(queries),
        exact_ms=1000 * (halfway - started) / len(queries),
        approximate_ms=1000 * (ended - halfway) / len(queries),
    )


def recall_of(exact: np.ndarray, found: np.ndarray) -> float:
    """Return the mean share of each row of (queries, k) `exact` that is in the same row of `found`.

    Example:
        >>> recall_of(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [4, 3]]))
        0.75
    """
    hits = (exact[:, :, None] == found[:, None, :]).any(2)
    return float(hits.mean())


__all__ = ["INDEX_FILE", "Metric", "Recall", "build_index", "measure_recall", "recall_of"]
