"""Hybrids: a trained language model plus linear models of items from items, with weights learned on validation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from modeling_cllm4rec import baselines
from modeling_cllm4rec.baselines.ensemble import tune_weights
from modeling_cllm4rec.baselines.tuning import Tuning
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.linear_parts import FactorPart, LinearPart, LinearParts
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.interaction_matrix import ItemWeights
from modeling_cllm4rec.evaluation.evaluator import Recommender
from modeling_cllm4rec.systems import SYSTEMS

if TYPE_CHECKING:
    from modeling_cllm4rec.core.recommender import RecommenderModel

logger = logging.getLogger(__name__)

MODEL = "model"
"""Name of the language model among the weights of a search."""
NEIGHBOURS = 500
"""Most entries of a row of a part of items from items."""


class LinearPartRecommender:
    """A part as an `evaluator.Recommender`, so that its weight is learned on the scores that the hybrid will have."""

    def __init__(self, part: LinearPart | FactorPart) -> None:
        self.part, self.num_items = part, part.num_items

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) scores, one row per history."""
        return self.part.scores(np.split(histories.items, histories.indptr[1:-1]))


def linear_part(name: str, weights: ItemWeights, neighbours: int = NEIGHBOURS) -> LinearPart:
    """Return a linear model as a part of weight 1, with the entries of largest size in each row.

    Args:
        name: of the part.
        weights: the linear model.
        neighbours: most entries of a row; of equally large ones those with the lower item index.

    >>> part = linear_part("ease", ItemWeights(np.array([[0.0, -3.0, 2.0], [0, 0, 0], [1, 0, 0]])), neighbours=1)
    >>> part.indptr.tolist(), part.items.tolist(), part.values.tolist()
    ([0, 1, 1, 2], [1, 0], [-3.0, 1.0])
    """
    matrix = sparse.csr_array(weights.matrix) if sparse.issparse(weights.matrix) else weights.matrix
    rows: list[npt.NDArray[np.integer]] = []
    values: list[npt.NDArray[np.floating]] = []
    for item in range(matrix.shape[0]):
        if isinstance(matrix, np.ndarray):
            columns = np.flatnonzero(matrix[item])
            found = matrix[item, columns]
        else:
            entries = slice(matrix.indptr[item], matrix.indptr[item + 1])
            order = np.argsort(matrix.indices[entries])
            columns, found = matrix.indices[entries][order], matrix.data[entries][order]
        kept = np.sort(np.argsort(-np.abs(found), kind="stable")[:neighbours])
        rows.append(columns[kept])
        values.append(found[kept])
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    items, entries_of = np.concatenate(rows).astype(np.int32), np.concatenate(values).astype(np.float32)
    return LinearPart(name, 1.0, float(weights.recency), weights.max_history, indptr, items, entries_of)


def fit_linear_parts(
    names: str,
    data: RecommendationData,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
) -> list[LinearPart | FactorPart]:
    """Fit linear baselines as parts of weight 1.

    Args:
        names: one baseline or several joined by +, such as `"ease+textknn"`.
        data: the data folder; only its train split is fitted unless a setting `fit_on` names more.
        settings: baseline -> setting -> value.
        neighbours: most entries of a row of a part.
        seed: of the baselines.

    Raises:
        InputError: there is no such baseline or setting, or a baseline is no linear model.
        MissingPackageError: a baseline needs a package that is not installed.
    """
    parts, settings = baselines.members(names), settings or {}
    if unknown := [name for name in settings if name not in parts]:
        raise InputError(f"settings name {', '.join(unknown)}, which is none of the baselines {names}; leave it out")
    found: list[LinearPart | FactorPart] = []
    for name in parts:
        recommender: Any = baselines.fit_baseline(name, data, seed=seed, **settings.get(name, {}))
        if hasattr(recommender, "item_factors"):
            found.append(factor_part(name, recommender))
        elif hasattr(recommender, "item_weights"):
            found.append(linear_part(name, recommender.item_weights, neighbours))
        else:
            raise InputError(
                f"baselines has {name}, which is no linear model; choose some of ease, ease-recency, ials, itemknn, textknn, "
                "textknn-last, transition-graph and two-hop-graph"
            )
    return found


def factor_part(name: str, fitted: Any) -> FactorPart:
    """Return factors of items as a part of weight 1.

    Args:
        name: of the part.
        fitted: has `item_factors`, `alpha` and `regularization`, as `IALSRecommender`.
    """
    factors = np.ascontiguousarray(fitted.item_factors, dtype=np.float32)
    gram = factors.astype(np.float64).T @ factors.astype(np.float64)
    return FactorPart(name, 1.0, float(fitted.alpha), float(fitted.regularization), factors, gram.astype(np.float32))


def make_hybrid(
    model: RecommenderModel,
    data: RecommendationData,
    names: str,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    trials: int = 120,
    metric: str | None = None,
    neighbours: int = NEIGHBOURS,
    max_users: int | None = 4000,
    seed: int = 0,
    progress: bool = True,
) -> Tuning:
    """Add linear parts to a model, with weights that are learned on validation; the model keeps its own weights.

    The standardized scores of the language model have the weight 1. Parts whose best weight is 0 are left out. Parts that the
    model has already are replaced.

    Args:
        model: scores the whole catalogue (CLLM4Rec, or LC-Rec with an item head).
        data: the data folder that the model was trained on.
        names, settings, neighbours, seed: see `fit_linear_parts`.
        trials: budget of the search for weights, see `ensemble.tune_weights`.
        metric: validation metric to maximize, several joined by + are added; None takes what selects the epoch in training.
        max_users: users of the search, a fixed random sample; None for all.
        progress: show a progress bar.

    Returns:
        The weights, and all trials; the first one is the model alone.

    Raises:
        InputError: as `fit_linear_parts`; the data has another catalogue or no validation split, or the model searches.

    Example:
        >>> make_hybrid(model, data, "ease+textknn", {"ease": {"regularization": 100.0}})  # doctest: +SKIP
        >>> model.save_pretrained("runs/hybrid")  # doctest: +SKIP
    """
    catalogue = model.require_catalogue()
    if catalogue.ids.array.to_pylist() != data.items["item_id"].to_pylist():
        raise InputError(f"data: the items of {data.folder} are not those of the model, or in another order; give its own data")
    if getattr(model.config, "scoring", None) == "beam":
        raise InputError(
            "model finds items by a search, which linear models cannot be added to; align it with item_head, or set "
            "config.scoring to 'all', which is slow"
        )
    parts = fit_linear_parts(names, data, settings, neighbours=neighbours, seed=seed)
    model.linear_parts = None
    recommenders: dict[str, Recommender] = {MODEL: model, **{part.name: LinearPartRecommender(part) for part in parts}}
    metric = metric or "+".join(SYSTEMS[model.system].selection)
    # From the model alone, so that the hybrid is never worse in the search, from small parts, and from equal ones.
    tuning = tune_weights(
        recommenders, data, trials=trials, metric=metric, starts=(0.0, 0.2, 1.0), max_users=max_users, progress=progress
    )
    weights = tuning.settings["weights"]
    kept = [dataclasses.replace(part, weight=weights[part.name]) for part in parts if weights[part.name]]
    logger.info("weights of the hybrid: %s", ", ".join(f"{name} {weight:g}" for name, weight in weights.items()))
    if kept:
        model.linear_parts = LinearParts(kept, model.config.catalogue_fingerprint)
    return tuning
