"""Weighted sum of the standardized scores of several baselines, and the search for its weights."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from modeling_cllm4rec.baselines.tuning import Tuning, tuning_of
from modeling_cllm4rec.baselines.validation import validate
from modeling_cllm4rec.core.errors import InputError, MemoryLimitError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender, Searcher

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 4.0)
"""Weights that the search tries. That of the first baseline is always 1."""
MAX_MEMORY_GIB = 8.0
"""Most memory for the remembered scores of a search."""


class EnsembleRecommender:
    """Scores items by the weighted sum of the scores of several recommenders.

    The scores of a recommender for one history are standardized over the catalogue (mean 0, variance 1), so that a recommender
    of larger scores does not outweigh the others. A recommender with equal scores for all items adds nothing.

    Args:
        recommenders: at least two, of one catalogue; all of them score the catalogue.
        weights: one for each recommender, 0 or more; None weighs all alike.

    Raises:
        InputError: there are fewer than two, the catalogues have different sizes, one of them has no scores, or there is
            another number of weights, a negative one, or none above 0.
    """

    def __init__(self, recommenders: Sequence[Recommender | Searcher], weights: Sequence[float] | None = None) -> None:
        if len(recommenders) < 2:
            raise InputError(f"recommenders has {len(recommenders)} of them; a sum needs two or more")
        sizes = [recommender.num_items for recommender in recommenders]
        if len(set(sizes)) > 1:
            raise InputError(f"recommenders score catalogues of {sizes} items; fit all of them on the same data")
        for recommender in recommenders:
            if not hasattr(recommender, "score_histories"):
                raise InputError(
                    f"recommenders has a {type(recommender).__name__}, which has lists and no scores; a sum needs scores"
                )
        weights = [1.0] * len(recommenders) if weights is None else list(weights)
        if len(weights) != len(recommenders):
            raise InputError(f"weights has {len(weights)} numbers for {len(recommenders)} recommenders; give one for each")
        if not all(weight >= 0 and np.isfinite(weight) for weight in weights) or not any(weights):
            raise InputError(f"weights are {weights}; each must be 0 or more, and one above 0")
        self.recommenders = tuple(cast(Recommender, recommender) for recommender in recommenders)
        self.weights = tuple(map(float, weights))
        self.num_items = sizes[0]

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) weighted sums of standardized scores, one row per history."""
        total = np.zeros((len(histories.indptr) - 1, self.num_items), dtype=np.float32)
        for recommender, weight in zip(self.recommenders, self.weights, strict=True):
            if weight:
                total += np.float32(weight) * standardized(recommender.score_histories(user_indices, histories))
        return total


def tune_weights(
    recommenders: Mapping[str, Recommender | Searcher],
    data: RecommendationData,
    *,
    trials: int,
    metric: str,
    starts: Sequence[float] = (1.0,),
    max_users: int | None = None,
    progress: bool = True,
) -> Tuning:
    """Choose the weights of a sum on the validation split, one after the other.

    The first weight stays 1, and all others start at the same value. In turn, each of them is set to the best of `WEIGHTS` while
    the others stay. The search ends with the budget, or when a round changes nothing. Nothing is random.

    Args:
        recommenders: name -> fitted recommender.
        data: the data folder; train histories are the inputs, validation items are the targets.
        trials: the budget, the number of evaluations.
        metric: validation metric to maximize; several joined by + are added.
        starts: values that the other weights start at, each with an equal part of the budget; of all trials the best is chosen.
        max_users: size of a fixed random sample of users to evaluate; None evaluates all users.
        progress: show a progress bar.

    Returns:
        `{"weights": {name: weight}}`, and all trials.

    Raises:
        InputError: `trials` is below 1, or the recommenders cannot be summed.
        MemoryLimitError: the scores of these users need more than `MAX_MEMORY_GIB`.
    """
    if trials < 1:
        raise InputError(f"trials is {trials}; it must be 1 or more")
    names = list(recommenders)
    users = data.num_users if max_users is None else min(max_users, data.num_users)
    needed = users * data.num_items * len(names) * 4 / 2**30
    if needed > MAX_MEMORY_GIB:
        raise MemoryLimitError(
            f"the scores of {len(names)} baselines for {users} users need {needed:.1f} GiB, and {MAX_MEMORY_GIB:g} are allowed; "
            f"set max_users to {int(users * MAX_MEMORY_GIB / needed)} or fewer"
        )
    remembered = _RememberedSum(list(recommenders.values()))
    tried: dict[tuple[float, ...], float] = {}
    seconds: list[float] = []
    budget = 0
    with tqdm(total=trials, desc=f"tuning weights of {'+'.join(names)}", unit="trial", disable=not progress) as bar:

        def value_of(weights: tuple[float, ...]) -> float:
            if weights not in tried and len(tried) < budget:
                start = time.perf_counter()
                remembered.weights = weights
                tried[weights] = validate(remembered, data, metric, max_users)
                seconds.append(time.perf_counter() - start)
                bar.update()
            return tried.get(weights, -np.inf)  # beyond the budget nothing is evaluated

        for number, start in enumerate(starts, start=1):
            best = (1.0, *[start] * (len(names) - 1))
            budget = trials * number // len(starts)
            value_of(best)
            changed = True
            while changed and len(tried) < budget:
                before = best
                for place in range(1, len(names)):
                    options = [(*best[:place], weight, *best[place + 1 :]) for weight in WEIGHTS]
                    best = max([best, *options], key=value_of)  # of equal ones the present one
                changed = best != before
    by_settings = {json.dumps({"weights": dict(zip(names, weights, strict=True))}): value for weights, value in tried.items()}
    return tuning_of(by_settings, seconds, metric)


class _RememberedSum:
    """A weighted sum whose standardized scores are computed once for each batch, for all weights that are tried."""

    def __init__(self, recommenders: Sequence[Recommender | Searcher]) -> None:
        # The plain sum checks the recommenders, and scores as this one does.
        self.recommenders = EnsembleRecommender(recommenders).recommenders
        self.num_items = self.recommenders[0].num_items
        self.weights = (1.0,) * len(self.recommenders)
        self._parts: dict[bytes, npt.NDArray[np.float32]] = {}

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) weighted sums of standardized scores, one row per history."""
        assert user_indices is not None
        key = user_indices.tobytes()
        if key not in self._parts:
            scores = [recommender.score_histories(user_indices, histories) for recommender in self.recommenders]
            self._parts[key] = np.stack(list(map(standardized, scores)))  # (recommenders, batch, J)
        return np.tensordot(np.array(self.weights, dtype=np.float32), self._parts[key], axes=1)


def standardized(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (batch, J) scores with mean 0 and variance 1 in each row; a row of equal scores becomes zeros.

    >>> standardized(np.array([[1.0, 3.0], [5.0, 5.0]], dtype=np.float32)).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True))
    # Equal scores are found by comparison, because the rounding of the mean leaves a tiny deviation.
    equal = scores.min(axis=1, keepdims=True) == scores.max(axis=1, keepdims=True)
    return np.where(equal, 0.0, centred / np.where(equal, 1.0, deviation)).astype(np.float32)
