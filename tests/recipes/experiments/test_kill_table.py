"""The script that kills the commands."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import kill_table
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def test_the_same_command_goes_on_in_the_same_folder() -> None:
    stage = kill_table.STAGES["finetune"]
    assert kill_table.words_of(stage, Path("w"), Path("o"))[:5] == [
        "finetune",
        "--data",
        "w/data",
        "--start",
        "w/pretrain/pretrained",
    ]
    assert kill_table.words_of(stage, Path("w"), Path("o"), again=True)[-3:] == ["--output", "o", "--resume"]
    names = list(kill_table.STAGES)
    assert all(names.index(needed) < names.index(name) for name, one in kill_table.STAGES.items() for needed in one.needs)


def test_results_are_compared_without_records_and_what_is_left_over_is_found(tmp_path: Path) -> None:
    result = tmp_path / "result"
    (result / "checkpoints").mkdir(parents=True)
    for name in ("model.safetensors", "README.md", "checkpoints/best.safetensors", ".model.1a.partial"):
        (result / name).write_text(name)
    (tmp_path / ".result.1a.partial").mkdir()
    assert set(kill_table.hashes(result)) == {"model.safetensors", ".model.1a.partial"}
    assert len(kill_table.hashes(result, everything=True)) == 4
    assert kill_table.left_overs(result) == [str(tmp_path / ".result.1a.partial"), str(result / ".model.1a.partial")]
    (tmp_path / "table.parquet").write_text("rows")
    assert set(kill_table.hashes(tmp_path / "table")) == {"file"}


def write_benchmark(folder: Path, recall: float, seconds: float) -> None:
    """Write the files of a benchmark's report that hold costs."""
    (folder / "jobs").mkdir(parents=True)
    job = {
        "train_seconds": seconds,
        "measured": [{"metrics": {"recall": recall}, "seconds": seconds}],
        "peak_bytes": int(seconds),
    }
    (folder / "jobs" / "ease.json").write_text(json.dumps(job))
    row = {"model": "EASE", "mean": recall, "train_seconds": seconds, "train_peak_bytes": seconds}
    pq.write_table(pa.Table.from_pylist([row]), folder / "results.parquet")
    costs = [
        "| model | " + " | ".join(kill_table.COST_COLUMNS) + " | run it again |",
        f"| EASE{f' | {seconds} s' * 5} | `cllm4rec` |",
    ]
    lines = [f"| EASE | {recall} |", "", *costs, "", f"Settings: {recall}"]
    (folder / "report.md").write_text("\n".join(lines))


def test_reports_of_benchmarks_are_compared_without_costs(tmp_path: Path) -> None:
    for name, recall, seconds in (("one", 0.5, 1.0), ("again", 0.5, 2.0), ("other", 0.25, 1.0)):
        write_benchmark(tmp_path / name, recall, seconds)
    one, again, other = (kill_table.hashes(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again and set(one) == {"jobs/ease.json", "report.md", "results.parquet"}
    assert not set(one.values()) & set(other.values())
    lines = kill_table.without_costs(tmp_path / "one" / "report.md").decode().splitlines()
    assert lines[2:4] == ["| model | run it again |", "| EASE | `cllm4rec` |"]


@pytest.mark.slow
def test_a_killed_finetuning_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    kill_table.import_libraries()
    killer = kill_table.Killer(tmp_path, seed=0, again=2)
    for number in (signal.SIGKILL, signal.SIGTERM):
        row = kill_table.Row()
        killer.episode("finetune", number, 2, row)
        assert (row.episodes, row.equal, row.clean_ups, row.left_over, row.notes) == (1, 1, 0, 0, [])
