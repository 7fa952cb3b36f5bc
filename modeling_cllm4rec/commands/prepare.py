"""`cllm4rec prepare`: a data folder from raw interactions and texts, with any ids."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from modeling_cllm4rec.commands.command_line import CommandParser, print_json
from modeling_cllm4rec.commands.prepare_sources import FORMATS, find_sources, read_sources
from modeling_cllm4rec.corpora.data_folder import check_output
from modeling_cllm4rec.corpora.preparation import ON_MISSING, STEPS, prepare_folder
from modeling_cllm4rec.corpora.readers import checksum
from modeling_cllm4rec.corpora.sources import ID_TYPES
from modeling_cllm4rec.corpora.splits import LEAST_INTERACTIONS, ORDERS, SHORT_USERS, SPLIT_KINDS

EPILOG = """example:
  cllm4rec prepare --interactions reviews.parquet --items items.parquet \\
      --min-rating 4 --k-core 5 --split random --seed 42 --output data/mine
  cllm4rec prepare --format recbole --folder dataset/ml-100k --output data/ml-100k

sources:
  a .csv, .csv.gz, .jsonl, .json (one object per line), .jsonl.gz, .json.gz or .parquet file; a .inter, .item or .user file
  of RecBole; a folder written by datasets.Dataset.save_to_disk; hf:NAME or hf:NAME:SPLIT, a dataset of the Hugging Face Hub

formats of a --folder:
  recbole   NAME.inter (or NAME.train.inter, NAME.valid.inter, NAME.test.inter, a given split), NAME.item, NAME.user
  cllm4rec  train_matrix.npz, val_matrix.npz, test_matrix.npz (a given split), user_item_texts/review.jsonl
  lcrec     NAME.inter.json, NAME.item.json (leave-one-out)

The filters run in this order: the last of repeated (user, item) pairs is kept, then --min-rating, then the numbers of
interactions (--k-core, --min-user-interactions, ...), then --short-users.
"""

logger = logging.getLogger("prepare")


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
    _add_source_arguments(parser)
    _add_text_arguments(parser, "item")
    parser.add_argument("--keep-all-items", action="store_true", help="keep items that have no interaction")
    _add_text_arguments(parser, "user")
    _add_protocol_arguments(parser)
    return parser


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("interactions")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--interactions", metavar="SOURCE", help="one row per interaction; see below")
    source.add_argument("--folder", type=Path, help="a data set in the form of --format; see below")
    group.add_argument("--format", choices=FORMATS, help="form of --folder")
    group.add_argument("--user-column", default="user_id", metavar="NAME", help="default: user_id")
    group.add_argument("--item-column", default="item_id", metavar="NAME", help="default: item_id")
    for name, what in (
        ("rating", "numbers"),
        ("timestamp", "seconds to nanoseconds since 1970, ISO-8601 times, or any numbers that order a user's interactions"),
        ("review", "texts; kept for train pairs only"),
    ):
        group.add_argument(f"--{name}-column", metavar="NAME", help=f"{what} (default: {name}, if there is one)")
    group.add_argument("--split-column", metavar="NAME", help="for --split given: train, validation or test (default: split)")
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
    group.add_argument(f"--{entity}s-id-column", metavar="NAME", help=f"column of ids (default: as --{entity}-column)")
    group.add_argument(f"--{entity}-columns", nargs="+", metavar="NAME", help="columns to keep (default: all)")
    group.add_argument(f"--exclude-{entity}-columns", nargs="+", default=[], metavar="NAME", help="columns to leave out")
    group.add_argument(
        f"--on-missing-{entity}",
        choices=ON_MISSING,
        default="error",
        help=f"what to do with {entity}s that have interactions but are not in --{entity}s (default: error)",
    )


def _add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters and split")
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
    """Read, prepare and write, with one progress bar over the steps."""
    check_output(args.output, args.overwrite)
    files, split = find_sources(args)
    steps = ["reading", "checksums", *STEPS]
    with tqdm(total=len(steps), unit="step", desc="prepare") as bar, logging_redirect_tqdm():

        def begin(step: str) -> None:
            bar.update(steps.index(step) - bar.n)
            bar.set_description(step)
            logger.info("%s", step)

        begin("reading")
        tables = read_sources(args, files, split)
        for name, table in tables.items():
            logger.info("%s: %d rows, columns %s", name, table.num_rows, table.column_names)
        begin("checksums")
        record = [
            {"table": name, "file": Path(source).name, "sha256": checksum(source)}
            for name, sources in files.items()
            for source in sources
        ]
        info = prepare_folder(
            tables.pop("interactions"),
            tables.get("items"),
            tables.get("users"),
            args.output,
            split=split,
            seed=args.seed,
            temporal_cuts=tuple(args.temporal_cuts),
            order=args.order or ("rows" if args.format == "lcrec" else "time"),
            short_users=args.short_users,
            min_rating=args.min_rating,
            k_core=args.k_core,
            min_user_interactions=args.min_user_interactions,
            max_user_interactions=args.max_user_interactions,
            min_item_interactions=args.min_item_interactions,
            max_item_interactions=args.max_item_interactions,
            keep_all_items=args.keep_all_items,
            on_missing_item=args.on_missing_item,
            on_missing_user=args.on_missing_user,
            memory_limit=args.memory_limit,
            overwrite=args.overwrite,
            sources=record,
            data_license=args.data_license,
            on_step=begin,
        )
        bar.update(len(steps) - bar.n)
        bar.set_description("prepared")
    return info


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
    if (args.folder is None) != (args.format is None):
        parser.error("--folder and --format belong together; give both, or --interactions")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def work() -> None:
        info = prepare(args)
        if args.json:
            print_json({"folder": str(args.output), **info})
        else:
            print(report(args.output, info))

    return parser.run(args, work)
