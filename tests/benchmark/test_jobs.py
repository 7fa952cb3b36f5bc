"""Settings of a report folder, fingerprints of jobs, and whose folder it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Condition, Job, claim, conditions, make_config, selection_of
from modeling_cllm4rec.cllm4rec import finetuning
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.lcrec import alignment


def test_conditions_side_by_side() -> None:
    assert conditions("train", "no") == (Condition("train", "train"),)
    assert conditions("both", "both") == (
        Condition("train", "train"),
        Condition("train", "train+validation"),
        Condition("train+validation", "train+validation"),
    )


def test_sampled_metrics_are_measured_with_full_ranking(data: RecommendationData) -> None:
    found = make_config(data, metrics=("recall@5",), sampled_negatives=7).conditions
    assert found == (Condition("train", "train"), Condition("train", "train", 7))
    assert len({condition.key for condition in found}) == 2


def test_data_split_by_time_is_asked_with_validation(data: RecommendationData) -> None:
    protocol = {**data.info["protocol"], "split": "leave-one-out"}
    ordered = dataclasses.replace(data, info={**data.info, "protocol": protocol})
    made = make_config(ordered)
    assert made.conditions == (Condition("train+validation", "train+validation"),)
    assert made.metrics == ("recall@10", "recall@20", "ndcg@10")


def test_what_all_models_are_chosen_by() -> None:
    assert selection_of(["ndcg@10", "ndcg@100", "recall@40", "recall@20"]) == "+".join(finetuning.SELECTION)
    assert selection_of(["recall@10", "ndcg@10"]) == alignment.SELECTION
    assert selection_of(["recall@10", "ndcg@5"]) == "recall@10"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metrics": ("recall@41",)}, "recall@41 needs 41 items, the catalogue has 40"),
        ({"metrics": ("recal@5",)}, "unknown metric 'recal@5'.*did you mean 'recall@5'"),
        ({"metrics": ("coverage@5",)}, "metrics begins with coverage@5; the first one must be a mean over users"),
        ({"test_history": "all"}, "test_history is 'all'; allowed are train, train\\+validation, both"),
        ({"mask_validation": "maybe"}, "mask_validation is 'maybe'; allowed are no, yes, both"),
        ({"sampled_negatives": -1}, "sampled_negatives is -1; it must be 1 or more"),
        ({"tune": -1}, "tune is -1; it must be 0 or more"),
        ({"max_users": 0}, "max_users is 0; it must be 1 or more"),
        ({"epochs_share": 0.0}, "epochs_share is 0.0; it must lie above 0 and be at most 1"),
        ({"tune_metric": "ndcg@99"}, "ndcg@99 needs 99 items"),
    ],
)
def test_values_that_are_not_allowed(data: RecommendationData, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(data, **{"metrics": ("recall@5",), **values})


def test_setting_comes_back_from_its_file(setting: BenchmarkConfig, tmp_path: Path) -> None:
    claim(tmp_path / "report", setting)
    assert BenchmarkConfig.load(tmp_path / "report") == setting
    claim(tmp_path / "report", setting)  # going on is allowed


def test_folder_of_other_data_is_refused(setting: BenchmarkConfig, tmp_path: Path) -> None:
    claim(tmp_path / "report", dataclasses.replace(setting, data_sha256="other", dataset="books"))
    with pytest.raises(ValueError, match=r"is a report of other data \(books: .*choose another output, or pass overwrite=True"):
        claim(tmp_path / "report", setting)


def test_folder_of_another_protocol_is_refused(setting: BenchmarkConfig, tmp_path: Path) -> None:
    claim(tmp_path / "report", dataclasses.replace(setting, tune=3))
    with pytest.raises(ValueError, match=r"another protocol \(then, now\): \{'tune': \(3, 0\)\}"):
        claim(tmp_path / "report", setting)


def test_folder_with_something_else_is_refused(setting: BenchmarkConfig, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is no report folder; choose another output"):
        claim(tmp_path, setting)


def test_broken_protocol_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no report folder: it has no protocol.json"):
        BenchmarkConfig.load(tmp_path)
    (tmp_path / "protocol.json").write_text(json.dumps({"metrics": []}))
    with pytest.raises(ValueError, match="protocol.json cannot be read"):
        BenchmarkConfig.load(tmp_path)


def test_fingerprint_covers_all_settings_of_the_numbers(setting: BenchmarkConfig) -> None:
    job = Job("ease", "baseline", 1, {"name": "ease", "settings": {}})
    same = dataclasses.replace(job, command="another", about="words")
    assert same.fingerprint(setting) == job.fingerprint(setting)
    others = [dataclasses.replace(job, seed=2), dataclasses.replace(job, recipe={"name": "ease", "settings": {"a": 1}})]
    marks = {one.fingerprint(setting) for one in [job, *others]} | {job.fingerprint(dataclasses.replace(setting, tune=1))}
    assert len(marks) == 4


def test_trained_folder_is_known_by_its_content(setting: BenchmarkConfig) -> None:
    here, there = (Job("m", "folder", 1, {"path": path, "sha256": "f"}) for path in ("/a", "/b"))
    assert here.fingerprint(setting) == there.fingerprint(setting)
