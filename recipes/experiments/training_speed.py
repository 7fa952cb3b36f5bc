"""Time training against the released scheme of the paper, and scoring over growing catalogues.

    python recipes/benchmark.py speed
    python recipes/benchmark.py speed --data data/mine --backbone gpt2 --max-text-tokens 128 --output reports/speed

All schemes train the same rows of one model on the same documents in one process, in turn, and their losses are compared
before they are timed. Without --data a small world is generated, without --backbone a GPT-2 of a small shape with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from catalogue_growth import TASKS
from released_scheme import Improvements, ReleasedScheme
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import FinetuningStage
from modeling_cllm4rec.cllm4rec.parameters import choose_trainable
from modeling_cllm4rec.cllm4rec.pretraining import PretrainingStage, new_model
from modeling_cllm4rec.cllm4rec.prompts import Prompts
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.synthetic import make_synthetic_dataset
from modeling_cllm4rec.hub.model_card import LIBRARIES, machine
from modeling_cllm4rec.training.backbones import train_backbone
from modeling_cllm4rec.training.loop import Step
from modeling_cllm4rec.training.parameters import parameter_groups, set_dropout
from modeling_cllm4rec.training.precision import frozen_weights_in


class Training(NamedTuple):
    """How ours trains: what autocast computes in (None: fp32), and the backbone's dropout (None: its own)."""

    dtype: torch.dtype | None
    dropout: float | None


RELEASED = "released"
LADDER = {
    RELEASED: Improvements(),
    "+ one pass": Improvements(one_pass=True),
    "+ tokenized once": Improvements(one_pass=True, tokenized_once=True),
    "+ main tokens only": Improvements(one_pass=True, tokenized_once=True, main_tokens_only=True),
}
OURS: dict[str, Training] = {
    "ours, fp32": Training(None, None),
    "ours, bf16": Training(torch.bfloat16, None),
    "ours, bf16, no dropout": Training(torch.bfloat16, 0.0),
}
"""Ours adds to the ladder: batches bucketed by length, word losses of the frozen head in pieces, and fused AdamW."""
SCHEMES = (*LADDER, *OURS)
KINDS = ("collaborative", "content", "recommendation")
STAGES = {"pretraining": KINDS[:2], "finetuning": KINDS[2:], "both": KINDS}
LARGEST_DIFFERENCE = 1e-3
WARM_UP_BATCHES = 2

Pass = Callable[[str, np.ndarray], None]
"""Trains on documents of one kind."""


class World(NamedTuple):
    """What both schemes work on."""

    released: dict[str, ReleasedScheme]
    pretraining: PretrainingStage
    finetuning: FinetuningStage
    documents: dict[str, np.ndarray]  # kind -> all document numbers

    def stage(self, kind: str) -> PretrainingStage | FinetuningStage:
        """Our stage that reads documents of a kind."""
        return self.finetuning if kind == "recommendation" else self.pretraining

    def lengths(self, kind: str) -> np.ndarray:
        """Tokens of each document of a kind."""
        return self.pretraining.texts.lengths if kind == "content" else self.pretraining.histories.lengths


def make_world(arguments: argparse.Namespace, folder: Path) -> World:
    """Data, model, and both schemes with the same objective: the released code's scaling of the regularization."""
    if arguments.data is None:
        made = make_synthetic_dataset(seed=arguments.seed)
        data = prepare_tables(made.interactions, made.items, made.users, folder / "data", split="random", seed=arguments.seed)
    else:
        data = RecommendationData.load(arguments.data)
    shape = {"vocab_size": 8000, "hidden_size": 384, "layers": 6, "heads": 12, "context_length": 512}
    backbone = arguments.backbone or str(train_backbone(data, folder / "backbone", epochs=0, seed=arguments.seed, **shape))
    common: dict[str, Any] = {
        "data": str(data.folder),
        "output": str(folder / "run"),
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "max_text_tokens": arguments.max_text_tokens,
        "mutual_regularization": "released",
        "drop_user": 0.0,
    }
    asked = PretrainArguments(**common, backbone=backbone, init_ids="random", warmup_epochs=0, text_validation_share=0.0)
    model, tokenizer = new_model(data, asked)
    choose_trainable(model, asked)
    pretraining = PretrainingStage(model, tokenizer, data, asked)
    finetuning = FinetuningStage(model, tokenizer, data, FinetuneArguments(**common))
    released = {
        name: ReleasedScheme(
            model,
            tokenizer,
            data,
            Prompts(),
            pretraining.histories,
            max_text_tokens=arguments.max_text_tokens,
            improvements=improvements,
        )
        for name, improvements in LADDER.items()
        if name in arguments.schemes
    }
    users = pretraining.histories.users
    documents = {"collaborative": users, "content": pretraining.text_train, "recommendation": users}
    return World(released, pretraining, finetuning, {kind: all_ for kind, all_ in documents.items() if len(all_)})


def our_pass(world: World, arguments: argparse.Namespace, training: Training) -> Pass:
    """Training as our loop does it: bucketed batches, the stage's loss, clipping, fused AdamW."""
    model = world.pretraining.model
    optimizer = torch.optim.AdamW(parameter_groups(model, world.pretraining.arguments), fused=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def train(kind: str, documents: np.ndarray) -> None:
        own = {module: module.p for module in model.backbone.modules() if isinstance(module, torch.nn.Dropout)}
        if training.dropout is not None:
            set_dropout(model.backbone, training.dropout)
        with frozen_weights_in(training.dtype, model.backbone):
            train_as_set(kind, documents)
        for module, share in own.items():  # the other schemes train the same model
            module.p = share

    def train_as_set(kind: str, documents: np.ndarray) -> None:
        stage = world.stage(kind)
        for batch in plan_batches(world.lengths(kind)[documents], arguments.batch_size, arguments.seed, epoch=0):
            step = Step(kind, documents[batch])
            optimizer.zero_grad(set_to_none=True)
            with _autocast(model.device, training.dtype):
                loss, _, _ = stage.loss(step, step.documents, 0, torch.Generator())
            loss.backward()
            clip_grad_norm_(parameters, stage.arguments.max_grad_norm)
            optimizer.step()

    return train


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def some_batches(documents: np.ndarray, batch_size: int, steps: int) -> np.ndarray:
    """Documents of `steps` batches, spread evenly over the batches in file order; of all batches when steps is 0."""
    batches = np.split(documents, range(batch_size, len(documents), batch_size))
    if not 0 < steps < len(batches):
        return documents
    return np.concatenate([batches[number] for number in np.linspace(0, len(batches) - 1, steps).astype(int)])


@torch.no_grad()
def compare_losses(world: World, batch_size: int) -> dict[str, dict[str, float]]:
    """kind -> scheme -> loss of one batch, in fp32 and without dropout.

    Raises:
        RuntimeError: a scheme that computes another loss: its speed would not compare.
    """
    losses: dict[str, dict[str, float]] = {}
    world.pretraining.model.eval()
    for kind, documents in world.documents.items():
        batch = some_batches(documents, batch_size, 1)
        step = Step(kind, batch)
        ours = float(world.stage(kind).loss(step, batch, 0, torch.Generator())[0])
        losses[kind] = {"ours": ours} | {name: float(scheme.loss(kind, batch)) for name, scheme in world.released.items()}
        for name, loss in losses[kind].items():
            if not abs(loss - ours) <= LARGEST_DIFFERENCE * abs(ours):
                raise RuntimeError(f"the {kind} loss of one batch is {ours} in our scheme and {loss} in {name!r}")
    return losses


def time_training(world: World, arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """kind -> scheme -> documents per second in each repeat; the schemes take turns, every other time in reverse."""
    passes: dict[str, Pass] = {
        name: (lambda kind, documents, scheme=scheme: scheme.train(kind, documents, arguments.batch_size))  # type: ignore[misc]
        for name, scheme in world.released.items()
    }
    passes |= {name: our_pass(world, arguments, training) for name, training in OURS.items() if name in arguments.schemes}
    rates: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in passes} for kind in world.documents}
    world.pretraining.model.train()
    for kind in world.documents:
        for train in passes.values():
            train(kind, some_batches(world.documents[kind], arguments.batch_size, WARM_UP_BATCHES))
    total = arguments.repeats * len(passes) * len(world.documents)
    with tqdm(total=total, desc="training", unit="pass") as bar:
        for repeat in range(arguments.repeats):
            for kind in world.documents:
                documents = some_batches(world.documents[kind], arguments.batch_size, arguments.steps)
                for name in list(passes)[:: -1 if repeat % 2 else 1]:
                    start = time.perf_counter()
                    passes[name](kind, documents)
                    rates[kind][name].append(len(documents) / (time.perf_counter() - start))
                    bar.update()
    return rates


def summarize(rates: dict[str, dict[str, list[float]]], counts: dict[str, int]) -> dict[str, dict[str, dict[str, float]]]:
    """Kind or stage -> scheme -> documents per second and the ratio to the released scheme (median, least and most).

    A stage is an epoch of its passes: all their documents by the time that they take at the measured rates.
    """
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for group, members in ({kind: (kind,) for kind in counts} | STAGES).items():
        kinds = [kind for kind in members if kind in counts]
        documents = sum(counts[kind] for kind in kinds)
        speeds: dict[str, np.ndarray] = {}  # scheme -> (repeats,) documents per second
        for name in rates[kinds[0]]:
            seconds = np.array([counts[kind] / np.array(rates[kind][name]) for kind in kinds])
            speeds[name] = documents / seconds.sum(axis=0)
        summary[group] = {name: {"documents_per_second": float(np.median(speed))} for name, speed in speeds.items()}
        if RELEASED in speeds:
            for name, speed in speeds.items():
                ratio = speed / speeds[RELEASED]
                spread = {"ratio": np.median(ratio), "least_ratio": ratio.min(), "most_ratio": ratio.max()}
                summary[group][name] |= {key: float(value) for key, value in spread.items()}
    return summary


def measure_task(task: str, num_items: int, repeats: int, threads: int = 0) -> dict[str, Any]:
    """One task over one size of catalogue, in a process of its own, so that its memory is its own."""
    script = Path(__file__).parent / "catalogue_growth.py"
    package = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    sizes = ["--items", str(num_items), "--repeats", str(repeats), "--threads", str(threads)]
    done = subprocess.run([sys.executable, str(script), "--task", task, *sizes], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{task} over {num_items} items ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def as_markdown(report: dict[str, Any]) -> str:
    """The report's tables."""
    setting = report["setting"]
    lines = [f"{setting['machine']}, {setting['threads']} threads; torch {setting['versions']['torch']}.", ""]
    if report["training"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report["documents"].items())
        timed = f"{setting['steps']} batches of each kind" if setting["steps"] else "all of them"
        lines += [
            f"Training, documents per second (ratio to the released scheme): {setting['data']}, {setting['backbone']}, "
            f"batches of {setting['batch_size']}; {kinds} documents an epoch, {timed} timed, median of {setting['repeats']}.",
            "",
            "| scheme | " + " | ".join(report["training"]) + " |",
            "|---" * (1 + len(report["training"])) + "|",
        ]
        for name in next(iter(report["training"].values())):
            cells = []
            for group in report["training"].values():
                ratio = f" ({group[name]['ratio']:.2f}x)" if "ratio" in group[name] else ""
                cells.append(f"{group[name]['documents_per_second']:.1f}{ratio}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    if report["catalogue"]:
        lines += ["| task, 64 rows of width 384 | items | ms | items/s | peak MB | of it the table |", "|---" * 6 + "|"]
        for row in report["catalogue"]:
            label = "best 100 items" if row["task"] == "score" else f"training step, {row['task']} loss"
            megabytes = (row["peak_bytes"] / 1e6, row["table_bytes"] / 1e6)
            lines.append(
                f"| {label} | {row['items']:,} | {row['seconds'] * 1e3:.1f} | {row['items_per_second']:.3g} | "
                f"{megabytes[0]:,.0f} | {megabytes[1]:,.0f} |"
            )
    return "\n".join(lines) + "\n"


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write `speed.json` and `speed.md` into the output folder.

    Raises:
        ValueError: a number that is too small.
    """
    for name, least in (("batch_size", 1), ("repeats", 1), ("steps", 0), ("threads", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be {least} or more")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    cases = [(task, size) for task in TASKS for size in arguments.item_counts]
    report: dict[str, Any] = {
        "setting": {
            "data": arguments.data or "a generated small world",
            "backbone": arguments.backbone or "GPT-2 shape, 6 layers of width 384, random",
            **{name: getattr(arguments, name) for name in ("batch_size", "steps", "repeats", "max_text_tokens", "seed")},
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in LIBRARIES},
        },
        "training": {},
        "catalogue": [measure_task(*case, arguments.repeats, arguments.threads) for case in tqdm(cases, desc="catalogue")],
    }
    if arguments.schemes:
        with tempfile.TemporaryDirectory() as folder:
            world = make_world(arguments, Path(folder))
            report["losses"] = compare_losses(world, arguments.batch_size)
            report["documents"] = {kind: len(documents) for kind, documents in world.documents.items()}
            report["rates"] = time_training(world, arguments)
            report["training"] = summarize(report["rates"], report["documents"])
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "speed.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (output / "speed.md").write_text(as_markdown(report), encoding="utf-8")
    return report


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of `benchmark.py speed`."""
    command.add_argument("--data", help="data folder (default: a generated small world)")
    command.add_argument("--backbone", help="name or path of a causal language model (default: GPT-2 shape, random weights)")
    command.add_argument("--output", default="reports/speed", help="folder for speed.json and speed.md, which are replaced")
    command.add_argument("--steps", type=int, default=20, help="batches of each kind in a timed pass; 0 reads the whole epoch")
    command.add_argument("--batch-size", type=int, default=20, help="documents of a batch; 20 as the released code")
    command.add_argument("--repeats", type=int, default=3, help="timed passes of each scheme, of which the median counts")
    command.add_argument("--max-text-tokens", type=int, help="cut longer texts in both schemes")
    command.add_argument("--schemes", nargs="*", choices=SCHEMES, default=list(SCHEMES), help="what to time; none: scoring only")
    command.add_argument("--item-counts", nargs="*", type=int, default=[10**4, 10**5, 10**6], help="catalogue sizes to score")
    command.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its default")
    command.add_argument("--seed", type=int, default=0, help="start of all random numbers")
