"""What the training recipes do around a stage: arguments in, logs, one line for bad input, an exit code."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import Any

from modeling_cllm4rec.training.arguments import Arguments, parse_arguments


def stage_command(
    kind: type[Arguments],
    section: str,
    stage: Callable[[Arguments], tuple[Any, Any]],
    description: str | None,
    argv: list[str] | None,
) -> int:
    """Parse, run, report.

    Returns:
        0 when the stage ended (or stopped where it was asked to), 2 for bad input.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        arguments = parse_arguments(
            kind,
            section,
            argv,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _, progress = stage(arguments)
    except (ValueError, OSError) as error:
        print(f"{section}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if not progress.finished:
        print(f"{section}: stopped after step {progress.step}; go on with --resume", file=sys.stderr)
    return 0
