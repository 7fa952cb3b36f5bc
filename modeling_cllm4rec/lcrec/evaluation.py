"""LC-Rec in the evaluator: its search under given settings, and averages over prompt templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval
from modeling_cllm4rec.evaluation.ranking import NO_ITEM, PADDING
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation, Scoring

__all__ = ["SearchingRecommender", "evaluate_templates"]


@dataclasses.dataclass(frozen=True)
class SearchingRecommender:
    """An LC-Rec model with settings of its search: obeys `evaluator.Searcher`.

    Attributes:
        num_beams: None means the configuration's.
        scoring: `"beam"` or `"all"` (exact).
        template: number of the template of sequential item prediction.
    """

    model: LCRecForRecommendation
    num_beams: int | None = None
    scoring: Scoring = "beam"
    template: int = 0

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        return self.model.num_items

    @property
    def decoding(self) -> str:
        """How it searches, for the protocol."""
        beams = self.model.config.search_beams if self.num_beams is None else self.num_beams
        how = f"constrained search with {beams} beams" if self.scoring == "beam" else "all indices scored"
        return f"{how}, template {self.template}"

    def rank_histories(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, seen: Histories | None, k: int
    ) -> npt.NDArray[np.int64]:
        """(batch, k) best unseen items; those of a search are read from the codes that it wrote, not from its tree."""
        rows = np.split(histories.items, histories.indptr[1:-1])
        forbidden = None if seen is None else np.split(seen.items, seen.indptr[1:-1])
        prompts = self.model.build_prompts(user_indices, rows, self.template)
        if self.scoring != "beam":
            return self.model.best_items(prompts, forbidden, k, None, num_beams=self.num_beams, scoring=self.scoring)[0]
        codes = self.model.search_indices(prompts, forbidden, k, num_beams=self.num_beams).codes.cpu().numpy()
        items = self.model.index.items_of(codes)
        return np.where((codes < 0).all(axis=-1), PADDING, np.where(items < 0, NO_ITEM, items))


def evaluate_templates(
    model: LCRecForRecommendation,
    data: RecommendationData,
    split: str,
    templates: Sequence[int],
    num_beams: int | None = None,
    scoring: Scoring = "beam",
    **arguments: Any,
) -> EvaluationReport:
    """One evaluation for each template; a user's metric is the mean over templates (released code, B5).

    Args:
        templates: numbers of templates.
        arguments: those of `evaluate`.

    Returns:
        The report of the means, intervals over users. Of several templates, coverage is the mean of the coverages.
    """
    if not templates:
        raise InputError("templates is empty; name at least one")
    reports = [
        evaluate(SearchingRecommender(model, num_beams, scoring, template), data, split, **arguments) for template in templates
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
    )
