"""Names of the places and types of weights that a command can choose, for its help, which need not wait for torch."""

from __future__ import annotations

__all__ = ["DEVICE_MAPS", "DTYPE_NAMES"]

DTYPE_NAMES = ("float32", "bfloat16", "float16")
"""Types of weights; `devices.DTYPES` has those of torch."""
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Plans by which accelerate spreads a model over devices, CPU and disk."""
