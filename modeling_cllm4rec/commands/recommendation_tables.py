"""The users that `cllm4rec recommend` is asked for, and their recommendations as tables, in constant memory."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from modeling_cllm4rec.commands.model_flags import batch_size, search_settings
from modeling_cllm4rec.commands.recommendation_parts import PART_SIZE, PartFolder, fingerprint_of_file, fingerprint_of_model
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.questions import Question
from modeling_cllm4rec.core.recommender import RecommenderModel

__all__ = ["Asked", "HistoriesFile", "asked_users", "open_parts", "tables"]

logger = logging.getLogger(__name__)

USERS_AT_ONCE = 65536
"""Users read and scored per read of the source: bounds the memory for any number of users."""


class Asked(NamedTuple):
    """The users who are asked for.

    Attributes:
        size: number of users.
        some: function of the first user and of the user after the last one, which returns `users`, `histories` or `queries` of a
            question, and the `names` of the answers.
        about: what the question says of them, to recognize the same users.
    """

    size: int
    some: Callable[[int, int], dict[str, Any]]
    about: str


def asked_users(arguments: argparse.Namespace, model: RecommenderModel) -> Asked:
    """Return the users of the flags: those of a file, those who are named, queries, or everyone."""
    if arguments.histories:
        histories = HistoriesFile(arguments.histories)

        def of_file(start: int, stop: int) -> dict[str, Any]:
            part = histories.rows(start, stop)
            users = part["user_id"].to_pylist() if "user_id" in part.column_names else None
            names = part["user"] if "user" in part.column_names else pa.array(range(start, stop))
            names = names if users is None else None
            return {"users": users, "histories": part["history"].to_pylist(), "names": names}

        return Asked(len(histories), of_file, f"histories {fingerprint_of_file(arguments.histories)}")
    if arguments.queries:
        queries: list[str] = arguments.queries
        return Asked(len(queries), lambda start, stop: {"queries": queries[start:stop]}, f"queries {queries!r}")
    if arguments.users:
        users = arguments.users if model.users is None else model.users.ids.parse(arguments.users)
        return Asked(len(users), lambda start, stop: {"users": users[start:stop]}, f"users {users!r}")
    if model.users is None:
        raise InputError(f"{arguments.model} knows no users; give --histories")
    ids = model.users.ids
    everyone = np.arange(len(model.users))
    everyone = everyone[model.readable(everyone, arguments.on_unknown)]
    return Asked(len(everyone), lambda start, stop: {"users": ids.ids_of(everyone[start:stop])}, "everyone")


class HistoriesFile:
    """A histories file, of which some rows are in memory at a time: Parquet by its row groups. JSON lines are read as a whole.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is damaged or empty, or lacks the histories.
    """

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise MissingFileError(f"--histories: there is no file {path}")
        self.path = path
        self.table: pa.Table | None = None
        self.file: pq.ParquetFile | None = None
        try:
            if path.endswith(".parquet"):
                self.file = pq.ParquetFile(path)
                names = self.file.schema_arrow.names
                sizes = [self.file.metadata.row_group(number).num_rows for number in range(self.file.num_row_groups)]
            else:
                self.table = pyarrow.json.read_json(path)
                names, sizes = self.table.column_names, [self.table.num_rows]
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"--histories: {path} is neither Parquet nor JSON lines ({error})") from error
        self.columns = [name for name in ("history", "user", "user_id") if name in names]
        self.ends = np.cumsum([0, *sizes])
        self.read: tuple[range, pa.Table] = (range(0), pa.table({}))
        if "history" not in self.columns:
            raise InputError(f"--histories: {path} has columns {names}; it needs 'history' (lists of item ids)")
        if not self.ends[-1]:
            raise InputError(f"--histories: {path} is empty")
        if {"user", "user_id"} <= set(names):
            raise InputError(
                f"--histories: {path} has columns 'user_id' and 'user'; keep 'user_id' for users that the model knows, or 'user' "
                "for names that are only handed through"
            )
        unread = sorted(set(names) - {"history", "user", "user_id"})
        if unread:
            logger.warning("--histories: columns of %s that are not read: %s", path, ", ".join(unread))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def rows(self, start: int, stop: int) -> pa.Table:
        """Return the rows from `start` to `stop`."""
        if self.file is None:
            assert self.table is not None
            return self.table.slice(start, stop - start)
        groups = range(int(np.searchsorted(self.ends, start, "right")) - 1, int(np.searchsorted(self.ends, stop, "left")))
        if groups != self.read[0]:
            try:
                self.read = (groups, self.file.read_row_groups(list(groups), columns=self.columns))
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"--histories: {self.path} cannot be read ({error}); write it again") from error
        return self.read[1].slice(start - int(self.ends[groups[0]]), stop - start)


def tables(
    arguments: argparse.Namespace,
    model: RecommenderModel,
    asked: Asked,
    start: int = 0,
    stop: int | None = None,
    progress: bool = False,
) -> Iterator[pa.Table]:
    """Yield the recommendations of the users from `start` to `stop`, all by default, one table a batch."""
    stop = asked.size if stop is None else stop
    num_users = 0
    for first in range(start, max(stop, start + 1), USERS_AT_ONCE):
        given = asked.some(first, min(first + USERS_AT_ONCE, stop))
        names = given.pop("names", None)
        question = read_question(arguments, model, given)
        num_users += len(question)
        for table in model.iter_answers(question, batch_size(arguments, model), progress=progress):
            if names is not None:
                table = table.set_column(0, "user", names.take(table["user"]))
            yield table
    if not num_users and (start, stop) == (0, asked.size):
        raise InputError(f"--on-unknown skip leaves no user: {arguments.model} knows none of those that were asked for")


def read_question(arguments: argparse.Namespace, model: RecommenderModel, given: dict[str, Any]) -> Question:
    """Check the question of some users."""
    return model.read_question(
        **given,
        k=arguments.k,
        exclude_seen=not arguments.include_seen,
        candidates=candidates_of(arguments, model),
        on_unknown=arguments.on_unknown,
        **search_settings(arguments, model),
    )


def candidates_of(arguments: argparse.Namespace, model: RecommenderModel) -> list[Any] | None:
    """Return the ids of `--candidates` in the type of the model's."""
    candidates: list[Any] | None = arguments.candidates
    return model.catalogue.ids.parse(candidates) if candidates is not None and model.catalogue is not None else candidates


def open_parts(arguments: argparse.Namespace, model: RecommenderModel, asked: Asked) -> PartFolder:
    """Return the folder of `--output`, once the question is known to be right, so that a wrong one makes no folder.

    Raises:
        InputError: the question of the first users is wrong.
        ExistingFileError: the folder holds something else, or parts of another question.
    """
    question = {
        "model": fingerprint_of_model(model, arguments.model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "asked": asked.about if len(asked.about) < 200 else hashlib.sha256(asked.about.encode()).hexdigest(),
        "k": arguments.k,
        "include_seen": arguments.include_seen,
        "candidates": candidates_of(arguments, model),
        "on_unknown": arguments.on_unknown,
        "batch_size": batch_size(arguments, model),
        **search_settings(arguments, model),
    }
    size = PART_SIZE if arguments.part_size is None else arguments.part_size
    first = asked.some(0, min(size, asked.size))
    first.pop("names", None)
    read_question(arguments, model, first)
    return PartFolder(Path(arguments.output), question, asked.size, size)
