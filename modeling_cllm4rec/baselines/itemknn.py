"""Item-based nearest neighbours: items that share users are similar (Sarwar et al., WWW 2001)."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from modeling_cllm4rec.baselines.registry import baseline
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.interaction_matrix import FitOn, ItemWeights, fitting_histories, interaction_matrix


@baseline(
    "itemknn",
    title="item-kNN",
    summary="nearest neighbours of items by cosine",
    deterministic=True,
    space={"shrink": {"log_uniform": [0.5, 200.0]}, "neighbours": {"choice": [20, 50, 100, 200, 500, None]}},
    order=2,
)
class ItemKNNRecommender:
    """Scores an item by the sum of its similarities to the items of the history.

    Args:
        similarities: (J, J) sparse float32; entry (i, j) is added to the score of item j for item i of a history.
    """

    def __init__(self, similarities: sparse.csr_array) -> None:
        self.similarities = similarities
        self.num_items = int(similarities.shape[0])

    @classmethod
    def fit(
        cls,
        data: RecommendationData,
        *,
        seed: int = 0,
        shrink: float = 20.0,
        neighbours: int | None = None,
        fit_on: FitOn = "train",
    ) -> Self:
        """Compute the similarities of all pairs of items that share users.

        The similarity of two items with n_i and n_j users, c of them shared, is c / (sqrt(n_i n_j) + shrink).

        Args:
            data: the data folder.
            seed: unused, because nothing is random.
            shrink: added to the denominator, so that similarities from few users become smaller.
            neighbours: number of most similar items that add to the score of an item (of equally similar ones those with
                the lower index); None keeps all.
            fit_on: the splits that are fitted.

        Raises:
            InputError: a setting is out of its range.
        """
        if not shrink >= 0:
            raise InputError(f"shrink is {shrink}; it must be 0 or more")
        if neighbours is not None and neighbours < 1:
            raise InputError(f"neighbours is {neighbours}; it must be 1 or more, or None for all")
        matrix = interaction_matrix(fitting_histories(data, fit_on), data.num_items).astype(np.float64)
        similarities = sparse.coo_array(matrix.T @ matrix)  # (J, J) shared users
        norms = np.sqrt(similarities.diagonal())
        other = similarities.row != similarities.col
        rows, columns, shared = similarities.row[other], similarities.col[other], similarities.data[other]
        values = shared / (norms[rows] * norms[columns] + shrink)
        if neighbours is not None:
            order = np.lexsort((rows, -values, columns))
            first = np.searchsorted(columns[order], np.arange(data.num_items))
            kept = order[np.arange(len(order)) - first[columns[order]] < neighbours]
            rows, columns, values = rows[kept], columns[kept], values[kept]
        return cls(sparse.csr_array((values.astype(np.float32), (rows, columns)), shape=similarities.shape))

    @property
    def item_weights(self) -> ItemWeights:
        """The model as a matrix of items by items."""
        return ItemWeights(self.similarities)

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) sums of similarities, one row per history."""
        return (interaction_matrix(histories, self.num_items) @ self.similarities).toarray()
