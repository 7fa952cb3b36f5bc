"""EASE: a linear model of items from items in closed form (Steck, WWW 2019, arXiv 1905.03375)."""

from __future__ import annotations

from typing import Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from modeling_cllm4rec.baselines.registry import baseline
from modeling_cllm4rec.core.errors import InputError, MemoryLimitError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.history_order import warn_if_unordered
from modeling_cllm4rec.corpora.interaction_matrix import FitOn, ItemWeights, fitting_histories, interaction_matrix

Precision = Literal["float64", "float32"]
BLOCK = 1024
"""Rows of a large matrix that are copied together."""


@baseline(
    "ease",
    title="EASE",
    summary="linear model of items from items",
    deterministic=True,
    space={"regularization": {"log_uniform": [1.0, 3000.0]}},
    order=3,
)
@baseline(
    "ease-recency",
    title="EASE, recency",
    summary="EASE, late items of a history count more",
    deterministic=True,
    space={"regularization": {"log_uniform": [1.0, 3000.0]}},
    fixed={"recency": 0.5},
    order=4,
)
class EASERecommender:
    """Scores items by a linear map of the history.

    Args:
        weights: (J, J) float32 with zeros on the diagonal; entry (i, j) is added to the score of item j for item i of a history.
        recency: 0 gives all items of a history the same weight; r > 0 gives the item t steps before the last one the weight
            (1 + t) ** -r, which helps if the order of the history is informative.

    >>> recommender = EASERecommender(np.array([[0.0, 0.5], [0.2, 0.0]], dtype=np.float32))
    >>> recommender.score_histories(None, Histories(np.array([0, 1]), np.array([0], dtype=np.int32))).tolist()
    [[0.0, 0.5]]
    """

    def __init__(self, weights: npt.NDArray[np.float32], recency: float = 0.0) -> None:
        if not recency >= 0:
            raise InputError(f"recency is {recency}; it must be 0 (equal weights) or more")
        self.weights = weights
        self.recency = recency
        self.num_items = len(weights)

    @classmethod
    def fit(
        cls,
        data: RecommendationData,
        *,
        seed: int = 0,
        regularization: float = 100.0,
        recency: float = 0.0,
        fit_on: FitOn = "train",
        precision: Precision = "float64",
        max_memory_gib: float = 16.0,
    ) -> Self:
        """Solve for the weights: P = (X'X + regularization I)^-1, weights = -P / diag(P) by columns (eq. 8 of the paper).

        Args:
            data: the data folder.
            seed: unused, because nothing is random.
            regularization: the paper's lambda, above 0.
            recency: weights of a history's items when it is scored; see the class.
            fit_on: the splits that are fitted.
            precision: of the inverse; `"float32"` takes half the time and a third of the memory.
            max_memory_gib: limit for the matrices in GiB; larger catalogues are refused.

        Raises:
            InputError: a setting is out of its range.
            MemoryLimitError: the (J, J) matrices are larger than `max_memory_gib`.

        Warns:
            UnorderedHistoriesWarning: `recency` reads the order of histories, which means nothing in this data.
        """
        if not regularization > 0:
            raise InputError(f"regularization is {regularization}; it must be above 0")
        if precision not in get_args(Precision):
            raise InputError(f"precision is {precision!r}; allowed are {' and '.join(map(repr, get_args(Precision)))}")
        _check_memory(data.num_items, precision, max_memory_gib)
        if recency > 0:
            warn_if_unordered(data, f"EASE reads it with recency={recency}; recency=0 weighs the whole history alike")
        matrix = interaction_matrix(fitting_histories(data, fit_on), data.num_items).astype(precision)
        gram = (matrix.T @ matrix).toarray(order="F")  # (J, J)
        diagonal = np.arange(data.num_items)
        gram[diagonal, diagonal] += regularization
        # The inverse is symmetric, so the transpose only changes the memory order: products with sparse rows need row order.
        inverse = _invert(gram).T
        inverse /= -inverse.diagonal()  # divides the columns
        inverse[diagonal, diagonal] = 0
        return cls(np.asarray(inverse, dtype=np.float32), recency)

    @property
    def item_weights(self) -> ItemWeights:
        """The model as a matrix of items by items."""
        return ItemWeights(self.weights, self.recency)

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) weighted sums, one row per history."""
        return interaction_matrix(histories, self.num_items, self.recency) @ self.weights


def memory_gib(num_items: int, precision: Precision) -> float:
    """Return the peak memory of the (J, J) matrices in GiB.

    >>> round(memory_gib(100_000, "float64")), round(memory_gib(100_000, "float32"))
    (112, 37)
    """
    bytes_each = 4 if precision == "float32" else 8 + 4  # the inverse and its copy in 32 bits
    return num_items**2 * bytes_each / 2**30


def _check_memory(num_items: int, precision: Precision, limit: float) -> None:
    needed = memory_gib(num_items, precision)
    if needed <= limit:
        return
    hint = f"raise max_memory_gib to {needed:.0f} if the machine has it"
    if precision == "float64":
        hint += f", set precision='float32' ({memory_gib(num_items, 'float32'):.1f} GiB)"
    raise MemoryLimitError(
        f"EASE over {num_items} items needs {needed:.1f} GiB for its {precision} matrices, and max_memory_gib is {limit}; "
        f"{hint}, or choose a baseline without a dense (items, items) matrix, such as itemknn or ials"
    )


def _invert(matrix: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Invert a symmetric positive definite matrix in place (column order)."""
    factorize, invert = lapack.get_lapack_funcs(("potrf", "potri"), (matrix,))
    factor, failed = factorize(matrix, lower=True, overwrite_a=True, clean=False)
    if failed:
        raise InputError("regularization is too small: X'X + regularization I is singular in this precision; raise it")
    inverse, _ = invert(factor, lower=True, overwrite_c=True)
    for start in range(0, len(inverse), BLOCK):  # LAPACK fills the lower half only; by blocks, a whole copy would not fit
        end = min(start + BLOCK, len(inverse))
        square = inverse[start:end, start:end]
        inverse[start:end, start:end] = np.tril(square) + np.tril(square, -1).T
        inverse[start:end, end:] = inverse[end:, start:end].T
    return inverse
