"""The processes of a distributed run: the work is shared out by number, and sums are exchanged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from .launches import launched_processes

Piece = TypeVar("Piece")

PROCESS_TIMEOUT = timedelta(hours=2)
"""Time that processes wait for each other."""
LAST_TENSORS = 0.1
"""Seconds in which the threads of gloo drop the tensors of the last exchange; sharded weights keep the threads alive."""


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the processes of a launch in `torch.distributed` within a block, to exchange sums; without a launch do nothing."""
    if launched_processes()[1] == 1 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("gloo", timeout=PROCESS_TIMEOUT)  # sums of numbers on the CPU, whatever computes them
    try:
        yield
    finally:
        leave_processes()


def leave_processes() -> None:
    """Leave the processes of `torch.distributed`; without them do nothing. Call it when no exchange is under way.

    Threads of gloo drop the tensors of the last exchange a moment after it: one that does so while the interpreter ends gets
    SIGABRT ("terminate called without an active exception"), and the launch reports a failure after all work was done.
    """
    if distributed.is_available() and distributed.is_initialized():
        time.sleep(LAST_TENSORS)
        distributed.destroy_process_group()


def process_number() -> int:
    """Return the number of this process, 0 without `torch.distributed`."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def process_count() -> int:
    """Return the number of processes, 1 without `torch.distributed`."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def shared_out(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, bool]]:
    """Yield every n-th piece of some work, from the number of this process on, and whether it counts.

    All n processes get equally many: one with fewer gets the first piece once more, which does not count. Sharded weights are
    gathered in every pass, so that processes with more passes than others would wait for ever.

    Example:
        >>> list(shared_out(["a", "b"]))
        [('a', True), ('b', True)]
    """
    number, count = process_number(), process_count()
    for start in range(0, len(pieces), count):
        counts = start + number < len(pieces)
        yield pieces[start + number if counts else 0], counts


def sum_over_processes(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the sum of the arrays of all processes, on every process; all of them must call this.

    Args:
        values: of the same shape on all processes.

    Example:
        >>> sum_over_processes([1, 2]).tolist()
        [1.0, 2.0]
    """
    array = np.array(values, dtype=np.float64)
    if process_count() == 1:
        return array
    # NCCL exchanges tensors of its own devices alone; all other backends take those of the CPU.
    device = torch.accelerator.current_accelerator() if distributed.get_backend() in ("nccl", "xccl") else torch.device("cpu")
    shared = torch.from_numpy(array).to(device)
    distributed.all_reduce(shared)
    return shared.cpu().numpy()


__all__ = [
    "joined_processes",
    "leave_processes",
    "process_count",
    "process_number",
    "shared_out",
    "sum_over_processes",
]
