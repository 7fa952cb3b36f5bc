"""Results in `.eval_results/` are those that the client of the Hub reads, on leaderboards that `eval.yaml` declares."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries

from modeling_cllm4rec import __version__
from modeling_cllm4rec.corpora.hub_folders import BENCHMARK_METRICS, benchmark_description, task_of
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.hub.eval_results import eval_results
from modeling_cllm4rec.systems import SYSTEMS, resolve

ADDRESS = "https://huggingface.co/you/model"


def report(dataset: str = "you/mine", split: str = "test") -> EvaluationReport:
    protocol = Protocol(dataset, "random split", split, "train", "train", items=50, users=9, excluded_users=0)
    metrics = {"recall@20": 0.123456789, "coverage@20": 0.5}
    return EvaluationReport(protocol, metrics, {}, 1.0, 0, 0, dataset_revision="5503434d")


def test_an_entry_is_read_back_by_the_client() -> None:
    files = eval_results([report()], source=ADDRESS)
    assert list(files) == [".eval_results/you--mine.yaml"]
    document = yaml.safe_load(files[".eval_results/you--mine.yaml"])
    assert document[0]["dataset"] == {"id": "you/mine", "task_id": "test_recall_20", "revision": "5503434d"}
    assert parse_eval_result_entries(document) == [
        EvalResultEntry(
            dataset_id="you/mine",
            task_id="test_recall_20",
            value=0.12346,
            dataset_revision="5503434d",
            source_url=ADDRESS,
            source_name="evaluations of this model",
            notes=f"history train; all items scored; 9 users; cllm4rec {__version__}",
        )
    ]


def test_a_local_copy_of_the_data_needs_its_name() -> None:
    local = report("mine")
    assert eval_results([local]) == {}
    (entry,) = yaml.safe_load(eval_results([local], "you/mine")[".eval_results/you--mine.yaml"])
    assert entry["dataset"] == {"id": "you/mine", "task_id": "test_recall_20"} and "source" not in entry


def test_validation_and_unusual_conditions_are_no_results() -> None:
    few = report()
    few.protocol = dataclasses.replace(few.protocol, users=5, sample="a random sample of 9, seed 0")
    assert eval_results([few, report(split="validation")]) == {}


@pytest.mark.parametrize("system", ["cllm4rec", "lcrec"])
def test_metrics_of_the_papers_have_leaderboards(system: str) -> None:
    description = benchmark_description("mine", {"protocol": {"line": "random split"}, "statistics": {"users": 9, "items": 50}})
    declared = {task["id"] for task in yaml.safe_load(description)["tasks"]}
    assert {task_of(metric) for metric in resolve(SYSTEMS[system].model).paper_metrics} <= declared
    assert len(declared) == len(BENCHMARK_METRICS)
