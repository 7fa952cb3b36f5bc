"""Crash-safe checkpoints: written to a temporary folder, then renamed; safetensors and JSON only."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modeling_cllm4rec.core.errors import FileWriteError, InputError
from modeling_cllm4rec.corpora.atomic_files import atomic_folder, restore_folder

logger = logging.getLogger(__name__)

PREFIX = "step-"


def write_atomically(
    folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], more_files: Mapping[str, str] | None = None
) -> None:
    """Write a folder of `tensors.safetensors` and `state.json`, whole or not at all.

    Args:
        more_files: further files, name -> content.

    Raises:
        FileWriteError: the folder cannot be written, such as on a full disk; earlier checkpoints are unchanged.
    """
    try:
        with atomic_folder(folder) as temporary:
            # Tied or sliced tensors share memory, which safetensors refuses; each name gets a copy of its own.
            copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
            save_file(copies, temporary / "tensors.safetensors")
            for name, content in {"state.json": json.dumps(state), **(more_files or {})}.items():
                (temporary / name).write_text(content, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise FileWriteError(
            f"the checkpoint {folder} could not be written ({error}); earlier checkpoints are untouched: make room on the "
            "disk, then continue with resume=True"
        ) from error


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and the state that `write_atomically` wrote.

    Raises:
        InputError: a file is missing or cut off.
    """
    restore_folder(folder)
    try:
        return load_file(folder / "tensors.safetensors"), json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(
            f"the checkpoint {folder} cannot be read ({error}); delete it, or start again with overwrite=True"
        ) from error


def any_saved(folder: Path) -> bool:
    """Check whether a stage has saved anything that a new run would lose: a checkpoint of a step, or the best epoch."""
    return latest(folder) is not None or any(folder.glob("best*"))


def latest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a stage, None if there is none."""
    steps = _steps(folder)
    return steps[-1] if steps else None


def read_latest(folder: Path) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return the newest checkpoint of a stage that can be read, its tensors and its state; None if there is none at all.

    A newer one that is torn, as after a crash of the machine, is left where it is, with a warning.

    Raises:
        InputError: there are checkpoints, but none can be read.
    """
    steps = _steps(folder)[::-1]
    for number, step in enumerate(steps):
        try:
            return step, *read(step)
        except InputError as error:
            if number == len(steps) - 1:
                raise
            logger.warning("%s; going on from %s", error, steps[number + 1].name)
    return None


def save_step(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    more_files: Mapping[str, str] | None = None,
) -> None:
    """Write the checkpoint of an optimizer step, then remove all older ones except the one before.

    The one before stays until the next checkpoint, in case the newest one cannot be read.
    """
    write_atomically(folder / f"{PREFIX}{step:08d}", tensors, state, more_files)
    keep = _steps(folder)[-2:]
    for path in folder.glob(f"{PREFIX}*"):  # also temporary folders that a kill left behind
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load named tensors of a checkpoint into the optimizer."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            # A copy, because the tensor is mapped to the checkpoint's file, which a later checkpoint removes.
            state.setdefault(int(index), {})[name] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _steps(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a stage, oldest first."""
    numbered = {path.name[len(PREFIX) :]: path for path in folder.glob(f"{PREFIX}*")}
    return [numbered[number] for number in sorted(filter(str.isdigit, numbered), key=int)]
