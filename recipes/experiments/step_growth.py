"""CPU time and memory of a training step of CLLM4Rec with sampled items over catalogues of several sizes.

    python recipes/experiments/step_growth.py --items 10000 100000 1000000 --widths 64 384

A step is an L step of pretraining on 32 random histories of 20 items (640 states, 4,096 sampled items, mutual regularization, a
frozen GPT-2 of one layer): loss, gradient, mean over processes, clipping, optimizer. `sparse` is `item_loss: sampled`. `dense` is
the same with `id_optim: optim`, whose gradients and moments are those of whole tables. `shared` is `sparse` on two processes that
share the rows of all four tables; each takes such a step. Each case runs in its own process, or in its own two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from transformers import GPT2Config

from modeling_cllm4rec.cllm4rec.configuration_cllm4rec import CLLM4RecConfig
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.objectives import PretrainingObjective, RegularizationConfig
from modeling_cllm4rec.hub.machine import peak_memory
from modeling_cllm4rec.training.parameters import local_part
from modeling_cllm4rec.training.row_sharding import shard_rows
from modeling_cllm4rec.training.sparse_rows import RowwiseAdagrad, average_over_processes, clip_gradients

KINDS = ("sparse", "dense", "shared")
USERS, WORDS, HISTORIES, HISTORY, PROMPT = 10_000, 1000, 32, 20, 4


def make_model(num_items: int, width: int) -> CLLM4RecForRecommendation:
    """Return a model with random rows, whose collaborative tables train."""
    text = GPT2Config(vocab_size=WORDS, n_embd=width, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    config = CLLM4RecConfig(text_config=text, num_users=USERS, num_items=num_items, id_offset=WORDS)
    model = CLLM4RecForRecommendation(config).requires_grad_(False)
    for table in model.tables("collaborative"):
        table.requires_grad_(True)
    return model


def random_batch(num_items: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return interaction documents: three words, a user, and items."""
    words = torch.randint(WORDS, (HISTORIES, PROMPT - 1), generator=generator)
    users = WORDS + torch.randint(USERS, (HISTORIES, 1), generator=generator)
    items = WORDS + USERS + torch.randint(num_items, (HISTORIES, HISTORY), generator=generator)
    ids = torch.cat([words, users, items], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "prompt_lengths": torch.full((HISTORIES,), PROMPT)}


def measure(kind: str, num_items: int, width: int, repeats: int, seed: int = 0) -> dict[str, float]:
    """Return the median CPU seconds of a step, and bytes: the tables, and the most that was held above the model."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = make_model(num_items, width)
    for table in model.tables("collaborative"):
        table.sparse = kind != "dense"
    if kind == "shared":
        distributed.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for table in (*model.tables("collaborative"), *model.tables("content")):
            shard_rows(table, mesh, torch.device("cpu"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on: each process has read the whole model before
    tables = [table.weight for table in model.tables("collaborative")]
    built = peak_memory()
    optimizer: torch.optim.Optimizer
    if kind != "dense":
        optimizer = RowwiseAdagrad(tables, lr=1e-2)
    else:
        optimizer = torch.optim.AdamW(tables, lr=1e-3, weight_decay=0.0, fused=True)
    seconds = []
    for number in range(repeats + 1):
        start = time.process_time()
        objective = PretrainingObjective("collaborative", RegularizationConfig(), "sampled", seed=number)
        objective(model, HISTORIES, **random_batch(num_items, generator)).loss.backward()  # type: ignore[union-attr]
        if kind != "dense":
            average_over_processes(tables)
            clip_gradients(tables, 10.0)
        else:
            torch.nn.utils.clip_grad_norm_(tables, 10.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    held = sum(local_part(one).numel() * one.element_size() for one in model.parameters())
    if distributed.is_initialized():
        distributed.destroy_process_group()
    # The first step is a warm-up: it allocates.
    return {"seconds": statistics.median(seconds[1:]), "model_bytes": held, "above_model_bytes": peak_memory() - built}


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="catalogue sizes")
    flags.add_argument("--widths", type=int, nargs="+", default=[64, 384], help="widths of the rows")
    flags.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="sparse or dense gradients, or shared tables"
    )
    flags.add_argument("--repeats", type=int, default=5, help="timed steps; the median is reported")
    flags.add_argument("--case", action="store_true", help="measure one case in this process and print it as JSON")
    arguments = flags.parse_args(argv)
    if arguments.case:
        torch.set_num_threads(1)
        print(json.dumps(measure(arguments.kinds[0], arguments.items[0], arguments.widths[0], arguments.repeats)))
        return 0
    print("| width | items | gradients | CPU ms a step | held above the model, GB | model, GB |\n|---|---|---|---|---|---|")
    for width in arguments.widths:
        for num_items in arguments.items:
            for kind in arguments.kinds:
                processes = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if kind == "shared" else []
                command = [sys.executable, *processes, __file__, "--case", "--kinds", kind, "--items", str(num_items)]
                command += ["--widths", str(width), "--repeats", str(arguments.repeats)]
                row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
                sizes = f"{row['above_model_bytes'] / 1e9:.2f} | {row['model_bytes'] / 1e9:.2f}"
                print(f"| {width} | {num_items:,} | {kind} | {row['seconds'] * 1000:,.0f} | {sizes} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
