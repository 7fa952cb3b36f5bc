"""Benchmark of recommendation quality against strong baselines, and the paper's ablations.

    python recipes/benchmark.py quality --data data/beauty --models popularity,ease,cllm4rec --seeds 5 --output reports/beauty
    python recipes/benchmark.py ablation --data data/beauty --config beauty_pretrained.yaml --output reports/ablation
    python recipes/benchmark.py report --reports reports/beauty --output docs/results.md --readme README.md

It is `cllm4rec benchmark` with recipes/configs/benchmark.yaml as the default of `quality`. The speed measurements are separate
scripts in recipes/experiments/.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from modeling_cllm4rec.benchmark import command
from modeling_cllm4rec.commands.command_line import run_command

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "benchmark.yaml"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmark.py"
    )
    commands = flags.add_subparsers(dest="command", required=True)
    command.add_commands(commands, "python recipes/benchmark.py", DEFAULT_CONFIG)
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    disable_progress_bar()
    return run_command("benchmark.py", lambda: command.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
