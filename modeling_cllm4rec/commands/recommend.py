"""`cllm4rec recommend`: recommend items to known users, to histories, to everyone, or to queries."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.commands.model_flags import add_model_arguments, batch_size, search_settings
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.atomic_files import atomic_file, check_output_file
from modeling_cllm4rec.hub.loading import load_recommender

EPILOG = """example:
  cllm4rec recommend --model runs/mine --users ann bob --k 10
  cllm4rec recommend --model runs/mine --histories histories.parquet --k 10 --output recs.parquet
  cllm4rec recommend --model runs/mine --k 10 --output everyone.parquet
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
    form.add_argument("--output", help="Parquet file for the table; without it, it is printed with titles")
    form.add_argument("--json", action="store_true", help="print JSON lines: user, rank, item, score, title")
    return flags


def questions(arguments: argparse.Namespace, model: RecommenderModel) -> Iterator[dict[str, Any]]:
    """Arguments `users`, `histories` or `queries` of a question, some thousand users at a time, and the names of the answers."""
    if arguments.histories:
        histories = read_histories(arguments.histories)
        for start in range(0, histories.num_rows, USERS_AT_ONCE):
            part = histories.slice(start, USERS_AT_ONCE)
            users = part["user_id"].to_pylist() if "user_id" in part.column_names else None
            names = part["user"] if "user" in part.column_names else pa.array(range(start, start + part.num_rows))
            names = names if users is None else None
            yield {"users": users, "histories": part["history"].to_pylist(), "names": names}
        return
    if arguments.queries:
        yield {"queries": arguments.queries}
        return
    if arguments.users:
        users = arguments.users if model.users is None else model.users.ids.parse(arguments.users)
        yield {"users": users}
        return
    if model.users is None:
        raise InputError(f"{arguments.model} knows no users; give --histories")
    everyone = np.arange(len(model.users))
    everyone = everyone[model.readable(everyone, arguments.on_unknown)]
    for start in range(0, max(len(everyone), 1), USERS_AT_ONCE):
        yield {"users": model.users.ids.ids_of(everyone[start : start + USERS_AT_ONCE])}


def read_histories(path: str) -> pa.Table:
    """Read the users of a histories file."""
    if not Path(path).is_file():
        raise MissingFileError(f"--histories: there is no file {path}")
    try:
        table = pq.read_table(path) if path.endswith(".parquet") else pyarrow.json.read_json(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"--histories: {path} is neither Parquet nor JSON lines ({error})") from error
    if "history" not in table.column_names:
        raise InputError(f"--histories: {path} has columns {table.column_names}; it needs 'history' (lists of item ids)")
    if not table.num_rows:
        raise InputError(f"--histories: {path} is empty")
    if {"user", "user_id"} <= set(table.column_names):
        raise InputError(
            f"--histories: {path} has columns 'user_id' and 'user'; keep 'user_id' for users that the model knows, or 'user' "
            "for names that are only handed through"
        )
    unread = sorted(set(table.column_names) - {"history", "user", "user_id"})
    if unread:
        logger.warning("--histories: columns of %s that are not read: %s", path, ", ".join(unread))
    return table


def tables(arguments: argparse.Namespace, model: RecommenderModel) -> Iterator[pa.Table]:
    """Recommendations, a table a batch."""
    candidates = arguments.candidates
    if candidates is not None and model.catalogue is not None:
        candidates = model.catalogue.ids.parse(candidates)
    search = search_settings(arguments, model)
    if arguments.queries and arguments.include_seen:
        raise InputError("--include-seen: a query is asked without a history, so nothing was seen; leave it out")
    num_users = 0
    for given in questions(arguments, model):
        names = given.pop("names", None)
        question = model.read_question(
            **given,
            k=arguments.k,
            exclude_seen=not arguments.include_seen,
            candidates=candidates,
            on_unknown=arguments.on_unknown,
            **search,
        )
        num_users += len(question)
        for table in model.iter_answers(question, batch_size(arguments, model), progress=arguments.output is not None):
            if names is not None:
                table = table.set_column(0, "user", names.take(table["user"]))
            yield table
    if not num_users:
        raise InputError(f"--on-unknown skip leaves no user: {arguments.model} knows none of those that were asked for")


def write(parts: Iterator[pa.Table], path: Path) -> int:
    """Stream tables into one Parquet file, whole or not at all; returns its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head, rows = next(parts), 0
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, head.schema) as writer:
        for table in itertools.chain([head], parts):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def show(parts: Iterator[pa.Table], model: RecommenderModel, as_json: bool) -> None:
    """Print recommendations with titles, as columns or as JSON lines."""
    assert model.catalogue is not None
    for table in parts:
        titles = model.catalogue.titles(model.catalogue.ids.indices_of(table["item"].to_pylist()))
        for row, title in zip(table.to_pylist(), titles, strict=True):
            if as_json:
                print(json.dumps({**row, "title": title}, ensure_ascii=False))
            else:
                print(f"{row['user']}\t{row['rank']:>3}\t{row['item']}\t{row['score']:.3f}\t{title or ''}")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    def work() -> None:
        if arguments.output:
            check_output_file(arguments.output)
        model = load_recommender(arguments.model)
        parts = tables(arguments, model)
        if arguments.output:
            rows = write(parts, Path(arguments.output))
            print(f"{rows} recommendations written to {arguments.output}", file=sys.stderr)
        else:
            show(parts, model, arguments.json)

    return flags.run(arguments, work)
