"""What a recommender is worth, and what it costs: quality beside strong baselines, the paper's ablations, time and memory.

    python recipes/benchmark.py quality --data data/beauty --models popularity,ease,cllm4rec --seeds 5 --output reports/beauty
    python recipes/benchmark.py ablation --data data/beauty --config recipes/configs/beauty.yaml --output reports/beauty-ablation
    python recipes/benchmark.py report --reports reports/beauty --output docs/results.md --readme README.md
    python recipes/benchmark.py speed --data data/mine --backbone gpt2
    python recipes/benchmark.py decode --model path/of/a/causal-lm
    python recipes/benchmark.py beams --model runs/lcrec-mine --data data/mine

The first three are `cllm4rec benchmark` too; `speed` is told in training_speed.py, `decode` in decoding_speed.py and `beams` in
beam_quality.py.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import beam_quality
import decoding_speed
import training_speed
from transformers.utils.logging import disable_progress_bar

from modeling_cllm4rec.benchmark import command
from modeling_cllm4rec.commands.command_line import run_command

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "benchmark.yaml"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmark.py"
    )
    commands = flags.add_subparsers(dest="command", required=True)
    command.add_commands(commands, "python recipes/benchmark.py", DEFAULT_CONFIG)
    training_speed.add_flags(commands.add_parser("speed", help="documents per second in training, items per second in scoring"))
    decoding_speed.add_flags(commands.add_parser("decode", help="users per second of beam search over item indices"))
    beam_quality.add_flags(commands.add_parser("beams", help="quality and time of LC-Rec's search by number of beams"))
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    disable_progress_bar()

    def work() -> None:
        if arguments.command == "decode":
            print(decoding_speed.as_markdown(decoding_speed.decode(arguments)))
        elif arguments.command == "beams":
            print(beam_quality.as_markdown(beam_quality.beams(arguments)))
        elif arguments.command == "speed":
            print(training_speed.as_markdown(training_speed.speed(arguments)))
        else:
            command.run(arguments)

    return run_command("benchmark.py", work)


if __name__ == "__main__":
    sys.exit(main())
