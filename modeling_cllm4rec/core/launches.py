"""What `torchrun` and `accelerate launch` tell each process in its environment."""

from __future__ import annotations

import os

__all__ = ["launched_processes"]


def launched_processes() -> tuple[int, int]:
    """Return the number of this process and how many `torchrun` or `accelerate launch` started; (0, 1) without them.

    Example:
        >>> launched_processes()
        (0, 1)
    """
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
