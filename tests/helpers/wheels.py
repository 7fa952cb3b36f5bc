"""The wheel of this checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "build", "dist", "site", "data", "runs", "reports", "*.egg-info", "__pycache__", "tests"
)
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the checkout, without its dependencies, and return its file in a folder."""
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=NOT_SOURCE)
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"], check=True)
    shutil.rmtree(folder / "source")
    (wheel,) = folder.glob("cllm4rec-*.whl")
    return wheel
