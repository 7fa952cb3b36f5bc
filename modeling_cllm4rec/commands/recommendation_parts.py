"""Recommendations as a folder of Parquet parts: processes and machines write it together, and a run that was stopped goes on.

A part holds the recommendations of consecutive users. Which users are in a part, and in which batches they are scored, depends on
the question alone, so any number of processes writes the same rows. A part is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_cllm4rec.commands.shares import Share
from modeling_cllm4rec.core.catalogue import CATALOGUE_FILE, USERS_FILE
from modeling_cllm4rec.core.errors import ExistingFileError
from modeling_cllm4rec.corpora.atomic_files import PARTIAL, atomic_file

__all__ = ["PART_SIZE", "QUESTION_FILE", "PartFolder", "fingerprint_of_file", "fingerprint_of_model"]

Tables = Callable[[int, int], Iterator[pa.Table]]

PART_SIZE = 16384
"""Users of one part, unless another number is given."""
QUESTION_FILE = "_question.json"
"""Readers of Parquet folders skip names that begin with an underscore."""


class PartFolder:
    """A folder of parts, which processes open for the same question and fill together.

    Args:
        folder: new, empty, or with parts of the same question.
        question: all that decides what the rows are, as JSON values.
        num_users: users who are asked for.
        part_size: users of a part.

    Attributes:
        files: the file of each part.

    Raises:
        ExistingFileError: the folder holds something else, or parts of another question.
    """

    def __init__(self, folder: Path, question: dict[str, Any], num_users: int, part_size: int) -> None:
        parts = -(-num_users // part_size)
        _claim(folder, {**question, "users": num_users, "part_size": part_size, "parts": parts})
        self.folder, self.num_users, self.part_size = folder, num_users, part_size
        self.files = [folder / f"part-{number:05d}.parquet" for number in range(parts)]

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not there."""
        return [number for number, file in enumerate(self.files) if not file.exists()]

    def write(self, number: int, tables: Tables) -> bool:
        """Write a part unless it is there; returns whether it was written.

        Args:
            tables: a function of the first user and the user after the last one, which yields their recommendations.
        """
        if self.files[number].exists():
            return False
        start = number * self.part_size
        _write(tables(start, min(start + self.part_size, self.num_users)), self.files[number])
        return True

    def write_share(self, share: Share, tables: Tables) -> tuple[int, int]:
        """Write the parts of a share that are not there yet; returns how many were written, and how many were there."""
        written = [self.write(number, tables) for number in range(len(self.files)) if share.has(number)]
        return sum(written), len(written) - sum(written)

    def state(self) -> str:
        """Say whether all parts are there; if so, remove what killed processes left."""
        if missing := len(self.missing()):
            return f"{self.folder}: {missing} parts of other processes are missing"
        for leftover in self.folder.glob(f".part-*{PARTIAL}"):
            leftover.unlink(missing_ok=True)
        return f"{self.folder}: all parts are there"


def _write(tables: Iterator[pa.Table], file: Path) -> None:
    head = next(tables)
    with atomic_file(file) as temporary, pq.ParquetWriter(temporary, head.schema) as writer:
        writer.write_table(head)
        for table in tables:
            writer.write_table(table)


def _claim(folder: Path, question: dict[str, Any]) -> None:
    """Write the question into a new folder, or check that it is the one of the parts that are there."""
    file = folder / QUESTION_FILE
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        if any(not path.name.startswith((".", "_")) for path in folder.iterdir()):
            raise ExistingFileError(f"output: {folder} is not empty and holds no {QUESTION_FILE}; choose another folder")
        with atomic_file(file) as temporary:  # processes that start together write the same
            temporary.write_text(json.dumps(question, indent=1) + "\n", encoding="utf-8")
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExistingFileError(f"output: {file} cannot be read ({error}); choose another folder, or delete this one") from error
    names = [name for name in {**question, **there} if there.get(name) != json.loads(json.dumps(question.get(name)))]
    if names:
        changes = ", ".join(f"{name} {there.get(name)!r} there, {question.get(name)!r} here" for name in names)
        raise ExistingFileError(
            f"output: {folder} holds recommendations of another question ({changes}); choose another folder, or delete this one"
        )


def fingerprint_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of_model(model: Any, name: str) -> str:
    """Return the SHA-256 over the files that decide what a model recommends; for a name on the Hub, its commit.

    Args:
        name: the folder, or the name on the Hub, that it was loaded from.
    """
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{model.config._commit_hash}"
    files = [folder / "config.json", folder / CATALOGUE_FILE, folder / USERS_FILE, *sorted(folder.glob("*.safetensors"))]
    parts = [fingerprint_of_file(file) for file in files if file.is_file()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
