"""Estimated memory of a process that aligns GPT-2, Llama-1B and LLaMA-7B on 1, 2 and 8 processes, from configurations alone.

    python recipes/experiments/memory_table.py
    python recipes/experiments/memory_table.py --measure

No weight is read: models are built on the device `meta`, and activations are counted on one and on two layers. With `--measure`,
two processes train a small backbone each way, whole and sharded, and the table shows the peak of resident memory and the
estimate of the trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from modeling_cllm4rec.lcrec.arguments import AlignArguments
from modeling_cllm4rec.lcrec.configuration_lcrec import LCRecConfig
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.parameters import choose_semantic_id_rows
from modeling_cllm4rec.training.estimates import (
    ACTIVATION_SLACK,
    FLOAT,
    GB,
    LIBRARIES,
    MemoryEstimate,
    Units,
    activation_bytes_of,
    word_loss_bytes,
)
from modeling_cllm4rec.training.sharding import decoder_layers

INDEX_TOKENS = 1024
"""Four levels of 256 codes, as in the paper."""
BACKBONES: dict[str, PreTrainedConfig] = {
    "GPT-2": GPT2Config(),
    "Llama-1B": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "LLaMA-7B": LlamaConfig(),
}
"""The shapes of gpt2, Llama-3.2-1B and huggyllama/llama-7b."""
TUNED: tuple[Any, ...] = ("frozen", "lora", "full")
PROCESSES = (1, 2, 8)


def model_of(config: PreTrainedConfig, arguments: AlignArguments) -> LCRecForRecommendation:
    """Return an LC-Rec model without weights, trained as the arguments say."""
    config.vocab_size += INDEX_TOKENS
    with torch.device("meta"):
        model = LCRecForRecommendation(LCRecConfig(text_config=config, num_items=10**6, num_levels=4, codebook_size=256))
        choose_semantic_id_rows(model, arguments)
    return model


def memory(
    config: PreTrainedConfig, arguments: AlignArguments, rows: int, length: int, processes: tuple[int, ...]
) -> list[MemoryEstimate]:
    """Return the estimate of a process for each number of processes; one process holds the whole model.

    Args:
        rows, length: documents of one pass, and tokens of each.
    """
    model = model_of(config, arguments)
    units = Units.of(model, decoder_layers(model))
    per_token, per_square = activation_bytes_of(config, arguments)
    step = {
        "activations": int(ACTIVATION_SLACK * rows * (per_token * length + per_square * length**2)),
        "word logits": word_loss_bytes(model, rows * length),
    }
    found = []
    for number in processes:
        held = {**units.held_bytes(number, average=False), "libraries": LIBRARIES}
        if number == 1:
            # Under autocast the weights' copies in 16 bits last as long as a step.
            casts = units.layers * units.layer * FLOAT // 2 if arguments.bf16 else 0
            own = {"gradients": FLOAT * units.trained, "weights in 16 bits": casts}
            found.append(MemoryEstimate(held, {"steps": {**own, **step}}))
            continue
        whole = units.step_bytes(number, arguments.bf16, reshard_after_forward=True)
        found.append(MemoryEstimate(held, {"steps": {**whole, **step}, "sums of gradients": units.sum_bytes(number)}))
    return found


def print_table(rows: int, length: int) -> None:
    """Print GB of memory for each backbone, kind of tuning and number of processes."""
    print("| backbone | tuned | " + " | ".join(f"{number} processes" for number in PROCESSES) + " | largest part on 8 |")
    print("|---|---|" + "---|" * (len(PROCESSES) + 1))
    for name, config in BACKBONES.items():
        for tune in TUNED:
            arguments = AlignArguments(data="d", output="o", index="i", backbone="b", tune=tune, bf16=True)
            found = memory(type(config)(**config.to_dict()), arguments, rows, length, PROCESSES)
            sizes = " | ".join(f"{estimate.total / GB:.1f}" for estimate in found)
            part = max(found[-1].parts, key=lambda part: found[-1].parts[part])
            print(f"| {name} | {tune} | {sizes} | {part} {found[-1].parts[part] / GB:.1f} |", flush=True)


# ---- small cases, measured ----

SHAPE: dict[str, Any] = {"vocab_size": 2000, "hidden_size": 768, "layers": 8, "heads": 12, "context_length": 128}


def measure() -> None:
    """Print estimated and measured memory of two processes that align a small backbone."""
    print("| tuned | weights | estimate, GB | peak of the processes, GB | ratio |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for tune in TUNED:
            for fsdp in (False, True):
                seen = measured(folder, tune, fsdp)
                peak = max(one["peak"] for one in seen)
                estimate = seen[0]["estimate"]
                kind = "sharded" if fsdp else "whole"
                peaks = " and ".join(f"{one['peak'] / GB:.2f}" for one in seen)
                print(f"| {tune} | {kind} | {estimate / GB:.2f} | {peaks} | {estimate / peak:.2f} |", flush=True)


def prepare(folder: Path) -> None:
    """Write data, a backbone and an index into a folder."""
    from memory_estimates import make_data

    from modeling_cllm4rec.corpora.data_folder import RecommendationData
    from modeling_cllm4rec.lcrec.arguments import IndexArguments
    from modeling_cllm4rec.lcrec.indexing import index_items
    from modeling_cllm4rec.training.backbones import train_backbone

    data = RecommendationData.load(make_data(folder, num_users=64, num_items=200, history=12, words=10))
    train_backbone(data, folder / "backbone", epochs=0, **SHAPE)
    points = np.random.default_rng(0).normal(size=(data.num_items, 8)).astype(np.float32)
    shape: dict[str, Any] = {"num_levels": 2, "codebook_size": 16, "method": "rk-means"}
    index_items(IndexArguments(data=str(data.folder), output=str(folder / "index"), **shape), points)


def measured(folder: Path, tune: str, fsdp: bool) -> list[dict[str, Any]]:
    """Train on two processes, and return the estimate and the peak of each."""
    output = folder / f"{tune}-{fsdp}"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = [*words, "--case", str(folder), tune, str(int(fsdp)), str(output)]
    ended = subprocess.run(run, env=environment, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr[-3000:])
    return [json.loads((output / f"{number}.json").read_text()) for number in range(2)]


def run_one(folder: Path, tune: Any, fsdp: bool, output: Path) -> None:
    """Train on this process of two, and write its estimate and its peak of resident memory during the steps."""
    from modeling_cllm4rec.core.processes import process_number
    from modeling_cllm4rec.lcrec.alignment import align
    from modeling_cllm4rec.training import trainer

    noted: dict[str, Any] = {}
    estimated = trainer.training_memory

    def note(*given: Any) -> MemoryEstimate:
        # From here on: the whole model that each process reads at first is part of the peak, but not of training.
        Path("/proc/self/clear_refs").write_text("5")
        estimate = estimated(*given)
        noted["estimate"], noted["line"] = estimate.total, estimate.line()
        return estimate

    trainer.training_memory = note  # type: ignore[assignment]
    align(
        AlignArguments(
            data=str(folder / "data"),
            index=str(folder / "index"),
            backbone=str(folder / "backbone"),
            output=str(output / "run"),
            tune=tune,
            fsdp=fsdp,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            tasks=["seqrec"],
            eval_users=16,
            num_beams=10,
        )
    )
    status = Path("/proc/self/status").read_text()
    noted["peak"] = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{process_number()}.json").write_text(json.dumps(noted))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="documents of one pass")
    parser.add_argument("--length", type=int, default=512, help="tokens of a document")
    parser.add_argument("--measure", action="store_true", help="train small cases on two processes of this machine (Linux)")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        folder, tune, fsdp, output = arguments.case
        run_one(Path(folder), tune, bool(int(fsdp)), Path(output))
    elif arguments.measure:
        measure()
    else:
        print_table(arguments.rows, arguments.length)


if __name__ == "__main__":
    main()
