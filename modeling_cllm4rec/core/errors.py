"""Errors that this package raises on purpose: one root class, and a subclass for each way out.

Each subclass is also the built-in exception that a caller would expect, so `except ValueError` catches an `InputError`.
Anything else that is raised is a programming error and keeps its traceback on the command line.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class CLLM4RecError(Exception):
    """Be the root of all errors that this package raises about its input, its files and its runs.

    Attributes:
        exit_code: exit code of a command that ends with this error: 2 for bad input, 1 for a failed run.

    Example:
        >>> try:
        ...     raise InputError("k is 0; it must be 1 or more")
        ... except CLLM4RecError as error:
        ...     print(error)
        k is 0; it must be 1 or more
    """

    exit_code: ClassVar[int] = 2


class InputError(CLLM4RecError, ValueError):
    """Report an argument, an id, a table or a file with a value that is not allowed."""


class MissingFileError(CLLM4RecError, FileNotFoundError):
    """Report a file or folder that is not there."""


class ExistingFileError(CLLM4RecError, FileExistsError):
    """Report a file or folder that is there already and will not be replaced."""


class MissingPackageError(CLLM4RecError, ImportError):
    """Report a package of an extra that is not installed, with the command that installs it."""

    exit_code = 1


class RunError(CLLM4RecError, RuntimeError):
    """Report a run that cannot go on although its input was right."""

    exit_code = 1


class FileWriteError(CLLM4RecError, OSError):
    """Report a file that cannot be written, such as on a full disk."""

    exit_code = 1


class DivergedError(CLLM4RecError, FloatingPointError):
    """Report a loss that is not finite."""

    exit_code = 1


class MemoryLimitError(CLLM4RecError, MemoryError):
    """Report a run that would need more memory than is allowed or free."""

    exit_code = 1


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return a hint at the known names that are nearest to a name.

    Args:
        otherwise: the hint where none is near; empty lists the known names.

    Example:
        >>> nearest("evalute", ["evaluate", "export"])
        "did you mean 'evaluate'?"
    """
    names = [str(one) for one in known]
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return otherwise or f"known are {', '.join(names)}"


__all__ = [
    "CLLM4RecError",
    "DivergedError",
    "ExistingFileError",
    "FileWriteError",
    "InputError",
    "MemoryLimitError",
    "MissingFileError",
    "MissingPackageError",
    "RunError",
    "nearest",
]
