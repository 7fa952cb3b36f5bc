"""Seconds and memory of loading a prepared data folder, with its histories, in a process that is not the first one.

Each process loads the folder, collects the training histories and counts the items in them, as a baseline or the evaluator does.
The first process of a large folder writes the files that later ones map. Private memory is what a process has for itself (unique
set size); pages of mapped files, which processes share, are not in it.

    python recipes/experiments/load_scale.py data/log-1e6 data/log-1e7
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil


def load_once(folder: Path) -> dict[str, float]:
    """Load a folder in this process, and return what it took."""
    from modeling_cllm4rec.corpora.data_folder import RecommendationData

    before = psutil.Process().memory_full_info().uss
    started, cpu = time.perf_counter(), time.process_time()
    data = RecommendationData.load(folder)
    histories = data.histories("train")
    counts = np.bincount(histories.items, minlength=data.num_items)
    return {
        "interactions": data.interactions.num_rows,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "private_gb": (psutil.Process().memory_full_info().uss - before) / 1e9,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "checksum": float(counts @ np.arange(len(counts), dtype=np.float64)),
    }


def main() -> None:
    """Measure each folder in two processes, and print one line of a table for each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(load_once(arguments.folders[0])))
        return
    print("| interactions | process | seconds | CPU seconds | private memory, GB | peak, GB |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    for folder in arguments.folders:
        for process in ("first", "later"):
            done = subprocess.run([sys.executable, __file__, "--once", str(folder)], check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {found['interactions']:,} | {process} | {found['seconds']:.2f} | {found['cpu_seconds']:.2f} | "
                f"{found['private_gb']:.3f} | {found['peak_gb']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
