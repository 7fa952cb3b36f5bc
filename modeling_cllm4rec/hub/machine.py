"""Peak memory of a process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held.

    On Linux a new program inherits `ru_maxrss` from its parent process, so the line of the kernel in /proc is read instead.

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
    """Return the most bytes that this process has held on the accelerator, 0 without one."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0
