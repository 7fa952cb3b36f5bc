"""Users per second and memory of recommending to many users, next to the plain forward pass of the same backbone.

    python recipes/experiments/bulk_inference.py --items 1000000
    python recipes/experiments/bulk_inference.py --users 4096 --part-size 128 --ray-workers 1 2

It prints one line of JSON. Weights are random, histories have 20 items. One process measures one size, because the peak of memory
is that of the process. `PYTHONPATH` chooses another checkout to compare with.

`--ray-workers` runs `cllm4rec recommend` for the same users in one process, then on Ray with each number of workers, and prints a
line for each. Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import GPT2Config

from modeling_cllm4rec.cllm4rec.configuration_cllm4rec import CLLM4RecConfig
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.core.catalogue import Catalogue
from modeling_cllm4rec.hub.machine import peak_memory

HISTORY = 20


def make_model(items: int, width: int, layers: int) -> CLLM4RecForRecommendation:
    """Return a model with random weights whose item ids are numbers."""
    torch.manual_seed(0)
    text = GPT2Config(vocab_size=1000, n_embd=width, n_layer=layers, n_head=max(1, width // 64), n_positions=64)
    prompt = {"known": [[1, 2], "user", [3], "items"], "anonymous": [[1, 2, 3], "items"]}
    config = CLLM4RecConfig(text, num_users=1, num_items=items, recommendation_prompts=prompt)
    model = CLLM4RecForRecommendation(config).eval()
    model.catalogue = Catalogue(np.arange(items))
    return model


def plain_forward(model: CLLM4RecForRecommendation, batch: int, users: int) -> float:
    """Return the seconds of the backbone's decoder alone, on random embeddings of prompts of the same length."""
    embeds = torch.randn(batch, HISTORY + 3, model.config.hidden_size)
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(0, users, batch):
            model.backbone.base_model(inputs_embeds=embeds, use_cache=False)
    return time.perf_counter() - start


def measure(items: int, users: int, batch: int, k: int, width: int, layers: int) -> dict[str, Any]:
    """Return users per second of `recommend` and of the plain forward pass, and bytes at the peak above the loaded model."""
    model = make_model(items, width, layers)
    histories = np.random.default_rng(0).integers(0, items, (users, HISTORY)).tolist()
    plain_forward(model, batch, batch)
    model.recommend(histories=histories[:1], k=k, batch_size=1)  # the ids' dictionary is built by the first question
    plain = plain_forward(model, batch, users)
    before, start = peak_memory(), time.perf_counter()
    rows = sum(table.num_rows for table in model.iter_recommendations(histories=histories, k=k, batch_size=batch))
    seconds = time.perf_counter() - start
    return {
        "items": items,
        "users": users,
        "batch": batch,
        "k": k,
        "width": width,
        "layers": layers,
        "rows": rows,
        "users_per_second": round(users / seconds, 1),
        "plain_users_per_second": round(users / plain, 1),
        "peak_bytes_above_model": peak_memory() - before,
    }


def measure_engines(folder: Path, workers: Sequence[int], part_size: int, **size: Any) -> Iterator[dict[str, Any]]:
    """Yield rows per second of `cllm4rec recommend` in one process, and on Ray with each number of workers.

    `rows_per_second` counts from the start of the command to its end. `rows_per_second_after_first_part` counts from the first
    part that is there to the last one, without the start of Ray and the loading of the model.
    """
    users, items, k = size["users"], size["items"], size["k"]
    make_model(items, size["width"], size["layers"]).save_pretrained(folder / "model")
    histories = np.random.default_rng(0).integers(0, items, (users, HISTORY)).tolist()
    pq.write_table(pa.table({"history": histories}), folder / "histories.parquet")
    question = ["--model", folder / "model", "--histories", folder / "histories.parquet", "--part-size", part_size]
    question += ["--batch-size", size["batch"], "--k", k, "--device", "cpu"]
    rows = None
    for number in (0, *workers):
        output = folder / f"workers-{number}"
        engine = ["--engine", "ray", "--num-workers", number] if number else []
        start = time.perf_counter()
        words = [sys.executable, "-m", "modeling_cllm4rec", "recommend", *question, "--output", output, *engine]
        subprocess.run([str(word) for word in words], check=True, capture_output=True)
        seconds = time.perf_counter() - start
        found = pq.read_table(output)
        rows = found if rows is None else rows
        written = sorted(file.stat().st_mtime for file in output.glob("part-*.parquet"))
        yield {
            **size,
            "part_size": part_size,
            "engine": f"ray, workers: {number}" if number else "one process",
            "same_rows": found.equals(rows),
            "rows_per_second": round(found.num_rows / seconds, 1),
            "rows_per_second_after_first_part": round((users - part_size) * k / (written[-1] - written[0]), 1),
        }


def main(argv: list[str] | None = None) -> int:
    """Print one line of JSON."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--items", type=int, default=100_000, help="size of the catalogue")
    flags.add_argument("--users", type=int, default=512, help="users")
    flags.add_argument("--batch", type=int, default=256, help="users per pass")
    flags.add_argument("--k", type=int, default=10, help="recommendations for each")
    flags.add_argument("--width", type=int, default=64, help="width of the backbone and of item rows")
    flags.add_argument("--layers", type=int, default=2, help="layers of the backbone")
    flags.add_argument("--ray-workers", type=int, nargs="+", help="measure the command in one process and on Ray workers")
    flags.add_argument("--part-size", type=int, default=64, help="users of a part, with --ray-workers")
    size = vars(flags.parse_args(argv))
    workers, part_size = size.pop("ray_workers"), size.pop("part_size")
    if workers is None:
        print(json.dumps(measure(**size)), flush=True)
        return 0
    with TemporaryDirectory() as folder:
        for line in measure_engines(Path(folder), workers, part_size, **size):
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
