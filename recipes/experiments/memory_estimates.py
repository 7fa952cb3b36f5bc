"""Estimated and measured memory of the item head, short trainings and indexing, each in a separate process.

    python recipes/experiments/memory_estimates.py
    python recipes/experiments/memory_estimates.py --case pretrain-wide

It prints a row per case with the ratio estimated / measured. On CPU, measured memory is the peak resident size of the process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate.state import AcceleratorState
from catalogue_growth import measure

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import FinetuningStage, load_start
from modeling_cllm4rec.cllm4rec.parameters import choose_trainable
from modeling_cllm4rec.cllm4rec.pretraining import PretrainingStage, new_model
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.hub.machine import peak_memory
from modeling_cllm4rec.lcrec.alignment import AlignmentStage, new_lcrec_model
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.lcrec.parameters import choose_semantic_id_rows
from modeling_cllm4rec.training import estimates
from modeling_cllm4rec.training.backbones import train_backbone
from modeling_cllm4rec.training.launch import start_processes
from modeling_cllm4rec.training.precision import frozen_weights_in
from modeling_cllm4rec.training.trainer import run

TOLERANCE = 0.25
WORDS = "amber basin cedar delta ember field grove haven inlet jetty knoll lagoon meadow north ocean prairie".split()
NARROW: dict[str, Any] = {"vocab_size": 2000, "hidden_size": 128, "layers": 2, "heads": 4, "context_length": 128}
WIDE: dict[str, Any] = {"vocab_size": 2000, "hidden_size": 384, "layers": 6, "heads": 12, "context_length": 256}


def make_data(folder: Path, num_users: int, num_items: int, history: int, words: int) -> Path:
    """Write a data folder of random interactions and texts that keeps all items."""
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(num_users), history)
    items = np.concatenate([generator.choice(num_items, history, replace=False) for _ in range(num_users)])
    texts = [" ".join(generator.choice(WORDS, words)) for _ in range(num_items)]
    catalogue = pa.table({"item_id": np.arange(num_items), "title": texts, "description": texts})
    pairs = pa.table({"user_id": users, "item_id": items})
    return prepare_tables(pairs, catalogue, None, folder / "data", keep_all_items=True).folder


def head(task: str, num_items: int) -> Callable[[Path], tuple[int, int]]:
    """Return a case of catalogue_growth.py: one step of the item head alone."""

    def case(folder: Path) -> tuple[int, int]:
        measured = measure(task, num_items, batch=64, width=384, repeats=1, seed=0)
        growth = estimates.item_head_bytes(num_items, 384, 64, task)  # type: ignore[arg-type]
        return measured["bytes_before"] + growth + estimates.LIBRARIES, measured["peak_bytes"]

    return case


def training(kind: str, shape: dict[str, Any], sizes: dict[str, int], **more: Any) -> Callable[[Path], tuple[int, int]]:
    """Return a case that trains a stage for a short time."""

    def case(folder: Path) -> tuple[int, int]:
        data = RecommendationData.load(make_data(folder, **sizes))
        backbone = str(train_backbone(data, folder / "backbone", epochs=0, **shape))
        AcceleratorState._reset_state(reset_partial_state=True)  # train_backbone has set it to fp32
        shared: dict[str, Any] = {"data": str(data.folder), "output": str(folder / "run"), "num_train_epochs": 1, **more}
        stage = STAGES[kind](data, backbone, shared)
        processes = start_processes(stage.arguments)
        with frozen_weights_in(torch.bfloat16 if stage.arguments.precision == "bf16" else None, stage.model.backbone):
            estimate = estimates.training_memory(stage, processes.device)
        print(estimate.line(), file=sys.stderr)
        run(stage, processes)
        return estimate.total, peak_memory()

    return case


def pretraining_stage(data: Any, backbone: str, shared: dict[str, Any]) -> PretrainingStage:
    """Build the stage as `pretrain` does."""
    arguments = PretrainArguments(**shared, backbone=backbone, warmup_epochs=0)
    model, tokenizer = new_model(data, arguments)
    stage = PretrainingStage(model, tokenizer, data, arguments)
    choose_trainable(model, arguments, texts=len(stage.texts) > 0)
    return stage


def finetuning_stage(data: Any, backbone: str, shared: dict[str, Any]) -> FinetuningStage:
    """Build the stage as `finetune` does, from a model without pretraining."""
    model, tokenizer = new_model(data, PretrainArguments(**shared, backbone=backbone))
    start = Path(shared["output"]) / "pretrained"
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    arguments = FinetuneArguments(**shared)
    model, words = load_start(arguments, data)
    stage = FinetuningStage(model, words, data, arguments)
    choose_trainable(model, arguments, texts=False)
    return stage


def alignment_stage(data: Any, backbone: str, shared: dict[str, Any]) -> AlignmentStage:
    """Build the stage as `align` does, with random semantic IDs."""
    index = str(Path(shared["output"]).with_name("index"))
    index_items(IndexArguments(data=shared["data"], output=index, method="random"))
    arguments = AlignArguments(**shared, backbone=backbone, index=index, tasks=["seqrec", "item2index=0.1"], eval_users=64)
    model, tokenizer = new_lcrec_model(data, arguments)
    stage = AlignmentStage(model, tokenizer, data, arguments)
    choose_semantic_id_rows(model, arguments)
    return stage


STAGES: dict[str, Callable[[Any, str, dict[str, Any]], Any]] = {
    "pretrain": pretraining_stage,
    "finetune": finetuning_stage,
    "align": alignment_stage,
}


def indexing(num_items: int, method: str) -> Callable[[Path], tuple[int, int]]:
    """Return a case that indexes random embeddings."""

    def case(folder: Path) -> tuple[int, int]:
        data = make_data(folder, num_users=200, num_items=num_items, history=10, words=2)
        embeddings = np.random.default_rng(0).normal(size=(num_items, 384)).astype(np.float32)
        arguments = IndexArguments(
            data=str(data),
            output=str(folder / "index"),
            method=method,  # type: ignore[arg-type]
            num_train_epochs=2,
            warmup_epochs=1,
        )
        estimate = estimates.indexing_memory(num_items, 384, arguments.codebook_size, arguments.latent_dim)
        print(estimate.line(), file=sys.stderr)
        index_items(arguments, embeddings)
        return estimate.total, peak_memory()

    return case


SMALL = {"num_users": 256, "num_items": 1000, "history": 12, "words": 20}
BIG = {"num_users": 128, "num_items": 60_000, "history": 20, "words": 2}
FEW: dict[str, Any] = {"content_share": 0.1, "text_validation_share": 0.005}
FEWER: dict[str, Any] = {"max_text_tokens": 8, "content_share": 0.001, "text_validation_share": 0.001}
CASES: dict[str, Callable[[Path], tuple[int, int]]] = {
    **{f"{task}-{items}": head(task, items) for items in (100_000, 500_000) for task in ("exact", "chunked", "sampled")},
    "pretrain-narrow": training("pretrain", NARROW, SMALL, max_text_tokens=24, **FEW),
    "pretrain-wide": training("pretrain", WIDE, SMALL, max_text_tokens=24, batch_size=64, **FEW),
    "pretrain-wide-bf16": training("pretrain", WIDE, SMALL, max_text_tokens=24, per_device_train_batch_size=64, bf16=True, **FEW),
    "pretrain-items": training("pretrain", WIDE, BIG, item_loss="sampled", **FEWER),
    "pretrain-items-exact": training("pretrain", WIDE, BIG, batch_size=4, **FEWER),
    "finetune-wide-full": training("finetune", WIDE, SMALL, tune="full", batch_size=64, average_decay=0.9),
    "finetune-items": training("finetune", WIDE, BIG, batch_size=64),
    "align-wide": training("align", WIDE, SMALL, max_text_tokens=24, batch_size=32),
    "index-rqvae": indexing(40_000, "rqvae"),
    "index-rk-means": indexing(10_000, "rk-means"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0 if every estimate is within 25% of the measured memory."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--case", choices=CASES, help="run one case in this process and print it as JSON")
    flags.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases of the table (default: all)")
    arguments = flags.parse_args(argv)
    if arguments.case:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            estimated, measured = CASES[arguments.case](Path(folder))
        print(json.dumps({"case": arguments.case, "estimated": estimated, "measured": measured}))
        return 0
    print("| case | estimated, GB | measured, GB | ratio |\n|---|---|---|---|")
    worst = 0.0
    for name in arguments.only:
        command = [sys.executable, __file__, "--case", name]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        ratio = row["estimated"] / row["measured"]
        worst = max(worst, abs(ratio - 1))
        print(f"| {name} | {row['estimated'] / 1e9:.2f} | {row['measured'] / 1e9:.2f} | {ratio:.2f} |", flush=True)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
