"""Knowledge distillation: soft targets of a baseline, which a language model learns in addition to the true items."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec import baselines
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender

logger = logging.getLogger(__name__)


class TeacherSettings(Protocol):
    """What a training stage says about its teacher, see `training.teacher_arguments`."""

    seed: int
    teacher: str
    teacher_settings: list[str]
    teacher_items: int
    teacher_power: float

    @property
    def parsed_teacher_settings(self) -> dict[str, Any]:
        """Settings of the teacher by name."""
        ...


class Teacher:
    """Soft targets for histories: probabilities of the best items of another recommender.

    Each of the `num_items` best items j has the probability max(s_j, 0) ** power / sum, where s_j is its score. The scale of the
    scores does not matter. Items of the history have none.

    Args:
        recommender: any recommender that scores histories.
        num_items: best items per history.
        power: sharpness; above 1 gives the best items more of the probability than their scores, below 1 less.

    Example:
        >>> from modeling_cllm4rec.baselines.ease import EASERecommender
        >>> weights = np.array([[0, 3, 1, -1], [3, 0, 0, 0], [1, 0, 0, 0], [-1, 0, 0, 0]], dtype=np.float32)
        >>> items, probs = Teacher(EASERecommender(weights), num_items=3).soft_targets([np.array([0])])
        >>> items.tolist(), probs.tolist()
        ([[1, 2, -100]], [[0.75, 0.25, 0.0]])
    """

    def __init__(self, recommender: Recommender, num_items: int = 100, power: float = 1.0) -> None:
        self.recommender = recommender
        self.num_items = min(num_items, recommender.num_items)
        self.power = power

    @classmethod
    def fit(
        cls,
        name: str,
        data: RecommendationData,
        settings: Mapping[str, Any] | None = None,
        *,
        num_items: int = 100,
        power: float = 1.0,
        seed: int = 0,
        fit_on: str = "train",
    ) -> Self:
        """Fit a baseline, or the sum of several.

        Args:
            name: the baseline, or several joined by +.
            data: the data folder.
            settings: of the baseline; of several, baseline -> setting -> value, and `weights`.
            num_items, power: see the class.
            seed: of the baselines.
            fit_on: splits that are fitted, where a baseline lets them be chosen.

        Raises:
            InputError: there is no such baseline or setting (the nearest names are listed), or the teacher has no scores.
            MissingPackageError: a baseline needs a package that is not installed.
            MemoryLimitError: a baseline needs a matrix of items by items, and the catalogue is too large for it.
        """
        parts = baselines.members(name)
        chosen = {key: dict(value) if isinstance(value, Mapping) else value for key, value in (settings or {}).items()}
        for part in parts:
            part_settings = chosen.setdefault(part, {}) if len(parts) > 1 else chosen
            if "fit_on" in baselines.baseline_settings(part):
                part_settings.setdefault("fit_on", fit_on)
        recommender = baselines.fit_baseline(name, data, seed=seed, **chosen)
        if not hasattr(recommender, "score_histories"):
            raise InputError(f"teacher: {name} has lists and no scores; soft targets need scores")
        return cls(cast(Recommender, recommender), num_items, power)

    def soft_targets(self, histories: list[np.ndarray]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the soft targets of a batch of histories.

        Args:
            histories: item indices of each history.

        Returns:
            (batch, C) item indices, best first, -100 where a history has fewer items with a positive score; and (batch, C)
            their probabilities. A row sums to 1, or to 0 where no item has a positive score.
        """
        if not histories:
            return np.zeros((0, self.num_items), np.int64), np.zeros((0, self.num_items), np.float32)
        lengths = [len(history) for history in histories]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        items = np.concatenate(histories).astype(np.int32)
        scores = self.recommender.score_histories(None, Histories(indptr, items))  # (batch, J)
        scores[np.repeat(np.arange(len(histories)), lengths), items] = 0
        best = np.argpartition(-scores, self.num_items - 1, axis=1)[:, : self.num_items]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)
        top = np.maximum(np.take_along_axis(scores, best, 1), 0)
        # Divided by the largest score before the power, which could overflow otherwise; the sum cancels the factor.
        probs = (top / np.maximum(top[:, :1], np.finfo(np.float32).tiny)) ** self.power * (top > 0)
        probs /= np.maximum(probs.sum(1, keepdims=True), np.finfo(np.float32).tiny)
        return np.where(top > 0, best, -100), probs.astype(np.float32)


def fitted_teacher(arguments: TeacherSettings, data: RecommendationData, fit_on: str = "train") -> Teacher | None:
    """Return the teacher that a stage names, fitted on the splits `fit_on`; None if it names none. Errors as in `Teacher.fit`."""
    if not arguments.teacher:
        if arguments.teacher_settings:
            logger.warning("there is no teacher: teacher_settings %s are not used", arguments.teacher_settings)
        return None
    return Teacher.fit(
        arguments.teacher,
        data,
        arguments.parsed_teacher_settings,
        num_items=arguments.teacher_items,
        power=arguments.teacher_power,
        seed=arguments.seed,
        fit_on=fit_on,
    )
