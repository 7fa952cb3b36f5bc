"""Results of a model in `.eval_results/`, which the Hub puts on the leaderboards of its data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.constants import EVAL_RESULTS_FOLDER

from modeling_cllm4rec import __version__
from modeling_cllm4rec.corpora.hub_folders import BENCHMARK_METRICS, task_of
from modeling_cllm4rec.evaluation.report import EvaluationReport


def eval_results(reports: Iterable[EvaluationReport], dataset: str | None = None, source: str | None = None) -> dict[str, bytes]:
    """Return the files of results on the Hub: path in the repository -> YAML, one file a dataset.

    Results are the metrics that `hub_folders.benchmark_description` declares a leaderboard for, on the split `test` under its
    usual protocol. Of several evaluations of one metric (with and without validation items in the histories), all are listed,
    and the notes tell them apart.

    Args:
        reports: evaluations of one model.
        dataset: repository of the data folder on the Hub, for reports on a local copy of it; None leaves those out.
        source: address of the evaluations, such as that of the model's repository.

    Example:
        >>> from modeling_cllm4rec.evaluation.protocol import Protocol
        >>> conditions = Protocol("you/mine", "given split", "test", "train", "train", items=50, users=9, excluded_users=0)
        >>> report = EvaluationReport(conditions, {"recall@20": 0.25}, {}, 1.0, 0, 0)
        >>> list(eval_results([report]))
        ['.eval_results/you--mine.yaml']
    """
    entries: dict[str, list[EvalResultEntry]] = {}
    for report in reports:
        protocol = report.protocol
        on_hub = protocol.dataset if "/" in protocol.dataset else None  # a folder's name has no slash
        place = on_hub or dataset
        if place is None or protocol.split != "test" or protocol.departures:
            continue
        for metric in BENCHMARK_METRICS:
            if metric in report.metrics:
                entries.setdefault(place, []).append(
                    EvalResultEntry(
                        dataset_id=place,
                        task_id=task_of(metric),
                        value=round(report.metrics[metric], 5),
                        dataset_revision=report.dataset_revision if on_hub else None,
                        source_url=source,
                        source_name=None if source is None else "evaluations of this model",
                        notes="; ".join(
                            [
                                f"history {protocol.test_history}",
                                protocol.decoding,
                                f"{protocol.users} users",
                                f"cllm4rec {__version__}",
                            ]
                        ),
                    )
                )
    return {
        str(PurePosixPath(EVAL_RESULTS_FOLDER, f"{place.replace('/', '--')}.yaml")): yaml.safe_dump(
            eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True
        ).encode()
        for place, found in entries.items()
    }


__all__ = ["eval_results"]
