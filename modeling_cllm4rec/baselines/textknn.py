"""Nearest neighbours by item text alone, also for items without interactions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from modeling_cllm4rec.baselines.registry import baseline
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.history_order import is_ordered, warn_if_unordered
from modeling_cllm4rec.corpora.interaction_matrix import ItemWeights, interaction_matrix
from modeling_cllm4rec.corpora.text_vectors import TFIDF, TextVectors, text_vectors, unit_rows

if TYPE_CHECKING:
    from modeling_cllm4rec.corpora.item_embeddings import Pooling

BLOCK = 1024
"""Items whose similarities to all items are in memory together."""
NEIGHBOURS = {"choice": [20, 50, 100, 200, None]}


@baseline(
    "textknn",
    title="text-kNN",
    summary="nearest neighbours of items by their texts",
    deterministic=True,
    space={"neighbours": NEIGHBOURS},
    order=9,
)
@baseline(
    "textknn-last",
    title="text-kNN, last item",
    summary="text-kNN, from the last item of a history alone",
    deterministic=True,
    space={"neighbours": NEIGHBOURS},
    fixed={"max_history": 1},
    unused=("recency",),
    order=10,
)
class TextKNNRecommender:
    """Scores an item by the sum of the cosines between its text and those of the history, weighted by place in the history.

    An item counts only if its text is among the `neighbours` nearest to that of the history's item. The history's item itself
    is none of them. An item without text has no neighbours and is none: its score is 0, and a history of such items scores 0.

    Args:
        vectors: (J, d) text vectors, sparse or dense, of any length; zeros for an item without text.
        neighbours: nearest items of each item (of equally near ones those with the lower index); None keeps all.
        recency: 0 gives all items of a history the same weight; r > 0 gives the item t steps before the last one the weight
            (1 + t) ** -r.
        max_history: number of last items of a history that count; None for all.

    >>> recommender = TextKNNRecommender(np.array([[2.0, 0.0], [0.0, 5.0], [7.0, 0.0]]), neighbours=1)
    >>> recommender.score_histories(None, Histories(np.array([0, 1]), np.array([0], dtype=np.int32))).tolist()
    [[0.0, 0.0, 1.0]]
    """

    def __init__(
        self, vectors: TextVectors, neighbours: int | None = 50, recency: float = 0.0, max_history: int | None = None
    ) -> None:
        if np.ndim(vectors) != 2 or not min(np.shape(vectors)):
            raise InputError(f"vectors must be a non-empty (items, dimensions) array, got shape {np.shape(vectors)}")
        for name, value in (("neighbours", neighbours), ("max_history", max_history)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more, or None for all")
        if not recency >= 0:
            raise InputError(f"recency is {recency}; it must be 0 (equal weights) or more")
        self.num_items = int(vectors.shape[0])
        self.recency, self.max_history = recency, max_history
        self._vectors = unit_rows(vectors)
        # All cosines of a large catalogue do not fit in memory; without pruning they are products of vectors at scoring time.
        self.similarities = None if neighbours is None else nearest_neighbours(self._vectors, neighbours)

    @classmethod
    def fit(
        cls,
        data: RecommendationData,
        *,
        seed: int = 0,
        encoder: str = TFIDF,
        fields: Sequence[str] | None = None,
        neighbours: int | None = 50,
        recency: float | None = None,
        max_history: int | None = None,
        pooling: Pooling = "separate",
        max_text_tokens: int | None = None,
        cache: str | Path | None = None,
        device: str = "cpu",
        progress: bool = True,
    ) -> Self:
        """Find the nearest items by text; of the interactions only reviews are used.

        Args:
            data: the data folder.
            seed: unused, because nothing is random.
            encoder, fields, pooling, max_text_tokens, cache, device, progress: see `corpora.text_vectors.text_vectors`.
            neighbours, max_history: see the class.
            recency: see the class. None is 1 where the order of histories means something, see `history_order.is_ordered`, and 0
                elsewhere.

        Raises:
            InputError: no item has a text, or a setting is out of its range.
            MissingPackageError: the encoder needs a package that is not installed.

        Warns:
            UnorderedHistoriesWarning: `recency` or `max_history` reads the order of histories, which means nothing in this data.
        """
        if recency is None:
            recency = float(is_ordered(data))
        if recency or max_history is not None:
            setting = f"max_history={max_history}" if max_history is not None else f"recency={recency}"
            warn_if_unordered(data, f"text-kNN reads it with {setting}; leave that out to weigh the whole history alike")
        vectors = text_vectors(
            data,
            encoder=encoder,
            fields=fields,
            pooling=pooling,
            max_text_tokens=max_text_tokens,
            cache=cache,
            device=device,
            progress=progress,
        )
        return cls(vectors, neighbours, recency, max_history)

    @property
    def item_weights(self) -> ItemWeights:
        """The model as a matrix of items by items.

        Raises:
            InputError: all neighbours count, so the matrix is dense.
        """
        if self.similarities is None:
            raise InputError("textknn with neighbours=None has no sparse matrix; set neighbours, such as 200")
        return ItemWeights(self.similarities, self.recency, self.max_history)

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) weighted sums of cosines, one row per history; 0 for an empty one."""
        weights = interaction_matrix(last_items(histories, self.max_history), self.num_items, self.recency)
        if self.similarities is not None:
            return (weights @ self.similarities).toarray()
        cosines = _dense((weights @ self._vectors) @ self._vectors.T)
        has_text = _dense(self._vectors.multiply(self._vectors) if sparse.issparse(self._vectors) else self._vectors**2).sum(1)
        scores: npt.NDArray[np.float32] = cosines - weights.toarray() * has_text  # without the cosine of an item to itself
        return scores


def nearest_neighbours(vectors: TextVectors, neighbours: int) -> sparse.csr_array:
    """Return the cosines of each item to its nearest other items.

    Args:
        vectors: (J, d) rows of length 1, or of zeros.
        neighbours: number of items that are kept in each row, of equal ones those with the lower index. Cosines of 0 and less
            are never kept.

    Returns:
        (J, J) float32.
    """
    rows: list[npt.NDArray[np.integer]] = []
    columns: list[npt.NDArray[np.integer]] = []
    values: list[npt.NDArray[np.floating]] = []
    transposed = vectors.T.tocsr() if sparse.issparse(vectors) else vectors.T
    num_items = vectors.shape[0]
    for start in range(0, num_items, BLOCK):
        block = _dense(vectors[start : start + BLOCK] @ transposed)
        block[np.arange(len(block)), start + np.arange(len(block))] = 0
        kept = np.argsort(-block, axis=1, kind="stable")[:, :neighbours]
        found = np.take_along_axis(block, kept, axis=1)
        row, place = np.nonzero(found > 0)
        rows.append(start + row)
        columns.append(kept[row, place])
        values.append(found[row, place])
    places = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array((np.concatenate(values).astype(np.float32), places), shape=(num_items, num_items))


def last_items(histories: Histories, count: int | None) -> Histories:
    """Return the last `count` items of each history; None returns all.

    >>> last_items(Histories(np.array([0, 3, 3]), np.array([5, 6, 7], dtype=np.int32)), 2)
    Histories(indptr=array([0, 2, 2]), items=array([6, 7], dtype=int32))
    """
    if count is None:
        return histories
    lengths = np.diff(histories.indptr)
    steps_back = np.repeat(histories.indptr[1:], lengths) - 1 - np.arange(len(histories.items))
    kept = np.minimum(lengths, count)
    return Histories(np.concatenate([[0], np.cumsum(kept)]).astype(np.int64), histories.items[steps_back < count])


def _dense(matrix: TextVectors) -> npt.NDArray[np.float32]:
    return matrix.toarray() if sparse.issparse(matrix) else matrix
