"""The processes of a distributed run: the work is shared out by number, and sums are exchanged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed


def process_number() -> int:
    """Return the number of this process, 0 without `torch.distributed`."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def process_count() -> int:
    """Return the number of processes, 1 without `torch.distributed`."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


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


__all__ = ["process_count", "process_number", "sum_over_processes"]
