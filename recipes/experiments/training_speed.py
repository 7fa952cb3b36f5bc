"""Training speed compared with the released scheme of the paper, and scoring speed by catalogue size.

    python recipes/experiments/training_speed.py
    python recipes/experiments/training_speed.py --data data/mine --backbone gpt2 --max-text-tokens 128 --output reports/speed

All schemes train the same rows of one model on the same documents, in turn and in one process. Their losses are compared before
they are timed. Without --data a synthetic data set is generated, without --backbone a small GPT-2 with random weights.
"""

from __future__ import annotations

import argparse
import json
import logging
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
from transformers.utils.logging import disable_progress_bar

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import FinetuningStage
from modeling_cllm4rec.cllm4rec.parameters import choose_trainable
from modeling_cllm4rec.cllm4rec.pretraining import PretrainingStage, new_model
from modeling_cllm4rec.cllm4rec.prompts import Prompts
from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.core.errors import InputError, RunError
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.synthetic import make_synthetic_dataset
from modeling_cllm4rec.hub.model_card import LIBRARIES, machine
from modeling_cllm4rec.training.backbones import train_backbone
from modeling_cllm4rec.training.parameters import parameter_groups, set_dropout
from modeling_cllm4rec.training.precision import frozen_weights_in
from modeling_cllm4rec.training.stages import Step, part_loss


class TrainingOptions(NamedTuple):
    """Options of our training: autocast's dtype (None: fp32) and the backbone's dropout (None: the configured one)."""

    dtype: torch.dtype | None
    dropout: float | None


RELEASED = "released"
RELEASED_SCHEMES = {
    RELEASED: Improvements(),
    "+ one pass": Improvements(one_pass=True),
    "+ tokenized once": Improvements(one_pass=True, tokenized_once=True),
    "+ main tokens only": Improvements(one_pass=True, tokenized_once=True, main_tokens_only=True),
}
OURS: dict[str, TrainingOptions] = {
    "ours, fp32": TrainingOptions(None, None),
    "ours, bf16": TrainingOptions(torch.bfloat16, None),
    "ours, bf16, no dropout": TrainingOptions(torch.bfloat16, 0.0),
}
"""Our training also has batches bucketed by length, the word loss computed in chunks, and fused AdamW."""
SCHEMES = (*RELEASED_SCHEMES, *OURS)
KINDS = ("collaborative", "content", "recommendation")
STAGES = {"pretraining": KINDS[:2], "finetuning": KINDS[2:], "both": KINDS}
LARGEST_DIFFERENCE = 1e-3
WARM_UP_BATCHES = 2

Pass = Callable[[str, np.ndarray], None]
"""A training pass over documents of one kind."""


class Setup(NamedTuple):
    """The released schemes and our stages over one model, and the documents of each kind."""

    released: dict[str, ReleasedScheme]
    pretraining: PretrainingStage
    finetuning: FinetuningStage
    documents: dict[str, np.ndarray]  # kind -> all document numbers

    def stage(self, kind: str) -> PretrainingStage | FinetuningStage:
        """Return our stage that trains on documents of a kind."""
        return self.finetuning if kind == "recommendation" else self.pretraining

    def lengths(self, kind: str) -> np.ndarray:
        """Return the number of tokens of each document of a kind."""
        return self.pretraining.texts.lengths if kind == "content" else self.pretraining.histories.lengths


def make_setup(arguments: argparse.Namespace, folder: Path) -> Setup:
    """Return data, model and both schemes with one objective, which scales the regularization as the released code does."""
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
        "per_device_train_batch_size": arguments.batch_size,
        "max_text_tokens": arguments.max_text_tokens,
        "mutual_regularization": "released",
        "drop_user": 0.0,
    }
    pretrain_arguments = PretrainArguments(
        **common, backbone=backbone, init_ids="random", warmup_epochs=0, text_validation_share=0.0
    )
    model, tokenizer = new_model(data, pretrain_arguments)
    choose_trainable(model, pretrain_arguments)
    pretraining = PretrainingStage(model, tokenizer, data, pretrain_arguments)
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
        for name, improvements in RELEASED_SCHEMES.items()
        if name in arguments.schemes
    }
    users = pretraining.histories.users
    documents = {"collaborative": users, "content": pretraining.text_train, "recommendation": users}
    return Setup(released, pretraining, finetuning, {kind: all_ for kind, all_ in documents.items() if len(all_)})


def our_pass(setup: Setup, arguments: argparse.Namespace, options: TrainingOptions) -> Pass:
    """Return a training pass like that of our loop: bucketed batches, the stage's loss, clipping, fused AdamW."""
    model = setup.pretraining.model
    optimizer = torch.optim.AdamW(parameter_groups(model, setup.pretraining.arguments), fused=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def train(kind: str, documents: np.ndarray) -> None:
        own = {module: module.p for module in model.backbone.modules() if isinstance(module, torch.nn.Dropout)}
        if options.dropout is not None:
            set_dropout(model.backbone, options.dropout)
        with frozen_weights_in(options.dtype, model.backbone):
            train_documents(kind, documents)
        for module, share in own.items():  # restored, because the other schemes train the same model
            module.p = share

    def train_documents(kind: str, documents: np.ndarray) -> None:
        stage = setup.stage(kind)
        for batch in plan_batches(setup.lengths(kind)[documents], arguments.batch_size, arguments.seed, epoch=0):
            step = Step(kind, documents[batch])
            optimizer.zero_grad(set_to_none=True)
            with _autocast(model.device, options.dtype):
                loss = part_loss(stage, step).loss
            assert loss is not None
            loss.backward()
            clip_grad_norm_(parameters, stage.arguments.max_grad_norm)
            optimizer.step()

    return train


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def some_batches(documents: np.ndarray, batch_size: int, steps: int) -> np.ndarray:
    """Return the documents of `steps` batches, spread evenly over the batches in file order; 0 steps: all documents."""
    batches = np.split(documents, range(batch_size, len(documents), batch_size))
    if not 0 < steps < len(batches):
        return documents
    return np.concatenate([batches[number] for number in np.linspace(0, len(batches) - 1, steps).astype(int)])


@torch.no_grad()
def compare_losses(setup: Setup, batch_size: int) -> dict[str, dict[str, float]]:
    """Return kind -> scheme -> loss of one batch, in fp32 and without dropout.

    Raises:
        RunError: the loss of a scheme differs, so its speed is not comparable.
    """
    losses: dict[str, dict[str, float]] = {}
    setup.pretraining.model.eval()
    for kind, documents in setup.documents.items():
        batch = some_batches(documents, batch_size, 1)
        step = Step(kind, batch)
        ours = float(part_loss(setup.stage(kind), step).loss)  # type: ignore[arg-type]
        losses[kind] = {"ours": ours} | {name: float(scheme.loss(kind, batch)) for name, scheme in setup.released.items()}
        for name, loss in losses[kind].items():
            if not abs(loss - ours) <= LARGEST_DIFFERENCE * abs(ours):
                raise RunError(f"the {kind} loss of one batch is {ours} in our scheme and {loss} in {name!r}")
    return losses


def time_training(setup: Setup, arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Return kind -> scheme -> documents per second in each repeat.

    The schemes alternate, in reverse order in every second repeat, so that a slow drift of the machine favours none of them.
    """
    passes: dict[str, Pass] = {
        name: (lambda kind, documents, scheme=scheme: scheme.train(kind, documents, arguments.batch_size))  # type: ignore[misc]
        for name, scheme in setup.released.items()
    }
    passes |= {name: our_pass(setup, arguments, options) for name, options in OURS.items() if name in arguments.schemes}
    rates: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in passes} for kind in setup.documents}
    setup.pretraining.model.train()
    for kind in setup.documents:
        for train in passes.values():
            train(kind, some_batches(setup.documents[kind], arguments.batch_size, WARM_UP_BATCHES))
    total = arguments.repeats * len(passes) * len(setup.documents)
    with tqdm(total=total, desc="training", unit="pass") as bar:
        for repeat in range(arguments.repeats):
            for kind in setup.documents:
                documents = some_batches(setup.documents[kind], arguments.batch_size, arguments.steps)
                for name in list(passes)[:: -1 if repeat % 2 else 1]:
                    start = time.perf_counter()
                    passes[name](kind, documents)
                    rates[kind][name].append(len(documents) / (time.perf_counter() - start))
                    bar.update()
    return rates


def summarize(rates: dict[str, dict[str, list[float]]], counts: dict[str, int]) -> dict[str, dict[str, dict[str, float]]]:
    """Return kind or stage -> scheme -> documents per second and the ratio to the released scheme (median, least and most).

    The rate of a stage is that of one epoch: the documents of its kinds over the seconds they take at the measured rates.
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
    """Return one task's measurement at one catalogue size, in a separate process so that only its own memory is counted."""
    script = Path(__file__).parent / "catalogue_growth.py"
    package = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    sizes = ["--items", str(num_items), "--repeats", str(repeats), "--threads", str(threads)]
    finished = subprocess.run(
        [sys.executable, str(script), "--task", task, *sizes], capture_output=True, text=True, env=environment
    )
    if finished.returncode:
        raise RunError(f"{task} over {num_items} items ended with code {finished.returncode}: {finished.stderr.strip()[-500:]}")
    row: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return row


def as_markdown(report: dict[str, Any]) -> str:
    """Return the tables of the report as Markdown."""
    setting = report["setting"]
    lines = [f"{setting['machine']}, {setting['threads']} threads; torch {setting['versions']['torch']}.", ""]
    if report["training"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report["documents"].items())
        timed = f"{setting['steps']} batches of each kind" if setting["steps"] else "all of them"
        lines += [
            f"Training, documents per second (ratio to the released scheme): {setting['data']}, {setting['backbone']}, "
            f"batches of {setting['batch_size']}; {kinds} documents per epoch, {timed} timed, median of {setting['repeats']}.",
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
        lines += ["| task, 64 rows of width 384 | items | ms | items/s | peak MB | table MB |", "|---" * 6 + "|"]
        for row in report["catalogue"]:
            label = "best 100 items" if row["task"] == "score" else f"training step, {row['task']} loss"
            megabytes = (row["peak_bytes"] / 1e6, row["table_bytes"] / 1e6)
            lines.append(
                f"| {label} | {row['items']:,} | {row['seconds'] * 1e3:.1f} | {row['items_per_second']:.3g} | "
                f"{megabytes[0]:,.0f} | {megabytes[1]:,.0f} |"
            )
    return "\n".join(lines) + "\n"


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all schemes and tasks and write `speed.json` and `speed.md` into the output folder.

    Raises:
        InputError: a number is too small.
    """
    for name, least in (("batch_size", 1), ("repeats", 1), ("steps", 0), ("threads", 0)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be {least} or more")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    cases = [(task, size) for task in TASKS for size in arguments.item_counts]
    report: dict[str, Any] = {
        "setting": {
            "data": arguments.data or "a synthetic data set",
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
            setup = make_setup(arguments, Path(folder))
            report["losses"] = compare_losses(setup, arguments.batch_size)
            report["documents"] = {kind: len(documents) for kind, documents in setup.documents.items()}
            report["rates"] = time_training(setup, arguments)
            report["training"] = summarize(report["rates"], report["documents"])
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "speed.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (output / "speed.md").write_text(as_markdown(report), encoding="utf-8")
    return report


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(prog="training_speed.py", description=__doc__)
    flags.add_argument("--data", help="data folder (default: a synthetic data set)")
    flags.add_argument("--backbone", help="name or path of a causal language model (default: GPT-2 shape, random weights)")
    flags.add_argument("--output", default="reports/speed", help="output folder; speed.json and speed.md are overwritten")
    flags.add_argument("--steps", type=int, default=20, help="batches of each kind in a timed pass; 0: the whole epoch")
    flags.add_argument("--batch-size", type=int, default=20, help="documents per batch; 20 as in the released code")
    flags.add_argument("--repeats", type=int, default=3, help="timed passes of each scheme; the median is reported")
    flags.add_argument("--max-text-tokens", type=int, help="truncate longer texts in all schemes")
    flags.add_argument("--schemes", nargs="*", choices=SCHEMES, default=list(SCHEMES), help="schemes to time; none: scoring only")
    flags.add_argument("--item-counts", nargs="*", type=int, default=[10**4, 10**5, 10**6], help="catalogue sizes for scoring")
    flags.add_argument("--threads", type=int, default=0, help="torch threads; 0 keeps the default")
    flags.add_argument("--seed", type=int, default=0, help="random seed")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    disable_progress_bar()
    return flags.run(arguments, lambda: print(as_markdown(speed(arguments))))


if __name__ == "__main__":
    sys.exit(main())
