"""How much memory a process took."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Most bytes that this process ever held.

    Linux counts `ru_maxrss` on from the parent process when a program is started, so there the kernel's own line is read.

    >>> peak_memory() > 1_000_000
    True
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes


def peak_device_memory() -> int:
    """Most bytes that this process ever held on the accelerator; 0 without one."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0
