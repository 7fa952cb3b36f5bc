"""Crash-safe checkpoints: written to a temporary folder, then renamed; safetensors and JSON only.

Of a sharded run each process writes and reads its own rows, by torch's distributed checkpoints in the format of safetensors. Any
number of processes can read them again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from modeling_cllm4rec.core.errors import FileWriteError, InputError
from modeling_cllm4rec.core.processes import process_number
from modeling_cllm4rec.corpora.atomic_files import PARTIAL, atomic_folder, restore_folder

logger = logging.getLogger(__name__)

PREFIX = "step-"
WHOLE, STATE = "tensors.safetensors", "state.json"
FILES = "files"
"""Key in the state of a sharded checkpoint: the number of its files of tensors."""

Place = Callable[[str], torch.Tensor | None]
"""Name of a tensor -> one with as many rows, which are where its own shall be; None for a whole tensor."""


def write_atomically(
    folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], more_files: Mapping[str, str] | None = None
) -> None:
    """Write a folder of tensors and `state.json`, whole or not at all.

    If a tensor is sharded, all processes must call this, and see the same folder; else one process.

    Args:
        more_files: further files, name -> content.

    Raises:
        FileWriteError: the folder cannot be written, such as on a full disk; earlier checkpoints are unchanged.
    """
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    is_main = not sharded or process_number() == 0
    try:
        with atomic_folder(folder) if is_main else nullcontext(folder.with_name(folder.name + PARTIAL)) as temporary:
            if sharded:
                distributed.barrier()  # the folder is there
                checkpoint.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True))
                if is_main:  # only: its rename may come before another process looks into the folder
                    state = {**state, FILES: len(list(temporary.glob("*.safetensors")))}
            else:
                # Tied or sliced tensors share memory, which safetensors refuses; each name gets a copy of its own.
                copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
                save_file(copies, temporary / WHOLE)
            for name, content in {STATE: json.dumps(state), **(more_files or {})}.items() if is_main else ():
                (temporary / name).write_text(content, encoding="utf-8")
        if sharded:
            distributed.barrier()  # it has its name
    except (OSError, SafetensorError, CheckpointException) as error:
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise FileWriteError(
            f"the checkpoint {folder} could not be written ({reason}); earlier checkpoints are untouched: make room on the "
            "disk, then continue with resume=True"
        ) from error


def read(folder: Path, place: Place | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and the state that `write_atomically` wrote on any number of processes.

    Args:
        place: where the rows of each tensor shall be; without it all tensors are whole.

    Raises:
        InputError: a file is missing or cut off.
    """
    restore_folder(folder)
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if place is None and (folder / WHOLE).is_file():
            return load_file(folder / WHOLE), state
        there, written = len(list(folder.glob("*.safetensors"))), state.get(FILES, 1)
        if there != written:
            raise FileNotFoundError(f"it has {there} of its {written} files of tensors")
        return _read_rows(folder, place or (lambda name: None)), state
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(
            f"the checkpoint {folder} cannot be read ({error}); delete it, or start again with overwrite=True"
        ) from error


def _read_rows(folder: Path, place: Place) -> dict[str, torch.Tensor]:
    """Read tensors, and of each the rows of this process alone."""
    reader = HuggingFaceStorageReader(str(folder))
    tensors = {}
    saved: Any
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        like = place(name)
        if like is not None and like.dim() == 2 and like.shape[:1] == saved.size:  # a number for each row
            like = like.detach()[:, 0]
        if like is None or like.shape != saved.size:  # a counter of the optimizer has the name of a weight's moments
            tensors[name] = torch.empty(saved.size, dtype=saved.properties.dtype)
        else:
            tensors[name] = torch.empty_like(like, dtype=saved.properties.dtype, requires_grad=False)
    checkpoint.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return tensors


def any_saved(folder: Path) -> bool:
    """Check whether a stage has saved anything that a new run would lose: a checkpoint of a step, or the best epoch."""
    return latest(folder) is not None or any(folder.glob("best*"))


def latest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a stage, None if there is none."""
    steps = _steps(folder)
    return steps[-1] if steps else None


def read_latest(folder: Path, place: Place | None = None) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return the newest checkpoint of a stage that can be read, its tensors and its state; None if there is none at all.

    A newer one that is torn, as after a crash of the machine, is left where it is, with a warning.

    Raises:
        InputError: there are checkpoints, but none can be read.
    """
    steps = _steps(folder)[::-1]
    for number, step in enumerate(steps):
        try:
            return step, *read(step, place)
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
    if process_number():  # of a sharded checkpoint
        return
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
