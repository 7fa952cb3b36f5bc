"""`recommend --engine ray`: the rows of one process, workers that are lost, and flags that say something else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from modeling_cllm4rec.commands import ray_engine
from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.commands.ray_engine import PartWriter, _check_resources, _of_a_worker
from modeling_cllm4rec.commands.recommend import parser
from modeling_cllm4rec.commands.recommendation_parts import QUESTION_FILE
from modeling_cllm4rec.core.errors import ExistingFileError, InputError, RunError
from modeling_cllm4rec.corpora.data_folder import RecommendationData

SIZES = ["--batch-size", "4", "--part-size", "4", "--k", "5", "--device", "cpu"]


def same_files(one: Path, other: Path) -> None:
    """Check that two folders hold the same question and the same rows."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert (one / QUESTION_FILE).read_text() == (other / QUESTION_FILE).read_text()
    for name in names[1:]:
        assert pq.read_table(one / name).equals(pq.read_table(other / name)), name


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "ray"], "--engine is 'ray'; its workers write the parts of a folder: give --output FOLDER"),
        (["--engine", "ray", "--output", "one.parquet"], "its workers write the parts of a folder: give --output FOLDER"),
        (["--engine", "ray", "--output", "x", "--shard", "1/2"], "--shard is '1/2'; the workers of Ray share the parts out"),
        (["--engine", "ray", "--output", "x", "--num-workers", "0"], "--num-workers is 0"),
        (["--engine", "ray", "--output", "x", "--cpus-per-worker", "nan"], "--cpus-per-worker is nan; give a positive number"),
        (["--engine", "ray", "--output", "x", "--gpus-per-worker", "1.5"], "--gpus-per-worker is 1.5; give a whole number"),
        (
            ["--engine", "ray", "--output", "x", "--device", "cuda:1"],
            "--device is 'cuda:1'; Ray gives each worker its GPUs",
        ),
        (["--num-workers", "2"], "--num-workers: only Ray has workers; add --engine ray, or leave it out"),
        (["--ray-address", "auto"], "--ray-address: only Ray has workers; add --engine ray, or leave it out"),
        (["--engine", "dask"], "argument --engine: invalid choice: 'dask'"),
    ],
)
def test_flags_that_say_something_else_are_refused(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["recommend", "--model", "nowhere", *flags])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_launch_of_processes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["recommend", "--model", "nowhere", "--engine", "ray", "--output", str(tmp_path / "x")]) == 2
    assert "--engine: 2 processes were launched; the workers of Ray share the parts out" in capsys.readouterr().err


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("modeling_cllm4rec.core.optional_packages.find_spec", lambda name: None)
    assert main(["recommend", "--model", "nowhere", "--engine", "ray", "--output", str(tmp_path / "x")]) == 1
    said = capsys.readouterr().err
    assert "--engine ray needs ray" in said and "which is not installed; run: pip install" in said and "torchrun" in said


def test_a_worker_writes_the_parts_of_one_process(model: Path, tmp_path: Path) -> None:
    """What an actor does, in this process: any order, once each, and no part of another question."""
    question = ["--model", str(model), *SIZES]
    assert main(["recommend", *question, "--output", str(tmp_path / "one")]) == 0
    flags = parser().parse_args([*question, "--output", str(tmp_path / "many"), "--engine", "ray"])
    workers = [PartWriter(_of_a_worker(flags)) for _ in range(2)]
    rows = [workers[number % 2]({"item": number}) for number in reversed(range(15))]
    assert all(row["written"] and row["place"].startswith("cpu, float32") and row["warnings"] == [] for row in rows)
    assert workers[0]({"item": 3})["written"] is False
    same_files(tmp_path / "one", tmp_path / "many")
    flags.k = 6
    with pytest.raises(ExistingFileError, match="holds recommendations of another question"):
        PartWriter(_of_a_worker(flags))({"item": 0})


def test_warnings_of_a_worker_come_back(model: Path, data: RecommendationData, tmp_path: Path) -> None:
    user = data.users["user_id"][0].as_py()
    seen = data.items["item_id"][int(data.histories("train").items[0])].as_py()
    question = ["--model", str(model), "--users", str(user), "--candidates", str(seen), "--output", str(tmp_path / "x")]
    flags = parser().parse_args([*question, "--k", "1", "--device", "cpu", "--engine", "ray"])
    row = PartWriter(_of_a_worker(flags))({"item": 0})
    assert len(row["warnings"]) == 1 and "no item is left to recommend to 1 of the users" in row["warnings"][0]


@pytest.mark.parametrize(
    ("accelerator", "flags", "gpus", "device"),
    [
        (False, [], 0.0, "cpu"),
        (True, [], 1.0, None),
        (True, ["--device", "cpu"], 0.0, "cpu"),
        (False, ["--gpus-per-worker", "0.5"], 0.5, None),  # the machine that starts the cluster's work needs no GPU
        (True, ["--gpus-per-worker", "0"], 0.0, "cpu"),
    ],
)
def test_a_worker_computes_on_the_gpus_that_ray_gives_it(
    accelerator: bool, flags: list[str], gpus: float, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator)
    arguments = _of_a_worker(parser().parse_args(["--model", "m", "--output", "x", "--engine", "ray", *flags]))
    assert (arguments.gpus_per_worker, arguments.device) == (gpus, device)
    assert (arguments.num_workers, arguments.cpus_per_worker) == (1, 1.0)


def test_workers_for_which_there_is_no_room_are_refused() -> None:
    arguments = parser().parse_args(["--model", "m", "--engine", "ray", "--num-workers", "3", "--cpus-per-worker", "1.5"])
    arguments.gpus_per_worker = 0
    with pytest.raises(InputError, match="num_workers is 3, with 1.5 CPUs each; this machine has 4: lower num_workers or c"):
        _check_resources(arguments, {"CPU": 4.0})
    _check_resources(arguments, {"CPU": 4.5})
    arguments.gpus_per_worker = 1
    with pytest.raises(InputError, match="num_workers is 3, with 1 GPUs each; this machine has 0: lower num_workers or g"):
        _check_resources(arguments, {"CPU": 16.0})


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, "engine: Ray cannot be started here \\(timed out\\); run the command again"),
        ("10.0.0.1:6379", "ray_address is '10.0.0.1:6379'; the cluster cannot be reached: timed out"),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(address: str | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**settings: Any) -> None:
        assert settings["address"] == (address or "local")
        raise Exception("timed out")  # as Ray does

    fake = types.SimpleNamespace(init=fails, data=None)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.data", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.exceptions", types.SimpleNamespace(RayActorError=OSError, RayTaskError=OSError))
    arguments = parser().parse_args(["--model", "m", "--engine", "ray", *(["--ray-address", address] if address else [])])
    with pytest.raises(RunError, match=words):
        ray_engine._run([0], _of_a_worker(arguments))


def workers_of(process: Any) -> list[psutil.Process]:
    """Return the processes of the actors that hold a model, below the command."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "PartWriter" in " ".join(child.cmdline()) or "PartWriter" in child.name():
                found.append(child)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_write_the_rows_of_one_process(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="extra ray is not installed")
    question = ["recommend", "--model", str(model), *SIZES, "--part-size", "1"]
    assert main([*question, "--output", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "modeling_cllm4rec", *question, "--output", str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": str(Path(ray_engine.__file__).parents[2])}
    sizes = ["--num-workers", "2", "--cpus-per-worker", "0.5"]
    with subprocess.Popen([*command, "--engine", "ray", *sizes], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            killed = False
            while process.poll() is None and not killed:
                if list((tmp_path / "two").glob("part-*.parquet")) and (workers := workers_of(process)):
                    workers[0].kill()
                    killed = True
                time.sleep(0.002)
            said = process.communicate(timeout=300)[1]
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert killed and "two: all parts are there" in said and "Ray workers (2) on cpu" in said
    same_files(tmp_path / "one", tmp_path / "two")
