"""`cllm4rec recommend`: recommend items to known users, to histories, to everyone, or to queries."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from modeling_cllm4rec.commands.command_line import CommandParser, cell
from modeling_cllm4rec.commands.model_flags import add_model_arguments, batch_size, placement, search_settings
from modeling_cllm4rec.commands.recommendation_parts import (
    PART_SIZE,
    Share,
    fingerprint_of_file,
    fingerprint_of_model,
    share_of,
    write_parts,
)
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.processes import launched_processes
from modeling_cllm4rec.core.questions import Question, check_whole_number
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.atomic_files import atomic_file, check_output_file, check_output_folder
from modeling_cllm4rec.hub.loading import load_recommender

EPILOG = """example:
  cllm4rec recommend --model runs/mine --users ann bob --k 10
  cllm4rec recommend --model runs/mine --histories histories.parquet --k 10 --output recs.parquet
  cllm4rec recommend --model runs/mine --k 10 --output everyone.parquet
  cllm4rec recommend --model runs/mine --k 10 --output everyone --shard 1/4
  cllm4rec recommend --model runs/mine-lcrec --query "a gentle cleanser for dry skin" --k 10

A histories file is Parquet or JSON lines with a column `history` (lists of item ids, oldest first). For users that the model
knows, a column `user_id` names them; for unseen users, a column `user` holds any names, which come back with the answers
(without it, the numbers of the rows).
"""
logger = logging.getLogger(__name__)

USERS_AT_ONCE = 65536
"""Users read and scored per read of the source: bounds the memory for any number of users."""


def parser() -> CommandParser:
    """Parse the flags."""
    flags = CommandParser(
        "recommend",
        description="Recommend items to known users, to histories, to everyone, or to queries.",
        epilog=EPILOG,
    )
    add_model_arguments(flags)
    source = flags.add_mutually_exclusive_group()
    source.add_argument("--users", nargs="+", help="external user ids; their stored histories are read")
    source.add_argument("--histories", help="Parquet or JSON-lines file; without users and histories: every known user")
    source.add_argument(
        "--query", dest="queries", nargs="+", help="LC-Rec: a description of the wanted item; each query is a text in quotes"
    )
    flags.add_argument("--k", type=int, default=10, help="recommendations for each (default: 10)")
    flags.add_argument("--include-seen", action="store_true", help="recommend items of the history, too")
    flags.add_argument("--candidates", nargs="+", help="choose among these item ids only")
    flags.add_argument(
        "--on-unknown",
        choices=["raise", "skip"],
        default="raise",
        help="unknown ids, and users without an item that the model knows: error, or left out",
    )
    form = flags.add_mutually_exclusive_group()
    form.add_argument(
        "--output",
        help="Parquet file (NAME.parquet) for the table, or a folder for its parts, where a stopped run goes on; without it, the "
        "table is printed with titles",
    )
    form.add_argument("--json", action="store_true", help="print JSON lines: user, rank, item, score, title")
    parts = flags.add_argument_group("a folder of parts")
    parts.add_argument("--part-size", type=int, help=f"users of one part (default: {PART_SIZE})")
    parts.add_argument("--shard", metavar="I/N", help="write every N-th part only, such as 2/4 on the second of four machines")
    return flags


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
    arguments: argparse.Namespace, model: RecommenderModel, asked: Asked, start: int = 0, stop: int | None = None
) -> Iterator[pa.Table]:
    """Yield the recommendations of the users from `start` to `stop`, all by default, one table a batch."""
    stop = asked.size if stop is None else stop
    num_users = 0
    for first in range(start, max(stop, start + 1), USERS_AT_ONCE):
        given = asked.some(first, min(first + USERS_AT_ONCE, stop))
        names = given.pop("names", None)
        question = read_question(arguments, model, given)
        num_users += len(question)
        progress = arguments.output is not None and launched_processes()[0] == 0
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


def write(parts: Iterator[pa.Table], path: Path) -> int:
    """Stream tables into one Parquet file, whole or not at all; returns its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head, rows = next(parts), 0
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, head.schema) as writer:
        for table in itertools.chain([head], parts):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def write_folder(arguments: argparse.Namespace, model: RecommenderModel, asked: Asked, share: Share) -> str:
    """Write the parts of this process into a folder; returns a line about them."""
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
    read_question(arguments, model, first)  # a wrong question is an error before the folder is made for it
    written, there, missing = write_parts(
        Path(arguments.output),
        question,
        asked.size,
        size,
        share,
        lambda start, stop: tables(arguments, model, asked, start, stop),
    )
    state = f"{missing} parts of other processes are missing" if missing else "all parts are there"
    return f"{written} parts written, {there} were there before; {arguments.output}: {state}"


def show(parts: Iterator[pa.Table], model: RecommenderModel, as_json: bool) -> None:
    """Print recommendations with titles, as columns or as JSON lines."""
    assert model.catalogue is not None
    for table in parts:
        titles = model.catalogue.titles(model.catalogue.ids.indices_of(table["item"].to_pylist()))
        for row, title in zip(table.to_pylist(), titles, strict=True):
            if as_json:
                print(json.dumps({**row, "title": title}, ensure_ascii=False))
            else:
                print(f"{cell(row['user'])}\t{row['rank']:>3}\t{cell(row['item'])}\t{row['score']:.3f}\t{cell(title)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    def work() -> None:
        folder = arguments.output is not None and not arguments.output.endswith(".parquet")
        share = share_of(arguments.shard)
        if arguments.part_size is not None:
            check_whole_number("part_size", arguments.part_size)
        if not folder and (unread := [name for name in ("shard", "part_size") if getattr(arguments, name) is not None]):
            raise InputError(f"{unread[0]}: only a folder has parts; give --output FOLDER, or leave it out")
        if not folder and share.processes > 1:
            raise InputError(f"output: {share.processes} processes were launched; give a folder, whose parts they share out")
        if arguments.output:
            (check_output_folder if folder else check_output_file)(arguments.output)
        model = load_recommender(arguments.model, **placement(arguments))
        if arguments.queries and arguments.include_seen:
            raise InputError("--include-seen: a query is asked without a history, so nothing was seen; leave it out")
        asked = asked_users(arguments, model)
        if folder:
            print(write_folder(arguments, model, asked, share), file=sys.stderr)
        elif arguments.output:
            rows = write(tables(arguments, model, asked), Path(arguments.output))
            print(f"{rows} recommendations written to {arguments.output}", file=sys.stderr)
        else:
            show(tables(arguments, model, asked), model, arguments.json)

    return flags.run(arguments, work)
