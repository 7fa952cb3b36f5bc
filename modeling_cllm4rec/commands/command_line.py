"""What all commands do around their work: one line for what went wrong, and an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

OK, RUN_FAILED, BAD_ARGUMENTS, INTERRUPTED = 0, 1, 2, 130
"""Exit codes. Bad are arguments that are none, and those that name a file, a folder or an id that is not there or not right."""
BAD_INPUT = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
FAILURES = (OSError, ArithmeticError, MemoryError)


def run_command(name: str, work: Callable[[], None]) -> int:
    """Do the work of a command; say in one line what went wrong. Anything unforeseen keeps its traceback.

    Args:
        name: the command, as `cllm4rec evaluate`.
        work: reads, computes, writes and prints.

    Returns:
        0 when it was done; 2 when an argument, or what it names, is at fault; 1 when the run failed (a full disk, a loss that is
        no number, no memory, a reader of the output that went away); 130 when it was interrupted.

    Example:
        >>> run_command("cllm4rec nothing", lambda: None)
        0
    """
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:  # as in `cllm4rec recommend ... | head`; the interpreter's own last flush must not fail, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUN_FAILED
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BAD_INPUT as error:
        return _say(name, error, BAD_ARGUMENTS)
    except FAILURES as error:
        return _say(name, error, RUN_FAILED)
    return OK


def print_json(value: Any) -> None:
    """Print a value as one indented JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _say(name: str, error: BaseException, code: int) -> int:
    words = " ".join(str(error).split()) or type(error).__name__
    print(f"{name}: error: {words}", file=sys.stderr)
    return code
