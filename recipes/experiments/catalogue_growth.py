"""Time and memory of one task over a catalogue of a given size, with random tables, in a process of its own.

    python recipes/catalogue_growth.py --task score --items 1000000

benchmark.py runs it for each task and size; it prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from modeling_cllm4rec.core.losses import ItemLoss, multinomial_nll
from modeling_cllm4rec.core.top_items import top_items
from modeling_cllm4rec.hub.machine import peak_memory

TASKS = ("score", "exact", "chunked", "sampled")
TOP = 100
TARGETS = 10


def make_task(task: str, hidden: torch.Tensor, table: torch.Tensor, seed: int) -> Callable[[], Any]:
    """What is timed: the best 100 items of each row, or the loss of a training step and its gradients."""
    if task == "score":
        return lambda: top_items(F.linear(hidden, table), min(TOP, len(table)))
    kinds: dict[str, ItemLoss] = {"exact": "exact", "chunked": "chunked", "sampled": "sampled"}
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(len(table), (len(hidden), TARGETS), generator=generator)
    hidden.requires_grad_(True)
    table.requires_grad_(True)

    def step() -> None:
        hidden.grad = table.grad = None
        multinomial_nll(hidden, table, targets, item_loss=kinds[task], generator=generator).mean().backward()

    return step


def measure(task: str, num_items: int, batch: int, width: int, repeats: int, seed: int) -> dict[str, Any]:
    """Median seconds of a task, items scored per second, and memory in bytes: before the tables were made, and at most."""
    before = peak_memory()
    generator = torch.Generator().manual_seed(seed)
    table = torch.empty(num_items, width).normal_(std=0.02, generator=generator)
    hidden = torch.empty(batch, width).normal_(generator=generator)
    run = make_task(task, hidden, table, seed)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])  # the first run warms up
    return {
        "task": task,
        "items": num_items,
        "seconds": median,
        "items_per_second": batch * num_items / median,
        "peak_bytes": peak_memory(),
        "bytes_before": before,
        "table_bytes": num_items * width * 4,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--task", choices=TASKS, required=True, help="best items, or a training step with one of the losses")
    flags.add_argument("--items", type=int, required=True, help="size of the catalogue")
    flags.add_argument("--batch", type=int, default=64, help="rows scored at once")
    flags.add_argument("--width", type=int, default=384, help="width of the item rows")
    flags.add_argument("--repeats", type=int, default=3, help="timed runs, of which the median counts")
    flags.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its default")
    flags.add_argument("--seed", type=int, default=0, help="start of all random numbers")
    given = flags.parse_args(argv)
    if given.threads:
        torch.set_num_threads(given.threads)
    print(json.dumps(measure(given.task, given.items, given.batch, given.width, given.repeats, given.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
