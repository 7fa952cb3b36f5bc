"""Documents per second that the host makes for training, alone and next to a device.

    python recipes/experiments/feeding.py
    python recipes/experiments/feeding.py --data data/mine --steps 100 --batch-size 64

The documents are those of pretraining (both passes), finetuning and alignment. `alone` is the CPU time of `Stage.inputs`. The
other columns are by number of DataLoader workers (`dataloader_num_workers`): the documents that arrive in a process that waits
some milliseconds a step, as for a device, and those that the trainer trains on, with forward pass, gradient and optimizer step.
Without --data a synthetic data set is generated.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory_estimates import finetuning_stage, pretraining_stage
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.synthetic import make_synthetic_dataset
from modeling_cllm4rec.hub.model_card import machine
from modeling_cllm4rec.lcrec.alignment import AlignmentStage, new_lcrec_model
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.training.backbones import train_backbone
from modeling_cllm4rec.training.parameters import start_fingerprint
from modeling_cllm4rec.training.stages import Part, Stage, Step
from modeling_cllm4rec.training.step_plan import Parts
from modeling_cllm4rec.training.trainer import RecommenderTrainer

KINDS = ("collaborative", "content", "recommendation", "align")


def make_stages(data: RecommendationData, folder: Path, batch_size: int) -> dict[str, Stage]:
    """Return kind of document -> a stage that trains on it, over a small GPT-2 with random weights."""
    shape = {"vocab_size": 2000, "hidden_size": 64, "layers": 2, "heads": 4, "context_length": 512}
    backbone = str(train_backbone(data, folder / "backbone", epochs=0, **shape))
    common = {"data": str(data.folder), "per_device_train_batch_size": batch_size, "max_text_tokens": 256}

    def named(name: str) -> dict[str, Any]:
        return {**common, "output": str(folder / name)}

    pretraining = pretraining_stage(data, backbone, named("pretraining"))
    index_items(IndexArguments(data=str(data.folder), output=str(folder / "index"), method="random"))
    arguments = AlignArguments(**named("alignment"), backbone=backbone, index=str(folder / "index"), on_missing_text="title-only")
    model, tokenizer = new_lcrec_model(data, arguments)
    return {
        "collaborative": pretraining,
        "content": pretraining,
        "recommendation": finetuning_stage(data, backbone, named("finetuning")),
        "align": AlignmentStage(model, tokenizer, data, arguments),
    }


def some_parts(stage: Stage, kind: str, steps: int) -> list[Part]:
    """Return the first parts of a kind in the last epoch, in which all kinds occur."""
    epoch = stage.num_epochs - 1
    numbered = (
        Part(step.kind, step.documents, len(step.documents), epoch, number)
        for number, step in enumerate(stage.steps(epoch))
        if step.kind == kind
    )
    return list(itertools.islice(numbered, steps))


def rate_alone(stage: Stage, parts: list[Part]) -> float:
    """Return the documents per CPU second that `inputs` makes."""
    start = time.process_time()
    for part in parts:
        stage.count_items(part, stage.inputs(part))
    return sum(len(part.documents) for part in parts) / (time.process_time() - start)


def rate_with_device(stage: Stage, parts: list[Part], workers: int, seconds: float) -> float:
    """Return the documents per second that arrive in a process that waits for a device in each step."""
    loader: DataLoader = DataLoader(Parts(stage), batch_size=None, sampler=parts, num_workers=workers)
    arriving = iter(loader)
    next(arriving)  # workers start
    start, documents = time.perf_counter(), 0
    for sample in arriving:
        time.sleep(seconds)
        documents += len(sample["part"].documents)
    return documents / (time.perf_counter() - start)


class Clock(TrainerCallback):
    """Note when steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def rate_in_training(stage: Stage, parts: list[Part], workers: int) -> float:
    """Return the documents per second of training on some parts, from the end of the first step on; nothing is saved."""
    plan, last, trained = [Step(part.kind, part.documents) for part in parts], stage.num_epochs - 1, copy.copy(stage)
    trained.arguments = copy.copy(stage.arguments)  # type: ignore[misc]
    trained.arguments.trainer = {"dataloader_num_workers": workers}
    trained.steps = lambda epoch: plan if epoch == last else []  # type: ignore[method-assign]
    trained.validate = lambda epoch: {}  # type: ignore[method-assign]
    trainer, clock = RecommenderTrainer(trained, start_fingerprint(stage.model)), Clock()
    trainer.add_callback(clock)
    trainer._save_checkpoint = lambda *rest: None  # type: ignore[method-assign]
    trainer.fit()
    return sum(len(part.documents) for part in parts[1:]) / (clock.ends[-1] - clock.ends[0])


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data", help="data folder (default: a synthetic data set)")
    flags.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of documents")
    flags.add_argument("--steps", type=int, default=60, help="most batches of a kind that are timed")
    flags.add_argument("--batch-size", type=int, default=32, help="documents of a batch")
    flags.add_argument("--repeats", type=int, default=5, help="timed rounds; the median is reported")
    flags.add_argument("--device-ms", type=float, default=2.0, help="milliseconds that a step waits as for a device")
    flags.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="DataLoader workers next to the device")
    arguments = flags.parse_args(argv)
    torch.set_num_threads(1)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data:
            data = RecommendationData.load(arguments.data)
        else:
            made = make_synthetic_dataset(num_users=2000, num_items=500, interactions_per_user=20)
            data = prepare_tables(made.interactions, made.items, made.users, Path(folder) / "data", split="leave-one-out")
        stages = make_stages(data, Path(folder), arguments.batch_size)
        cases = {kind: some_parts(stages[kind], kind, arguments.steps) for kind in arguments.kinds}
        rows = []
        for kind, parts in tqdm(cases.items(), unit="kind", disable=None):
            stage = stages[kind]
            tokens = sum(int(stage.inputs(part)["attention_mask"].sum()) for part in parts)
            documents = sum(len(part.documents) for part in parts)
            alone = statistics.median(rate_alone(stage, parts) for _ in range(arguments.repeats))
            # The numbers of workers take turns, so that a drift of the machine favours none.
            rounds = [
                [
                    (rate_with_device(stage, parts, workers, arguments.device_ms / 1000), rate_in_training(stage, parts, workers))
                    for workers in arguments.workers
                ]
                for _ in range(arguments.repeats)
            ]
            others = np.median(np.array(rounds), axis=0).T.ravel()  # waiting, then training, each by workers
            rows.append([kind, f"{tokens / documents:.0f}", *(f"{rate:,.0f}" for rate in (alone, *others))])
    print(f"{machine()}; {data.num_users:,} users, {data.num_items:,} items, batches of {arguments.batch_size}\n")
    columns = [
        f"{step}, {workers} worker{'' if workers == 1 else 's'}, per second"
        for step in (f"{arguments.device_ms:g} ms a step", "training")
        for workers in arguments.workers
    ]
    print("| " + " | ".join(["documents", "tokens", "alone, per CPU second", *columns]) + " |")
    print("|---" * (3 + len(columns)) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
