"""The load test: its figures, and the report that it writes."""

from __future__ import annotations

import json

import load_test
import pytest


def test_a_cell_counts_what_the_server_answered(start, cllm4rec):
    with start(cllm4rec) as server:
        cell = load_test.measure(f"http://127.0.0.1:{server.port}", cllm4rec.users, callers=4, seconds=0.3, k=2)
        assert cell["answers"] == server.health()["calls"] > 0
        assert cell["calls_per_turn"] == pytest.approx(cell["answers"] / server.health()["batches"])
    assert 0 < cell["p50_ms"] <= cell["p95_ms"] <= cell["p99_ms"]
    assert 0 < cell["users_per_second"] <= cell["answers"] / 0.3


def test_a_call_that_fails_is_an_error(start, cllm4rec):
    with start(cllm4rec) as server, pytest.raises(RuntimeError, match="2 of 2 callers failed: user .*: status 400"):
        load_test.measure(f"http://127.0.0.1:{server.port}", cllm4rec.users, callers=2, seconds=5, k=7)


def test_arguments_at_fault(tmp_path, cllm4rec_folder, capsys):
    assert load_test.main(["--model", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert "has no users.parquet; the test needs known users" in capsys.readouterr().err
    assert load_test.main(["--model", str(cllm4rec_folder), "--output", str(tmp_path), "--seconds", "0"]) == 2
    assert "--seconds 0, --callers [1, 8, 32]: both must be positive" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_test_writes_its_report(cllm4rec_folder, tmp_path):
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    words = ["--seconds", "0.5", "--callers", "1", "4", "--k", "2"]
    assert load_test.main(["--model", str(cllm4rec_folder), "--output", str(tmp_path / "out"), *words]) == 0
    report = json.loads((tmp_path / "out" / "load-test.json").read_text())
    assert [(cell["callers"], cell["batching"]) for cell in report["cells"]] == [(1, True), (1, False), (4, True), (4, False)]
    assert (tmp_path / "out" / "load-test.md").read_text().count("\n| ") == 5
