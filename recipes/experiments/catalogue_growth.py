"""Time and memory of one task on a catalogue of a given size with random embeddings.

    python recipes/experiments/catalogue_growth.py --task score --items 1000000

It prints one line of JSON. training_speed.py runs it for each task and size in a separate process, so that the peak memory of one
case does not include that of another.
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
    """Return the function to time: the best 100 items of each row, or the loss of a training step and its gradients."""
    if task == "score":
        return lambda: top_items(F.linear(hidden, table), min(TOP, len(table)))
    kinds: dict[str, ItemLoss] = {"exact": "exact", "chunked": "chunked", "sampled": "sampled"}
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(len(table), (len(hidden), TARGETS), generator=generator)
    hidden.requires_grad_(True)
    rows = torch.nn.Embedding.from_pretrained(table, freeze=False, sparse=task == "sampled")

    def step() -> None:
        hidden.grad = rows.weight.grad = None
        nll = multinomial_nll(hidden, rows, targets, item_loss=kinds[task], generator=generator)
        nll.mean().backward()

    return step


def measure(task: str, num_items: int, batch: int, width: int, repeats: int, seed: int) -> dict[str, Any]:
    """Return the median seconds of a task, items scored per second, and bytes of memory before the tables exist and at peak."""
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
    median = statistics.median(seconds[1:])  # the first run is a warm-up
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
    flags.add_argument("--items", type=int, required=True, help="catalogue size")
    flags.add_argument("--batch", type=int, default=64, help="rows per batch")
    flags.add_argument("--width", type=int, default=384, help="embedding width")
    flags.add_argument("--repeats", type=int, default=3, help="timed runs; the median is reported")
    flags.add_argument("--threads", type=int, default=0, help="torch threads; 0 keeps the default")
    flags.add_argument("--seed", type=int, default=0, help="random seed")
    arguments = flags.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(
        json.dumps(measure(arguments.task, arguments.items, arguments.batch, arguments.width, arguments.repeats, arguments.seed))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
