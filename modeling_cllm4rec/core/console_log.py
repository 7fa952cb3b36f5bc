"""The log at a terminal: one form of its lines for all commands, printed above a progress bar rather than through it."""

from __future__ import annotations

import logging
import sys
import time
import warnings

from tqdm import tqdm

PACKAGE = __name__.partition(".")[0]
LINE, CLOCK = "%(asctime)s %(message)s", "%H:%M:%S"


class ConsoleHandler(logging.StreamHandler):
    """Write records to standard error as `13:05:59 message`, around open progress bars.

    Records of other packages begin with the name of their logger.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter(LINE, CLOCK))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = super().format(record)
        if record.name.partition(".")[0] == PACKAGE:
            return line
        clock, _, rest = line.partition(" ")
        return f"{clock} {record.name}: {rest}"

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a record."""
        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:  # as every handler: a log must not end the work
            self.handleError(record)


def show_log(level: int = logging.INFO) -> None:
    """Print the log to standard error, unless the root logger has handlers already.

    Python's warnings become one line each, without the line of code that caused them. The requests of HTTP clients are left out,
    and so are the progress bars of transformers, which show how a file of this machine is read.

    Args:
        level: lowest level that is printed.
    """
    logging.basicConfig(level=level, handlers=[ConsoleHandler()])
    warnings.formatwarning = one_line
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)
    hide_loading_bars()


def one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Format a warning as a line of the log. It takes the place of `warnings.formatwarning`, which also shows a line of code.

    A warning of another class than `UserWarning` is shown with its class, by which it can be filtered.

    Example:
        >>> one_line("2 of 9 users have no test items", UserWarning, "evaluator.py", 398)[9:]
        'warning: 2 of 9 users have no test items\\n'
    """
    kind = "warning" if category is UserWarning else category.__name__
    return f"{time.strftime(CLOCK)} {kind}: {' '.join(str(message).split())}\n"


def hide_loading_bars() -> None:
    """Hide the progress bars of transformers for reading and writing weights; downloads keep theirs."""
    if "transformers" in sys.modules:  # where it is not, importing it would take longer than the command
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


__all__ = ["ConsoleHandler", "hide_loading_bars", "one_line", "show_log"]
