"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from modeling_cllm4rec.core.errors import ExistingFileError, FileWriteError

PARTIAL = ".partial"
"""End of the name of a file or folder that is being written."""
REPLACED = ".replaced"
"""End of the name of a folder that is being replaced."""


def check_output_folder(folder: str | Path, argument: str = "output") -> None:
    """Check that a folder can be made, or written into, before the work whose result it gets; nothing is written.

    Args:
        folder: need not exist.
        argument: the caller's argument that holds it, for messages.

    Raises:
        ExistingFileError: there is a file in its place or above it.
        FileWriteError: the folder, or the nearest one above it that exists, may not be written into.

    Example:
        >>> check_output_folder("a/new/folder")
    """
    place = Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ExistingFileError(f"{argument}: {place} is a file, so {folder} cannot be a folder; choose another {argument}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise FileWriteError(
            f"{argument}: nothing may be written into {place}; choose another {argument}, or change its permissions"
        )


def check_new_folder(folder: str | Path, argument: str = "output") -> None:
    """Check that a folder does not exist or is empty, and can be made; nothing is written.

    Raises:
        ExistingFileError: there is something in it, or a file in its place.
        FileWriteError: it may not be made.

    Example:
        >>> check_new_folder("a/new/folder")
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExistingFileError(f"{argument}: {path} exists and is not empty; choose a new or empty folder, nothing was changed")
    check_output_folder(path, argument)


def check_output_file(path: str | Path, argument: str = "output") -> None:
    """Check that a file can be written, before the work whose result it gets; nothing is written.

    Raises:
        ExistingFileError: there is a folder or a device in its place, which `atomic_file` would replace.
        FileWriteError: its folder may not be written into.

    Example:
        >>> check_output_file("a/new/file.parquet")
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ExistingFileError(f"{argument}: {path} is no ordinary file; choose another {argument}")
    check_output_folder(Path(path).parent, argument)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` when the block ends without an error.

    A reader therefore never sees half a file, and after an error the old file is still in place.

    Raises:
        ExistingFileError, FileWriteError: as `check_output_file`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_file(Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("whole")
        ...     [path.name for path in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    check_output_file(path, "path")
    # The same folder, because a rename is atomic within one file system only; a unique name, because processes may race.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, unique: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `folder` when the block ends without an error.

    After an error the old folder, if any, is in place again and the temporary one is removed. After a kill,
    `restore_folder` does the same.

    Args:
        folder: may exist; its contents are replaced as a whole.
        unique: give the temporary folder a name that no other process and no user has. What a process that was killed left is
            removed or restored by `sweep_folder`, which is called first.
    """
    if unique:
        sweep_folder(folder)
    stem = f".{folder.name}.{_owner(os.getpid())}.{uuid.uuid4().hex}" if unique else folder.name
    temporary, replaced = folder.with_name(stem + PARTIAL), folder.with_name(stem + REPLACED)
    try:
        _restore(folder, replaced)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        # A rename may reach the disk before the contents do: after a power cut the final name would hold empty files.
        for file in temporary.iterdir():
            _flush(file)
        # A folder cannot be renamed onto a folder that is not empty, so the old one moves aside first. A kill between the
        # two renames leaves it there whole, and the next reader or writer moves it back.
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        temporary.rename(folder)
        _flush(folder.parent)  # The renames themselves are entries of the parent folder.
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _restore(folder, replaced)
        raise


def restore_folder(folder: Path) -> None:
    """Undo a replacement by `atomic_folder` that a kill interrupted between its two renames."""
    _restore(folder, folder.with_name(folder.name + REPLACED))


def sweep_folder(folder: Path) -> None:
    """Remove what processes of this machine that were killed in `atomic_folder(folder, unique=True)` left next to a folder.

    A folder that was being replaced is put back if the new one is not in place.
    """
    if not folder.parent.is_dir():
        return
    left = re.compile(re.escape(f".{folder.name}.{_machine()}-") + r"(\d+)-(\d+)\.[0-9a-f]{32}(\.partial|\.replaced)")
    for path in sorted(folder.parent.iterdir()):
        found = left.fullmatch(path.name)
        if found is None or _owner(int(found[1])) == f"{_machine()}-{found[1]}-{found[2]}":
            continue
        if found[3] == REPLACED:
            _restore(folder, path)
        shutil.rmtree(path, ignore_errors=True)


def _owner(process: int) -> str | None:
    """Return a name of a process that no other process has, before or after it on any machine; `None` if it does not run."""
    try:
        # Numbers of processes are used again, so the time of the start is part of the name.
        return f"{_machine()}-{process}-{int(psutil.Process(process).create_time())}"
    except psutil.NoSuchProcess:
        return None


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node())


def _restore(folder: Path, replaced: Path) -> None:
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)


def _flush(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    if os.name == "nt":  # Windows refuses to open a folder, and to flush a file that is open for reading only.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = [
    "PARTIAL",
    "REPLACED",
    "atomic_file",
    "atomic_folder",
    "check_new_folder",
    "check_output_file",
    "check_output_folder",
    "restore_folder",
    "sweep_folder",
]
