"""`cllm4rec pretrain | finetune | index-items | align`: the stages of training."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.commands.command_line import print_json, run_command
from modeling_cllm4rec.training.arguments import Arguments, parse_arguments

EPILOG = """example:
  cllm4rec {name} {flags}
  accelerate launch -m modeling_cllm4rec {name} --config my.yaml
  accelerate launch recipes/{file}.py --config my.yaml

A YAML file of --config sets defaults, flags have the last word. Stopped or killed? Run the same command with --resume.
With --json, where it ended is printed as JSON: output, model, finished, step, seconds, and metrics of the epoch that was kept.
"""


def stage_command(
    kind: type[Arguments],
    section: str,
    stage: Callable[[Arguments], tuple[Any, Any]],
    description: str,
    example: str,
    argv: list[str] | None,
    name: str | None = None,
    folder: str = "",
) -> int:
    """Parse, run, report.

    Args:
        kind: dataclass of the arguments.
        section: name of the stage's own keys in a YAML file.
        stage: from arguments to what was made and where it stands (`finished`, `step`).
        description: one sentence for `--help`.
        example: flags of the example in `--help`.
        argv: words behind the command; None reads those of the process.
        name: of the command (default: the section's).
        folder: where the stage saves its model below the output, if not there.

    Returns:
        0 when the stage ended (or stopped where it was asked to), otherwise as `run_command`.
    """
    name = name or section
    words = sys.argv[1:] if argv is None else argv
    as_json = "--json" in words
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def work() -> None:
        arguments = parse_arguments(
            kind,
            section,
            [word for word in words if word != "--json"],
            prog=f"cllm4rec {name}",
            description=description,
            epilog=EPILOG.format(name=name, flags=example, file=name.replace("-", "_")),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _, progress = stage(arguments)
        if not progress.finished:
            print(f"cllm4rec {name}: stopped after step {progress.step}; go on with --resume", file=sys.stderr)
        if as_json and PartialState().is_main_process:
            print_json(outcome(Path(arguments.output), folder, progress))

    return run_command(f"cllm4rec {name}", work)


def outcome(output: Path, folder: str, progress: Any) -> dict[str, Any]:
    """Where a stage ended, for machines; `model` is None where it was stopped before it had saved one."""
    kept = progress.history[progress.best_epoch] if progress.history else {}  # the last one where none was chosen
    return {
        "output": str(output),
        "model": str(output / folder) if progress.finished else None,
        "finished": progress.finished,
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "metrics": kept,
    }


def pretrain_main(argv: list[str] | None = None) -> int:
    """Pretrain CLLM4Rec on a data folder."""
    from modeling_cllm4rec.cllm4rec.pretraining import pretrain

    about = "Pretrain CLLM4Rec on a data folder: content warm-up, then alternating L and C passes (sections 3.2 and 3.3)."
    return stage_command(
        PretrainArguments,
        "pretrain",
        pretrain,
        about,
        "--data data/mine --backbone gpt2 --output runs/mine",
        argv,
        folder="pretrained",
    )


def finetune_main(argv: list[str] | None = None) -> int:
    """Finetune a pretrained CLLM4Rec for recommendation."""
    from modeling_cllm4rec.cllm4rec.finetuning import finetune

    about = "Finetune a pretrained CLLM4Rec for recommendation: masked history in, held-out items out (section 3.4)."
    return stage_command(FinetuneArguments, "finetune", finetune, about, "--data data/mine --output runs/mine", argv)


def index_items_main(argv: list[str] | None = None) -> int:
    """Give every item of a data folder a semantic index."""
    from modeling_cllm4rec.lcrec.arguments import IndexArguments
    from modeling_cllm4rec.lcrec.indexing import index_items

    about = "Give every item a semantic index: texts to embeddings to unique codes (section III-B of arXiv 2311.09049)."
    flags = "--data data/mine --encoder gpt2 --output runs/mine-index"
    return stage_command(IndexArguments, "index", index_items, about, flags, argv, name="index-items")


def align_main(argv: list[str] | None = None) -> int:
    """Tune a language model on the alignment tasks of LC-Rec."""
    from modeling_cllm4rec.lcrec.alignment import align
    from modeling_cllm4rec.lcrec.arguments import AlignArguments

    about = "Tune a language model on tasks between item indices and language (LC-Rec, section III-C of arXiv 2311.09049)."
    flags = "--data data/mine --index runs/mine-index --backbone gpt2 --output runs/mine-lcrec"
    return stage_command(AlignArguments, "align", align, about, flags, argv)
