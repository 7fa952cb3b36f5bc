"""A teacher for finetuning: a baseline whose choices are learned beside the held-out items (knowledge distillation)."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.baselines import baseline_settings, fit_baseline, members
from modeling_cllm4rec.cllm4rec.arguments import TeacherArguments
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.evaluator import Recommender


class Teacher:
    """What another recommender would choose for a history, as shares of its best items.

    Item j of the best `num_items` ones gets the share max(s_j, 0) ** power / sum, with s_j its score: the scale of the scores
    does not matter. Items of the history itself get none.

    Args:
        recommender: anything that scores histories.
        num_items: best items of a history.
        power: above 1 prefers the best ones more than their scores do, below 1 less.

    Example:
        >>> from modeling_cllm4rec.baselines.ease import EASERecommender
        >>> weights = np.array([[0, 3, 1, -1], [3, 0, 0, 0], [1, 0, 0, 0], [-1, 0, 0, 0]], dtype=np.float32)
        >>> items, shares = Teacher(EASERecommender(weights), num_items=3).soft_targets([np.array([0])])
        >>> items.tolist(), shares.tolist()
        ([[1, 2, -100]], [[0.75, 0.25, 0.0]])
    """

    def __init__(self, recommender: Recommender, num_items: int = 100, power: float = 1.0) -> None:
        self.recommender = recommender
        self.num_items = min(num_items, recommender.num_items)
        self.power = power

    @classmethod
    def fit(cls, data: RecommendationData, arguments: TeacherArguments, fit_on: str = "train") -> Self:
        """The teacher that the arguments name, fitted on the splits `fit_on`.

        Raises:
            InputError: there is no such baseline or setting (the nearest names).
            MissingPackageError: it needs a library that is not there (what to install).
            MemoryLimitError: it holds a matrix of items by items, and the catalogue is too large for one.
        """
        settings, parts = arguments.parsed_teacher_settings, members(arguments.teacher)
        for part in parts:
            own = settings.setdefault(part, {}) if len(parts) > 1 else settings
            if "fit_on" in baseline_settings(part):
                own.setdefault("fit_on", fit_on)
        recommender = fit_baseline(arguments.teacher, data, seed=arguments.seed, **settings)
        return cls(recommender, arguments.teacher_items, arguments.teacher_power)

    def soft_targets(self, histories: list[np.ndarray]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Its choices for some histories.

        Args:
            histories: item indices of each.

        Returns:
            (batch, C) item indices, best first, -100 where a history has fewer with a positive score, and (batch, C) their
            shares, 1 in sum, or 0 where no item has a positive score.
        """
        lengths = [len(history) for history in histories]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        given = np.concatenate(histories).astype(np.int32)
        scores = self.recommender.score_histories(None, Histories(indptr, given))  # (batch, J)
        scores[np.repeat(np.arange(len(histories)), lengths), given] = 0
        best = np.argpartition(-scores, self.num_items - 1, axis=1)[:, : self.num_items]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)
        top = np.maximum(np.take_along_axis(scores, best, 1), 0)
        shares = (top / np.maximum(top[:, :1], np.finfo(np.float32).tiny)) ** self.power * (top > 0)
        shares /= np.maximum(shares.sum(1, keepdims=True), np.finfo(np.float32).tiny)
        return np.where(top > 0, best, -100), shares.astype(np.float32)
