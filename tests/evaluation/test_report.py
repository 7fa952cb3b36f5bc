"""Reports: files, Markdown, the comparison table."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.report import EvaluationReport, SliceResult, comparison_table

PROTOCOL = Protocol("beauty", "random split, seed 1", "test", "train", "train", items=50, users=2, excluded_users=1)


@pytest.fixture
def report():
    return EvaluationReport(
        protocol=PROTOCOL,
        metrics={"recall@20": 0.25, "coverage@20": 0.5},
        intervals={"recall@20": (0.125, 0.375)},
        seconds=1.5,
        seed=0,
        n_resamples=1000,
        user_indices=np.array([3, 5]),
        per_user={"recall@20": np.array([0.0, 0.5])},
    )


def test_models_with_other_decoding_share_a_table_with_a_note(report):
    protocol = dataclasses.replace(PROTOCOL, decoding="constrained search with 9 beams")
    beams = dataclasses.replace(report, protocol=protocol, illegal_items=0)
    table = comparison_table({"a": report, "b": beams})
    assert table.endswith("all items scored. b: constrained search with 9 beams; illegal items 0.")


def test_json_there_and_back(report, tmp_path):
    report.illegal_items, report.users_without_list = 0, 3
    path = report.save(tmp_path / "new" / "report.json")
    assert EvaluationReport.load(path) == report
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    written = json.loads(path.read_text())
    assert written["protocol_line"] == f"{PROTOCOL}; illegal items 0; 3 users without a list" and written["illegal_items"] == 0
    assert written["users"] == 2
    assert written["intervals"] == {"recall@20": [0.125, 0.375]}


def test_slices_are_saved_and_shown(report, tmp_path):
    never = SliceResult(3, 2, {"recall@20": 0.0625}, {"recall@20": np.array([0.0, 0.125])})
    report.slices = {"relation": {"never together": never}}
    loaded = EvaluationReport.load(report.save(tmp_path / "report.json"))
    assert loaded == report and loaded.slices["relation"]["never together"].per_user == {}
    text = report.to_markdown()
    assert "Metrics by relation of the items that are to be found to the history" in text
    assert "| slice | true items | users | recall@20 |\n|---|---|---|---|\n| never together | 3 | 2 | 0.0625 |" in text
    written = json.loads((tmp_path / "report.json").read_text())
    del written["slices"]
    (tmp_path / "report.json").write_text(json.dumps(written))
    assert EvaluationReport.load(tmp_path / "report.json").slices == {}, "reports of earlier versions have none"


def test_an_existing_report_is_kept(report, tmp_path):
    path = report.save(tmp_path / "report.json")
    before = path.read_bytes()
    report.metrics["recall@20"] = 0.75
    with pytest.raises(FileExistsError, match=r"report.json exists; .* pass overwrite=True"):
        report.save(path)
    assert path.read_bytes() == before
    report.save(path, overwrite=True)
    assert EvaluationReport.load(path).metrics["recall@20"] == 0.75


def test_a_number_that_is_none_is_not_written(report, tmp_path):
    report.metrics["recall@20"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        report.save(tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_per_user_values(report, tmp_path):
    table = pq.read_table(report.save_per_user(tmp_path / "users.parquet"))
    assert table.to_pydict() == {"user_index": [3, 5], "recall@20": [0.0, 0.5]}
    with pytest.raises(FileExistsError, match=r"users.parquet exists; choose"):
        report.save_per_user(tmp_path / "users.parquet")


def test_a_loaded_report_has_no_per_user_values(report, tmp_path):
    loaded = EvaluationReport.load(report.save(tmp_path / "report.json"))
    with pytest.raises(ValueError, match="a loaded report has no per-user values"):
        loaded.save_per_user(tmp_path / "users.parquet")


def test_suffix(report, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.json, got .*report.txt"):
        report.save(tmp_path / "report.txt")


def test_load_refuses_other_files(report, tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(FileNotFoundError, match=r"report\.json"):
        EvaluationReport.load(path)
    path.write_text('{"format": "cllm4')
    with pytest.raises(ValueError, match=r"report.json cannot be read .*; evaluate again"):
        EvaluationReport.load(path)
    path.write_bytes(b'{"format": "\xff"}')
    with pytest.raises(ValueError, match=r"report.json cannot be read .*; evaluate again"):
        EvaluationReport.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not an evaluation report"):
        EvaluationReport.load(path)
    for name, wrong in (("protocol", 7), ("metrics", 7), ("intervals", []), ("slices", {"a": 7}), ("baselines", [1])):
        path.write_text(json.dumps({**report.to_dict(), name: wrong}))
        with pytest.raises(ValueError, match="report.json has a field of another type .*; evaluate again"):
            EvaluationReport.load(path)
    values = report.to_dict()
    del values["seconds"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="lacks the field 'seconds'"):
        EvaluationReport.load(path)


def test_markdown(report):
    assert report.to_markdown().splitlines() == [
        "| metric | value | 95% interval |",
        "|---|---|---|",
        "| recall@20 | 0.2500 | 0.1250 to 0.3750 |",
        "| coverage@20 | 0.5000 | - |",
        "",
        f"Protocol: {PROTOCOL}.",
    ]


def test_comparison_table(report):
    other = dataclasses.replace(report, metrics={"recall@20": 0.5, "coverage@20": 1.0}, intervals={})
    assert comparison_table({"popularity": report, "model": other}).splitlines() == [
        "| model | recall@20 | coverage@20 |",
        "|---|---|---|",
        "| popularity | 0.2500 [0.1250, 0.3750] | 0.5000 |",
        "| model | 0.5000 | 1.0000 |",
        "",
        f"Protocol: {PROTOCOL}.",
    ]


def test_comparison_table_refuses_to_mix_protocols(report):
    other = dataclasses.replace(report, protocol=dataclasses.replace(PROTOCOL, masked="none"))
    with pytest.raises(ValueError, match=r"(?s)different protocols .*\na: .*masked train;.*\nb: .*masked none;"):
        comparison_table({"a": report, "b": other})


def test_comparison_table_refuses_other_metrics(report):
    other = dataclasses.replace(report, metrics={"recall@20": 0.5})
    with pytest.raises(ValueError, match=r"same metrics .* but a has .*'coverage@20'\] and b has \['recall@20'\]"):
        comparison_table({"a": report, "b": other})


def test_comparison_table_of_nothing():
    with pytest.raises(ValueError, match="reports is empty"):
        comparison_table({})
