"""Checkpoints on disk: whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_cllm4rec.corpora import atomic_files
from modeling_cllm4rec.training import checkpoints

TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).view(2, 3),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "count": torch.tensor(7.0),
    "turned": torch.arange(6.0).view(2, 3).T,  # not contiguous
}
STATE = {"progress": {"step": 3, "best": None, "history": [{"loss": 0.1}]}}


def numbered(value: float) -> Mapping[str, torch.Tensor]:
    return {"matrix": torch.full((50, 50), value)}


def assert_reads(folder: Path, value: float) -> None:
    tensors, state = checkpoints.read(folder)
    assert torch.equal(tensors["matrix"], torch.full((50, 50), value))
    assert state == {"value": value}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    checkpoints.write_atomically(tmp_path / "best", TENSORS, STATE)
    tensors, state = checkpoints.read(tmp_path / "best")
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], one) and tensors[name].dtype == one.dtype for name, one in TENSORS.items())
    assert names(tmp_path) == ["best"]
    assert names(tmp_path / "best") == ["state.json", "tensors.safetensors"]


def test_shared_tensors_are_written_apart(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory; ours are copied first."""
    checkpoints.write_atomically(tmp_path / "best", {"one": TENSORS["matrix"], "other": TENSORS["matrix"]}, {})
    tensors, _ = checkpoints.read(tmp_path / "best")
    assert torch.equal(tensors["one"], tensors["other"])


def test_replacing(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        checkpoints.write_atomically(tmp_path / "best", numbered(value), {"value": value})
    assert_reads(tmp_path / "best", 2.0)
    assert names(tmp_path) == ["best"]


def test_the_last_two_steps_stay(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    for step in (5, 10, 15):
        checkpoints.save_step(tmp_path, step, numbered(step), {"value": step})
    assert names(tmp_path) == ["step-00000010", "step-00000015"]
    assert checkpoints.latest(tmp_path) == tmp_path / "step-00000015"
    assert_reads(tmp_path / "step-00000010", 10)


def test_steps_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        checkpoints.save_step(tmp_path, step, numbered(step), {"value": step})
    assert checkpoints.latest(tmp_path) == tmp_path / "step-100000000"


def test_what_a_kill_left_half_written_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    checkpoints.save_step(tmp_path, 10, numbered(10), {"value": 10})
    for name in ("step-00000020.partial", "step-00000020.replaced", "step-00000030.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensors.safetensors").write_bytes(b"torn")
    assert checkpoints.latest(tmp_path) == tmp_path / "step-00000010"
    checkpoints.save_step(tmp_path, 15, numbered(15), {"value": 15})
    assert names(tmp_path) == ["step-00000010", "step-00000015"]
    assert_reads(tmp_path / "step-00000015", 15)


@pytest.mark.parametrize("again", ["read", "write"])
def test_a_kill_between_the_two_renames_of_a_replacement(again: str, tmp_path: Path) -> None:
    """The old one is renamed, the new one is complete but not yet renamed: the old one counts."""
    checkpoints.write_atomically(tmp_path / "best", numbered(1.0), {"value": 1.0})
    (tmp_path / "best").rename(tmp_path / "best.replaced")
    shutil.copytree(tmp_path / "best.replaced", tmp_path / "best.partial")
    if again == "write":
        checkpoints.write_atomically(tmp_path / "best", numbered(2.0), {"value": 2.0})
        assert names(tmp_path) == ["best"]
    assert_reads(tmp_path / "best", 1.0 if again == "read" else 2.0)


def test_only_the_main_process_looks_into_the_folder_that_it_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that still lists the files would find the folder gone, and end with an error of its own."""

    def gone(*args: object) -> None:
        raise FileNotFoundError("the main process has renamed the folder")

    monkeypatch.setattr(checkpoints, "DTensor", torch.Tensor)  # every tensor counts as sharded
    monkeypatch.setattr(checkpoints, "process_number", lambda: 1)
    monkeypatch.setattr(checkpoints.distributed, "barrier", lambda: None)
    monkeypatch.setattr(checkpoints.checkpoint, "save", lambda tensors, storage_writer: None)
    monkeypatch.setattr(Path, "glob", gone)
    checkpoints.write_atomically(tmp_path / "best", TENSORS, STATE)
    monkeypatch.undo()
    assert names(tmp_path) == []


@pytest.mark.parametrize("moment", ["tensors", "state", "flush", "rename"])
def test_a_failure_at_any_moment_leaves_the_earlier_ones(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save_step(tmp_path, 5, numbered(5), {"value": 5})
    checkpoints.write_atomically(tmp_path / "best", numbered(5), {"value": 5})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half_written(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:100])
        full()

    with monkeypatch.context() as patch:
        if moment == "tensors":
            patch.setattr(checkpoints, "save_file", half_written)
        elif moment == "state":
            patch.setattr(Path, "write_text", full)
        elif moment == "flush":
            patch.setattr(atomic_files, "_flush", full)
        else:
            rename = Path.rename
            patch.setattr(Path, "rename", lambda path, new: full() if path.suffix == ".partial" else rename(path, new))
        for folder in (tmp_path / "step-00000010", tmp_path / "best"):
            message = f"{folder.name} could not be written .*No space left.*earlier checkpoints are untouched.*resume=True"
            with pytest.raises(OSError, match=message):
                checkpoints.write_atomically(folder, numbered(10), {"value": 10})
    assert checkpoints.latest(tmp_path) == tmp_path / "step-00000005"
    assert_reads(tmp_path / "step-00000005", 5)
    assert_reads(tmp_path / "best", 5)
    assert names(tmp_path) == ["best", "step-00000005"]


def test_a_disk_that_really_fills_up(tmp_path: Path) -> None:
    """The system refuses to let a file grow beyond 4 KB, in the middle of the tensors."""
    checkpoints.save_step(tmp_path, 5, {"matrix": torch.ones(2)}, {"value": 5})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="could not be written .*make room on the disk, then continue with resume=True"):
            checkpoints.save_step(tmp_path, 10, numbered(10), {"value": 10})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000005"]
    assert torch.equal(checkpoints.read(tmp_path / "step-00000005")[0]["matrix"], torch.ones(2))


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["torn", "missing", "empty"])
def test_a_damaged_checkpoint_says_so(file: str, damage: str, tmp_path: Path) -> None:
    checkpoints.save_step(tmp_path, 5, numbered(5), {"value": 5})
    path = tmp_path / "step-00000005" / file
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2] if damage == "torn" else b"")
    with pytest.raises(
        ValueError, match="checkpoint .*step-00000005 cannot be read .*delete it, or start again with overwrite=True"
    ):
        checkpoints.read(tmp_path / "step-00000005")


def steps(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        for number, parameter in enumerate(parameters[:2]):  # the third never gets a gradient
            parameter.grad = gradient * (number + 1)
        optimizer.step()


def test_a_restored_optimizer_goes_on_to_the_bit(tmp_path: Path) -> None:
    gradients = list(torch.randn(6, 40, 5, generator=torch.Generator().manual_seed(0)))

    def fresh() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        parameters = [torch.nn.Parameter(torch.ones(40, 5)) for _ in range(3)]
        return parameters, torch.optim.AdamW(parameters, lr=0.1, fused=True)

    whole, optimizer = fresh()
    steps(optimizer, whole, gradients)
    first, optimizer = fresh()
    steps(optimizer, first, gradients[:3])
    saved = {f"model.{number}": one for number, one in enumerate(first)}
    checkpoints.save_step(tmp_path, 3, {**saved, **checkpoints.optimizer_tensors(optimizer)}, {})
    path = tmp_path / "step-00000003" / "tensors.safetensors"
    content = path.read_bytes()
    tensors, _ = checkpoints.read(path.parent)
    second, optimizer = fresh()
    with torch.no_grad():
        for number, parameter in enumerate(second):
            parameter.copy_(tensors[f"model.{number}"])
    checkpoints.restore_optimizer(optimizer, tensors)
    steps(optimizer, second, gradients[3:])
    assert all(torch.equal(one, other) for one, other in zip(second, whole, strict=True))
    assert path.read_bytes() == content  # the optimizer does not write into the file that it was read from
