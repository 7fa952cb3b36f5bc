"""Time and peak memory of indexing large catalogues with random clustered embeddings, part by part.

    python recipes/experiments/index_growth.py --items 100000 1000000 --widths 64 384 --steps 20

The RQ-VAE trains `--steps` steps only. The hours of its whole default training are extrapolated from them. All other parts run
whole: the start of the codebooks, one revival of dead codes, latents, nearest codes, uniform mapping, unique codes. Each case
runs in its own process.

    python recipes/experiments/index_growth.py --stage --items 1000000 --widths 64

`--stage` measures the command itself, from a prepared data folder to a saved index: `index_items` with the embeddings given, and
one pass of the RQ-VAE over the items.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.hub.machine import peak_memory
from modeling_cllm4rec.lcrec.arguments import IndexArguments
from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.semantic_ids import assign_unique_codes, nearest_codes, shared_codes
from modeling_cllm4rec.lcrec.uniform_mapping import spread_conflicts

METHODS = ("rqvae", "rk-means")
CLUSTERS, ROWS = 2000, 65_536


def clustered_embeddings(num_items: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (J, width) float32 embeddings around 2,000 centres."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(CLUSTERS, width)).astype(np.float32)
    embeddings = np.empty((num_items, width), dtype=np.float32)
    for start in range(0, num_items, ROWS):
        part = embeddings[start : start + ROWS]
        part[:] = centres[generator.integers(0, CLUSTERS, len(part))] + 0.3 * generator.normal(size=part.shape)
    return embeddings


def measure(method: str, num_items: int, width: int, steps: int) -> dict[str, Any]:
    """Return CPU seconds of each part of the indexing, bytes at the peak, and the items whose nearest codes were shared."""
    settings = IndexArguments(data="data", output="output")
    embeddings = clustered_embeddings(num_items, width)
    shape: dict[str, Any] = {"hidden_dims": settings.hidden_dims, "latent_dim": settings.latent_dim}
    if method == "rk-means":
        shape = {"hidden_dims": [], "latent_dim": width}
    torch.manual_seed(0)
    model = RQVAEModel(RQVAEConfig(width, num_levels=settings.num_levels, codebook_size=settings.codebook_size, **shape))
    points, seconds = torch.from_numpy(embeddings), {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = run()
        seconds[name] = time.process_time() - start
        return result

    def train() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
        for rows in torch.randint(num_items, (steps, settings.per_device_train_batch_size)):
            optimizer.zero_grad()
            model(points[rows], uniform_last=True).loss.backward()
            optimizer.step()

    timed("codebooks", lambda: model.initialize_codebooks(points))
    if method == "rqvae":
        timed("steps", train)
        used = torch.ones(settings.num_levels, settings.codebook_size, dtype=torch.bool)
        used[0, 0] = False
        timed("revival", lambda: model.revive_dead_codes(points, used, seed=0))
    model.eval()
    latents, codebooks = timed("latents", lambda: model.latents(embeddings)), model.codebook_array
    plain = timed("nearest", lambda: nearest_codes(latents, codebooks))
    spread = timed("uniform", lambda: spread_conflicts(latents, codebooks, plain, settings.sinkhorn_epsilon))
    timed("unique", lambda: assign_unique_codes(latents, codebooks, spread))
    epochs = settings.epochs_of(num_items)
    whole = epochs * -(-num_items // settings.per_device_train_batch_size)
    return {"seconds": seconds, "peak_bytes": peak_memory(), "shared": len(shared_codes(plain)), "default_steps": whole}


def write_catalogue(num_items: int, folder: Path) -> Path:
    """Prepare a data folder in which each of so many items has one interaction; a user has ten."""
    numbers = np.arange(num_items)
    items = [f"B{number:09}" for number in numbers.tolist()]
    interactions = pa.table({"user_id": numbers // 10, "item_id": items, "timestamp": numbers})
    return prepare_tables(interactions, pa.table({"item_id": items}), None, folder, split="leave-one-out").folder


def measure_stage(method: str, num_items: int, width: int, folder: Path) -> dict[str, Any]:
    """Return CPU seconds and bytes at the peak of `index_items`, with one pass of the RQ-VAE; the index is below the data."""
    embeddings = clustered_embeddings(num_items, width)
    settings: dict[str, Any] = {"data": str(folder), "output": str(folder / f"{method}-{width}"), "method": method}
    start = time.process_time()
    found, progress = index_items(IndexArguments(**settings, max_steps=1), embeddings)
    assert found is not None
    return {"seconds": time.process_time() - start, "peak_bytes": peak_memory(), "epochs": progress.epoch}


def print_stages(arguments: argparse.Namespace) -> None:
    """Measure the whole stage, each case in a process of its own, and print a table."""
    print("| method | width | items | CPU seconds | peak, GB |\n|---|---|---|---|---|")
    for num_items in arguments.items:
        with tempfile.TemporaryDirectory() as folder:
            data = write_catalogue(num_items, Path(folder) / "data")
            for method in arguments.methods:
                for width in arguments.widths:
                    row = run_case("--stage", "--data", str(data), method=method, width=width, items=num_items)
                    gigabytes = row["peak_bytes"] / 1e9
                    print(f"| {method} | {width} | {num_items:,} | {row['seconds']:,.0f} | {gigabytes:.2f} |", flush=True)


def run_case(*flags: str, method: str, width: int, items: int) -> dict[str, Any]:
    """Measure one case in a process of its own."""
    command = [sys.executable, __file__, "--case", "--methods", method, "--items", str(items), "--widths", str(width), *flags]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000], help="catalogue sizes")
    flags.add_argument("--widths", type=int, nargs="+", default=[64, 384], help="widths of the embeddings")
    flags.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="how vectors are quantized")
    flags.add_argument("--steps", type=int, default=20, help="training steps of the RQ-VAE that are timed")
    flags.add_argument("--stage", action="store_true", help="measure the whole stage, not its parts")
    flags.add_argument("--data", help="with --stage and --case: a data folder of so many items")
    flags.add_argument("--case", action="store_true", help="measure one case in this process and print it as JSON")
    arguments = flags.parse_args(argv)
    if arguments.case:
        torch.set_num_threads(1)
        case = (arguments.methods[0], arguments.items[0], arguments.widths[0])
        print(json.dumps(measure_stage(*case, Path(arguments.data)) if arguments.stage else measure(*case, arguments.steps)))
        return 0
    if arguments.stage:
        print_stages(arguments)
        return 0
    parts = ("codebooks", "revival", "latents", "nearest", "uniform", "unique")
    print(f"| method | width | items | {' | '.join(parts)} | training, hours (extrapolated) | peak, GB |")
    print("|---|---|---|" + "---|" * (len(parts) + 2))
    for method in arguments.methods:
        for width in arguments.widths:
            for num_items in arguments.items:
                row = run_case("--steps", str(arguments.steps), method=method, width=width, items=num_items)
                took = " | ".join(f"{row['seconds'][name]:,.0f} s" if name in row["seconds"] else "" for name in parts)
                each = row["seconds"].get("steps", 0.0) / arguments.steps
                hours = f"{each * row['default_steps'] / 3600:.1f}" if each else ""
                print(f"| {method} | {width} | {num_items:,} | {took} | {hours} | {row['peak_bytes'] / 1e9:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
