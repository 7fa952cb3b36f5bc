"""iALS: matrix factorization by weighted least squares (Hu, Koren and Volinsky, ICDM 2008) with the package `implicit`."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from modeling_cllm4rec.baselines.early_stopping import check_above_zero, check_counts
from modeling_cllm4rec.baselines.registry import BASELINES, baseline
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.interaction_matrix import FitOn, fitting_histories, interaction_matrix


@baseline(
    "ials",
    title="iALS",
    summary="matrix factorization by weighted least squares",
    space={
        "factors": {"choice": [32, 64, 128, 256]},
        "regularization": {"log_uniform": [0.1, 300.0]},
        "alpha": {"log_uniform": [1.0, 100.0]},
        "iterations": {"choice": [10, 15, 25]},
    },
    packages=("implicit", "threadpoolctl"),
    extra="baselines",
    order=5,
)
class IALSRecommender:
    """Scores items by the product of their factors with the factors of the history, which are solved for at scoring time.

    No user factors are stored, so users without training interactions are scored in the same way.

    Args:
        item_factors: (J, K) float32.
        alpha: weight of an interaction; a missing interaction has the weight 1.
        regularization: of the history's factors.
    """

    def __init__(self, item_factors: npt.NDArray[np.float32], alpha: float, regularization: float) -> None:
        self.item_factors, self.alpha, self.regularization = item_factors, alpha, regularization
        self.num_items = len(item_factors)
        self._solver = _solver(factors=item_factors.shape[1], alpha=alpha, regularization=regularization)
        self._solver.item_factors = item_factors

    @classmethod
    def fit(
        cls,
        data: RecommendationData,
        *,
        seed: int = 0,
        factors: int = 64,
        regularization: float = 10.0,
        alpha: float = 10.0,
        iterations: int = 15,
        fit_on: FitOn = "train",
        progress: bool = True,
    ) -> Self:
        """Solve for users and items in turn.

        Args:
            data: the data folder.
            seed: start of the random factors.
            factors: number of factors, K.
            regularization: weight of the squared factors.
            alpha: weight of an interaction; a missing interaction has the weight 1.
            iterations: number of passes over users and items.
            fit_on: the splits that are fitted.
            progress: show a progress bar.

        Raises:
            InputError: a setting is out of its range.
            MissingPackageError: the package `implicit` is not installed.
        """
        check_counts(factors=factors, iterations=iterations)
        check_above_zero(regularization=regularization, alpha=alpha)
        solver = _solver(factors=factors, alpha=alpha, regularization=regularization, iterations=iterations, random_state=seed)
        matrix = interaction_matrix(fitting_histories(data, fit_on), data.num_items)
        solver.fit(sparse.csr_matrix(matrix), show_progress=progress)
        return cls(np.asarray(solver.item_factors), alpha, regularization)

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) products, one row per history."""
        matrix = interaction_matrix(histories, self.num_items)
        factors = self._solver.recalculate_user(np.arange(matrix.shape[0]), sparse.csr_matrix(matrix))  # (batch, K)
        scores: npt.NDArray[np.float32] = np.atleast_2d(factors) @ self.item_factors.T
        return scores


def _solver(**settings: Any) -> Any:
    """Build the model of `implicit`."""
    BASELINES["ials"].check_packages()
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # implicit has its own threads and warns if those of BLAS are added to them
        return AlternatingLeastSquares(**settings)
