"""`cllm4rec prepare`: a data folder from raw interactions and texts, with any ids."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from modeling_cllm4rec.commands.command_line import CommandParser, print_json
from modeling_cllm4rec.core.console_log import show_log
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.column_roles import KNOWN_TEXTS
from modeling_cllm4rec.corpora.formats import FORMATS, format_table
from modeling_cllm4rec.corpora.preparation import ON_MISSING, REPEATS
from modeling_cllm4rec.corpora.raw_data import write_raw_data
from modeling_cllm4rec.corpora.sources import ID_TYPES
from modeling_cllm4rec.corpora.splits import LEAST_INTERACTIONS, ORDERS, SHORT_USERS, SPLIT_KINDS

EPILOG = """example:
  cllm4rec prepare --interactions reviews.parquet --items items.parquet \\
      --min-rating 4 --k-core 5 --split random --seed 42 --output data/mine
  cllm4rec prepare --folder ml-latest-small --output data/movies

sources:
  .csv, .tsv, .txt, .dat (any delimiter), .jsonl, .json (objects, one array, or Python literals), each also with .gz, .zst or
  .bz2; .parquet, or a folder of Parquet files; .inter, .item, .user of RecBole; a folder written by
  datasets.Dataset.save_to_disk; hf:NAME or hf:NAME:SPLIT, a dataset of the Hugging Face Hub; hf://datasets/OWNER/NAME/FILE

Columns are found by their names (user_id, userId, reviewerID, ...; movie_title, genres, prod_name, ...) unless flags name them.
A --folder is a public data set as it is downloaded; its format is recognized by its files. --list-formats prints the formats: the
data sets, where they come from and their terms.

The filters run in this order: one of repeated (user, item) pairs is kept (--repeats), then --min-rating, then the numbers
of interactions (--k-core, --min-user-interactions, ...), then --short-users.
"""

NOT_ARGUMENTS = ("output", "json", "debug", "list_formats", "no_reviews")
"""Flags that are no arguments of `raw_data.write_raw_data`."""

logger = logging.getLogger(__name__)


class ListFormats(argparse.Action):
    """Print the table of formats, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Run the action."""
        print(format_table())
        parser.exit()


def build_parser() -> CommandParser:
    """Parse the command line."""
    parser = CommandParser(
        "prepare",
        description="Prepare a data folder from raw interactions and texts, with any ids.",
        epilog=EPILOG,
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a data folder that is there")
    parser.add_argument("--json", action="store_true", help="print statistics and protocol as JSON")
    parser.add_argument("--data-license", metavar="NAME", help="licence of the data, for the cards of models trained on it")
    parser.add_argument(
        "--data-language",
        nargs="+",
        default=[],
        metavar="CODE",
        help="ISO 639 codes of the languages of the texts (en), for cards",
    )
    _add_source_arguments(parser)
    _add_text_arguments(parser, "item")
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="ROLE=COLUMN",
        help="columns that models read as texts, several joined by commas: title=prod_name description=detail_desc,section; "
        f"the roles are {', '.join(KNOWN_TEXTS)} (of users) (default: known names)",
    )
    parser.add_argument("--keep-all-items", action="store_true", help="keep items that have no interaction")
    _add_text_arguments(parser, "user")
    _add_protocol_arguments(parser)
    return parser


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("interactions")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--interactions", metavar="SOURCE", help="one row per interaction; see below")
    source.add_argument("--folder", type=Path, help="a public data set, as it is downloaded")
    group.add_argument("--format", choices=FORMATS, help="form of --folder (default: recognized by its files)")
    group.add_argument("--list-formats", action=ListFormats, nargs=0, help="print the formats and end")
    for entity in ("user", "item"):
        group.add_argument(f"--{entity}-column", metavar="NAME", help=f"ids (default: {entity}_id, or a known name)")
    for name, what in (
        ("rating", "numbers"),
        ("timestamp", "seconds to nanoseconds since 1970, ISO-8601 times, or any numbers that order a user's interactions"),
        ("review", "texts; kept for train pairs only"),
    ):
        group.add_argument(f"--{name}-column", metavar="NAME", help=f"{what} (default: {name} or a known name, if there is one)")
    group.add_argument("--split-column", metavar="NAME", help="for --split given: train, validation or test (default: split)")
    group.add_argument(
        "--delimiter", metavar="TEXT", help="of text files, such as ';' or '::' (default: recognized in the header)"
    )
    group.add_argument("--encoding", metavar="NAME", help="of text files, such as latin-1 or utf-16 (default: utf-8)")
    group.add_argument(
        "--held-out-reviews",
        action="store_true",
        help="write the reviews of validation and test pairs to a file of their own, for the queries of `cllm4rec evaluate "
        "--search`; nothing else reads it",
    )
    group.add_argument("--no-reviews", action="store_true", help="format cllm4rec: leave the reviews out")
    group.add_argument(
        "--id-type",
        choices=ID_TYPES,
        default="auto",
        help="type of the ids; auto keeps their own, and in a file without types (CSV, RecBole, JSON keys) makes a column of "
        "whole numbers without leading zeros integers (default: auto)",
    )


def _add_text_arguments(parser: argparse.ArgumentParser, entity: str) -> None:
    group = parser.add_argument_group(f"texts of {entity}s")
    group.add_argument(f"--{entity}s", metavar="SOURCE", help=f"one row per {entity}; see below")
    group.add_argument(
        f"--{entity}s-id-column", metavar="NAME", help=f"column of ids (default: as --{entity}-column, or a known name)"
    )
    group.add_argument(f"--{entity}-columns", nargs="+", metavar="NAME", help="columns to keep (default: all)")
    group.add_argument(f"--exclude-{entity}-columns", nargs="+", default=[], metavar="NAME", help="columns to leave out")
    group.add_argument(
        f"--on-missing-{entity}",
        choices=ON_MISSING,
        help=f"what to do with {entity}s that have interactions but are not in --{entity}s (default: error"
        + ("; of formats whose texts are known to lack items, keep)" if entity == "item" else ")"),
    )


def _add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters and split")
    group.add_argument(
        "--repeats",
        choices=REPEATS,
        default="last",
        help="which interaction of a user with the same item is kept; the released preprocessing of LC-Rec keeps the first "
        "(default: last)",
    )
    group.add_argument(
        "--min-rating",
        type=float,
        metavar="X",
        help='keep ratings >= X; the paper\'s "rating > 3" of whole stars is --min-rating 4 (default: keep all)',
    )
    group.add_argument(
        "--k-core",
        type=int,
        default=0,
        metavar="K",
        help="keep users and items with at least K interactions among those kept; both minima at once (default: 0, off)",
    )
    for entity in ("user", "item"):
        for bound, word in (("min", "fewer"), ("max", "more")):
            group.add_argument(
                f"--{bound}-{entity}-interactions",
                type=int,
                metavar="N",
                help=f"remove {entity}s with {word} interactions, until none is left (default: off)",
            )
    group.add_argument(
        "--short-users",
        choices=SHORT_USERS,
        default="train",
        help=f"for --split random and leave-one-out: treatment of users with fewer than {LEAST_INTERACTIONS} interactions; "
        "train: all of them are in train (default: train)",
    )
    group.add_argument(
        "--split",
        choices=SPLIT_KINDS,
        help="random: 80/10/10 of each user, at least one each, as the paper; leave-one-out: each user's last is test, last but "
        "one validation; temporal: two times for everyone; given: by --split-column, or by the files of a --folder (default: "
        "that of the --format, else random)",
    )
    group.add_argument(
        "--order",
        choices=ORDERS,
        help="order of the interactions of a user: by time, and of equal times by row; or by row alone (default: time; with "
        "--format lcrec rows, because its lists are in order)",
    )
    group.add_argument("--seed", type=int, default=42, help="of --split random (default: 42)")
    group.add_argument(
        "--temporal-cuts",
        type=float,
        nargs=2,
        default=(0.8, 0.9),
        metavar=("A", "B"),
        help="for --split temporal: shares of all interactions before validation and test begin (default: 0.8 0.9)",
    )
    group.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="memory for the interactions, as 4GB; what does not fit is in a temporary folder next to the output meanwhile "
        "(default: half of the machine's)",
    )


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Read, prepare and write; the log names each step when it begins."""
    chosen = {name: value for name, value in vars(args).items() if name not in NOT_ARGUMENTS}
    return write_raw_data(
        args.output,
        **chosen
        | {
            "text": _roles(args.text),
            "temporal_cuts": tuple(args.temporal_cuts),
            "reviews": not args.no_reviews,
            "on_step": logger.info,
        },
    )


def _roles(words: list[str] | None) -> dict[str, list[str]]:
    """Parse `title=prod_name description=detail_desc,section`."""
    roles: dict[str, list[str]] = {}
    for word in words or ():
        role, sign, columns = word.partition("=")
        if not sign or role in roles:
            raise InputError(
                f"text: {word!r} is not ROLE=COLUMN" if not sign else f"text names the role {role!r} twice; join them"
            )
        roles[role] = columns.split(",")
    return roles


def report(folder: Path, info: dict[str, Any]) -> str:
    """Format the statistics of a folder, one per line."""
    statistics = info["statistics"]
    width = max(map(len, statistics))
    lines = [f"{name.replace('_', ' '):<{width}}  {value:,}" for name, value in statistics.items()]
    return "\n".join([f"{folder}: {info['protocol']['line']}", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    show_log()

    def work() -> None:
        info = prepare(args)
        if args.json:
            print_json({"folder": str(args.output), **info})
        else:
            print(report(args.output, info))

    return parser.run(args, work)
