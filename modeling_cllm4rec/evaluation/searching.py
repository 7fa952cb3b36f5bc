"""Evaluation of models that search: under given settings, and averaged over prompt templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval
from modeling_cllm4rec.evaluation.report import EvaluationReport, SliceResult

__all__ = ["SearchingRecommender", "evaluate_templates"]


@dataclasses.dataclass(frozen=True)
class SearchingRecommender:
    """A model that searches, with settings of its search: obeys `evaluator.Searcher`.

    Attributes:
        model: a `RecommenderModel` with `rank_histories` and `describe_search`.
        settings: arguments of both, such as `num_beams`, `scoring` and `template` of LC-Rec.
    """

    model: Any
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        return int(self.model.num_items)

    @property
    def decoding(self) -> str:
        """How the model decodes, for the protocol."""
        return str(self.model.describe_search(**self.settings))

    def rank_histories(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, seen: Histories | None, k: int
    ) -> npt.NDArray[np.int64]:
        """Rank the unseen items for histories: (batch, k) item indices, best first."""
        ranked: npt.NDArray[np.int64] = self.model.rank_histories(user_indices, histories, seen, k, **self.settings)
        return ranked


def evaluate_templates(
    model: Any,
    data: RecommendationData,
    split: str,
    templates: Sequence[int],
    settings: Mapping[str, Any],
    **arguments: Any,
) -> EvaluationReport:
    """Evaluate each prompt template; a user's metric is the mean over templates (released code of LC-Rec, B5).

    Args:
        templates: numbers of templates.
        settings: of the search.
        arguments: those of `evaluate`.

    Returns:
        The report of the means, intervals over users. Of several templates, coverage is the mean of the coverages.
    """
    if not templates:
        raise InputError("templates is empty; name at least one")
    reports = [
        evaluate(SearchingRecommender(model, {**settings, "template": template}), data, split, **arguments)
        for template in templates
    ]
    if len(reports) == 1:
        return reports[0]
    first = reports[0]
    decoding = f"{first.protocol.decoding.rpartition(',')[0]}, mean over {len(templates)} templates"
    per_user = {name: np.mean([report.per_user[name] for report in reports], axis=0) for name in first.per_user}
    intervals = {
        name: bootstrap_interval(per_user[name], n_resamples=first.n_resamples, seed=first.seed) for name in first.intervals
    }
    return dataclasses.replace(
        first,
        protocol=dataclasses.replace(first.protocol, decoding=decoding),
        metrics={name: float(np.mean([report.metrics[name] for report in reports])) for name in first.metrics},
        intervals=intervals,
        seconds=sum(report.seconds for report in reports),
        illegal_items=sum(report.illegal_items or 0 for report in reports),
        per_user=per_user,
        slices={
            name: {label: _mean_of([report.slices[name][label] for report in reports]) for label in parts}
            for name, parts in first.slices.items()
        },
    )


def _mean_of(parts: Sequence[SliceResult]) -> SliceResult:
    """Return the mean of one slice over several reports of the same users."""
    per_user = {name: np.mean([part.per_user[name] for part in parts], axis=0) for name in parts[0].per_user}
    metrics = {name: float(np.mean([part.metrics[name] for part in parts])) for name in parts[0].metrics}
    return dataclasses.replace(parts[0], metrics=metrics, per_user=per_user)
