"""Time and peak memory of indexing large catalogues with random clustered embeddings, part by part.

    python recipes/experiments/index_growth.py --items 100000 1000000 --widths 64 384 --steps 20

The RQ-VAE trains `--steps` steps only. The hours of its whole default training are extrapolated from them. All other parts run
whole: the start of the codebooks, one revival of dead codes, latents, nearest codes, uniform mapping, unique codes. Each case
runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from modeling_cllm4rec.hub.machine import peak_memory
from modeling_cllm4rec.lcrec.arguments import IndexArguments
from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.semantic_ids import assign_unique_codes, nearest_codes, shared_codes, spread_last_level

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
    spread = timed("uniform", lambda: spread_last_level(latents, codebooks, plain, settings.sinkhorn_epsilon))
    timed("unique", lambda: assign_unique_codes(latents, codebooks, spread))
    epochs = settings.epochs_of(num_items)
    whole = epochs * -(-num_items // settings.per_device_train_batch_size)
    return {"seconds": seconds, "peak_bytes": peak_memory(), "shared": len(shared_codes(plain)), "default_steps": whole}


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000], help="catalogue sizes")
    flags.add_argument("--widths", type=int, nargs="+", default=[64, 384], help="widths of the embeddings")
    flags.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="how vectors are quantized")
    flags.add_argument("--steps", type=int, default=20, help="training steps of the RQ-VAE that are timed")
    flags.add_argument("--case", action="store_true", help="measure one case in this process and print it as JSON")
    arguments = flags.parse_args(argv)
    if arguments.case:
        torch.set_num_threads(1)
        print(json.dumps(measure(arguments.methods[0], arguments.items[0], arguments.widths[0], arguments.steps)))
        return 0
    parts = ("codebooks", "revival", "latents", "nearest", "uniform", "unique")
    print(f"| method | width | items | {' | '.join(parts)} | training, hours (extrapolated) | peak, GB |")
    print("|---|---|---|" + "---|" * (len(parts) + 2))
    for method in arguments.methods:
        for width in arguments.widths:
            for num_items in arguments.items:
                command = [sys.executable, __file__, "--case", "--methods", method, "--items", str(num_items)]
                command += ["--widths", str(width), "--steps", str(arguments.steps)]
                row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
                took = " | ".join(f"{row['seconds'][name]:,.0f} s" if name in row["seconds"] else "" for name in parts)
                each = row["seconds"].get("steps", 0.0) / arguments.steps
                hours = f"{each * row['default_steps'] / 3600:.1f}" if each else ""
                print(f"| {method} | {width} | {num_items:,} | {took} | {hours} | {row['peak_bytes'] / 1e9:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
