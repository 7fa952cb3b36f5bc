"""Checkpoints that survive a kill at any moment: written beside, then renamed; safetensors and JSON, nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modeling_cllm4rec.core.errors import FileWriteError, InputError

PREFIX = "step-"


def write_atomically(folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Write a folder of `tensors.safetensors` and `state.json` that is either whole or not there.

    Raises:
        OSError: with what to do, when it cannot be written (a full disk); what was saved before stays.
    """
    beside, replaced = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".replaced")
    try:
        _put_back(folder)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(copies, beside / "tensors.safetensors")
        (beside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for file in beside.iterdir():
            _flush(file)
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        beside.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        _put_back(folder)
        raise FileWriteError(
            f"the checkpoint {folder} could not be written ({error}); earlier checkpoints are untouched: make room on the "
            "disk, then go on with --resume"
        ) from error


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_atomically` wrote.

    Raises:
        InputError: a file is missing or cut off.
    """
    _put_back(folder)
    try:
        return load_file(folder / "tensors.safetensors"), json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"the checkpoint {folder} cannot be read ({error}); delete it to go on from the one before") from error


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage."""
    steps = _steps(folder)
    return steps[-1] if steps else None


def save_step(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Write the checkpoint of an optimizer step and, once it is whole, remove older ones but the last."""
    write_atomically(folder / f"{PREFIX}{step:08d}", tensors, state)
    keep = _steps(folder)[-2:]
    for path in folder.glob(f"{PREFIX}*"):  # what a kill left half written, too
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put named tensors back into the optimizer."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor.clone()  # not the mapped file, which goes some steps later
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _steps(folder: Path) -> list[Path]:
    """The whole checkpoints of a stage, oldest first."""
    numbered = {path.name[len(PREFIX) :]: path for path in folder.glob(f"{PREFIX}*")}
    return [numbered[number] for number in sorted(filter(str.isdigit, numbered), key=int)]


def _put_back(folder: Path) -> None:
    """Undo a replacement that a kill cut off between its two renames."""
    replaced = folder.with_name(folder.name + ".replaced")
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
