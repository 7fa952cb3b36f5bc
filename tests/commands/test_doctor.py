"""`cllm4rec doctor`: what it finds, and what it makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from modeling_cllm4rec.commands import doctor

GB = doctor.GB


def problems_text(problems: Any) -> str:
    return " | ".join(f"{one['problem']} -> {one['what_to_do']} ({one['serious']})" for one in problems)


def test_json_has_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.main(["--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"versions", "machine", "devices", "threads", "free_bytes", "extras", "problems"}
    assert found["devices"][-1] == "cpu" and found["threads"]["processors"] >= 1
    assert found["free_bytes"]["disk"] > 0 and found["free_bytes"]["memory"] > 0


def test_a_serious_problem_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "declared_requirements", lambda extra="": [Requirement("numpy>=2")])
    monkeypatch.setattr(doctor, "accelerate_settings", dict)
    assert doctor.main([]) == 0
    (tmp_path / "evaluate.py").write_text("")
    assert doctor.main([]) == 1
    assert f"! evaluate.py in {tmp_path} hides the library evaluate" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_trace(tmp_path: Path) -> None:
    """As in `cllm4rec doctor | head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "modeling_cllm4rec", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


def test_versions() -> None:
    required = [Requirement("numpy>=1"), Requirement("torch>=99"), Requirement("nobody-has-this>=1")]
    said = problems_text(doctor.wrong_versions(required))
    assert "numpy" not in said
    assert "; >=99 is needed -> run: pip install 'torch>=99' (True)" in said
    assert "nobody-has-this is not installed" in said
    assert "only found on the path" in problems_text(doctor.wrong_versions([]))


def test_extras() -> None:
    assert doctor.examine_extra([Requirement("nobody-has-this>=1"), Requirement("numpy")]) == {
        "present": False,
        "missing": ["nobody-has-this"],
        "install": "pip install 'nobody-has-this>=1'",
    }
    assert doctor.examine_extra([Requirement("numpy")]) == {"present": True, "missing": [], "install": None}


def test_extras_of_contributors_are_not_missing_to_a_user() -> None:
    found = doctor.examine(Path())
    for one in found["extras"].values():
        one |= {"present": False, "missing": ["nobody-has-this"], "install": "pip install nobody-has-this"}
    shown = doctor.report(found).partition("extras\n")[2]
    assert "  serve            missing nobody-has-this" in shown and "  dev " not in shown and "  release " not in shown
    found["extras"]["dev"]["present"] = True
    assert "  dev              present" in doctor.report(found)


def test_devices() -> None:
    fine = {"built_for": None, "works": False, "driver": False}
    assert problems_text(doctor.wrong_devices(fine)) == ""
    assert problems_text(doctor.wrong_devices({"built_for": "13.0", "works": True, "driver": True})) == ""
    assert "which this driver does not run" in problems_text(
        doctor.wrong_devices({"built_for": "13.0", "works": False, "driver": True})
    )
    assert "knows no CUDA" in problems_text(doctor.wrong_devices(fine | {"driver": True}))
    assert "several GB of disk" in problems_text(doctor.wrong_devices(fine | {"built_for": "13.0"}))


def test_settings_of_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert doctor.accelerate_settings() == {}
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("use_cpu: true\nnum_processes: 2\ndistributed_type: FSDP\n")
    said = problems_text(doctor.wrong_accelerate(doctor.accelerate_settings()))
    assert "2 processes on CPU, of which `accelerate launch` starts one" in said
    assert "torchrun --nproc_per_node 2" in said
    assert "configured for FSDP, but parameters must be whole on every process" in said


def test_room_and_threads() -> None:
    free = {"memory": 50 * GB, "disk": 50 * GB}
    assert problems_text(doctor.little_room(free, {"torch": 2, "processors": 2})) == ""
    assert problems_text(doctor.little_room(free, {"torch": None, "processors": 2})) == ""
    said = problems_text(doctor.little_room({"memory": GB, "disk": 50 * GB}, {"torch": 8, "processors": 2}))
    assert "1.0 GB of memory are free" in said and "OMP_NUM_THREADS=2" in said and "disk" not in said
