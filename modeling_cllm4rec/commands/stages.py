"""The command of a training stage, such as `cllm4rec pretrain`: one for all stages of all systems."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState

from modeling_cllm4rec.commands.command_line import print_json
from modeling_cllm4rec.commands.stage_arguments import StageParser, parse_arguments
from modeling_cllm4rec.systems import Stage, resolve

EPILOG = """example:
  cllm4rec {name} {flags}
  accelerate launch -m modeling_cllm4rec {name} --config my.yaml
  accelerate launch recipes/{file}.py --config my.yaml

A YAML file of --config sets defaults, flags have the last word. Stopped or killed? Run the same command with --resume.
With --json, where it ended is printed as JSON: output, model, finished, step, seconds, and metrics of the epoch that was kept.
"""


def stage_main(stage: Stage, argv: list[str] | None = None) -> int:
    """Run the command of a training stage: parse, train, report.

    Args:
        stage: its row in `systems.SYSTEMS`.
        argv: words behind the command; None reads those of the process.

    Returns:
        0 when the stage ended (or stopped where it was asked to), otherwise as `run_command`.
    """
    words = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)

    parser = StageParser(
        resolve(stage.arguments),
        stage.name,
        description=stage.description,
        epilog=EPILOG.format(name=stage.name, flags=stage.example, file=stage.name.replace("-", "_")),
    )
    parser.add_argument("--json", action="store_true", help="print where the stage ended as JSON")

    def work() -> None:
        arguments = parse_arguments(resolve(stage.arguments), stage.section, words, parser)
        _, progress = resolve(stage.run)(arguments)
        if not progress.finished:
            print(f"cllm4rec {stage.name}: stopped after step {progress.step}; go on with --resume", file=sys.stderr)
        if "--json" in words and PartialState().is_main_process:
            print_json(outcome(Path(arguments.output), stage.folder, progress))

    return parser.run(argparse.Namespace(debug="--debug" in words), work)


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
