#!/usr/bin/env python
"""Prepare a data folder from raw interactions and texts, with any ids."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from modeling_cllm4rec.corpora.data_folder import RecommendationData, check_output
from modeling_cllm4rec.corpora.interactions import ID_TYPES, read_interactions, read_texts
from modeling_cllm4rec.corpora.preparation import ON_MISSING, STEPS, prepare_tables
from modeling_cllm4rec.corpora.readers import checksum
from modeling_cllm4rec.corpora.splits import SPLIT_KINDS

EPILOG = """example:
  python recipes/prepare.py --interactions reviews.parquet --items items.parquet \\
      --min-rating 4 --k-core 5 --split random --seed 42 --output data/mine

sources:
  a .csv, .csv.gz, .jsonl, .json (one object per line), .jsonl.gz, .json.gz or .parquet file; a folder written by
  datasets.Dataset.save_to_disk; hf:NAME or hf:NAME:SPLIT, a dataset of the Hugging Face Hub

The filters run in this order: the last of repeated (user, item) pairs is kept, then --min-rating, then --k-core.
"""

logger = logging.getLogger("prepare")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="prepare.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a data folder that is there")
    _add_source_arguments(parser)
    _add_text_arguments(parser, "item")
    parser.add_argument("--keep-all-items", action="store_true", help="keep items that have no interaction")
    _add_text_arguments(parser, "user")
    _add_protocol_arguments(parser)
    return parser


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("interactions")
    group.add_argument("--interactions", required=True, metavar="SOURCE", help="one row per interaction; see below")
    group.add_argument("--user-column", default="user_id", metavar="NAME", help="default: user_id")
    group.add_argument("--item-column", default="item_id", metavar="NAME", help="default: item_id")
    for name, what in (
        ("rating", "numbers"),
        ("timestamp", "unix seconds, ISO-8601 times, or any numbers that order a user's interactions"),
        ("review", "texts; kept for train pairs only"),
    ):
        group.add_argument(f"--{name}-column", metavar="NAME", help=f"{what} (default: {name}, if there is one)")
    group.add_argument(
        "--split-column", metavar="NAME", help="for --split given: train, validation or test (default: split)"
    )
    group.add_argument(
        "--id-type",
        choices=ID_TYPES,
        default="auto",
        help="type of the ids; auto keeps their own, and in a CSV file makes a column of whole numbers without leading "
        "zeros integers (default: auto)",
    )


def _add_text_arguments(parser: argparse.ArgumentParser, entity: str) -> None:
    group = parser.add_argument_group(f"texts of {entity}s")
    group.add_argument(f"--{entity}s", metavar="SOURCE", help=f"one row per {entity}; see below")
    group.add_argument(f"--{entity}s-id-column", metavar="NAME", help=f"column of ids (default: as --{entity}-column)")
    group.add_argument(f"--{entity}-columns", nargs="+", metavar="NAME", help="columns to keep (default: all)")
    group.add_argument(
        f"--exclude-{entity}-columns", nargs="+", default=[], metavar="NAME", help="columns to leave out"
    )
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
        help="keep users and items with at least K interactions among those kept (default: 0, off)",
    )
    group.add_argument(
        "--split",
        choices=SPLIT_KINDS,
        default="random",
        help="random: 80/10/10 of each user, at least "
        "one each, as the paper (default); leave-one-out: each user's last is test, last but one "
        "validation; temporal: two times for everyone; given: by --split-column",
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


def prepare(args: argparse.Namespace) -> RecommendationData:
    """Read, prepare and write, with one progress bar over the steps."""
    check_output(args.output, args.overwrite)
    sources = {name: getattr(args, name) for name in ("interactions", "items", "users") if getattr(args, name)}
    steps = [*(f"reading {name}" for name in sources), "checksums", *STEPS]
    with tqdm(total=len(steps), unit="step", desc="prepare") as bar, logging_redirect_tqdm():

        def begin(step: str) -> None:
            bar.update(steps.index(step) - bar.n)
            bar.set_description(step)
            logger.info("%s", step)

        tables: dict[str, pa.Table] = {}
        for name in sources:
            begin(f"reading {name}")
            tables[name] = _read(name, args)
            logger.info("%s: %d rows, columns %s", sources[name], tables[name].num_rows, tables[name].column_names)
        begin("checksums")
        record = [
            {"table": name, "file": Path(source).name, "sha256": checksum(source)} for name, source in sources.items()
        ]
        data = prepare_tables(
            tables.pop("interactions"),
            tables.get("items"),
            tables.get("users"),
            args.output,
            split=args.split,
            seed=args.seed,
            temporal_cuts=tuple(args.temporal_cuts),
            min_rating=args.min_rating,
            k_core=args.k_core,
            keep_all_items=args.keep_all_items,
            on_missing_item=args.on_missing_item,
            on_missing_user=args.on_missing_user,
            overwrite=args.overwrite,
            sources=record,
            on_step=begin,
        )
        bar.update(len(steps) - bar.n)
        bar.set_description("prepared")
    return data


def _read(table: str, args: argparse.Namespace) -> pa.Table:
    if table == "interactions":
        return read_interactions(
            args.interactions,
            user_column=args.user_column,
            item_column=args.item_column,
            rating_column=args.rating_column,
            timestamp_column=args.timestamp_column,
            review_column=args.review_column,
            split_column=args.split_column,
            with_split=args.split == "given",
            id_type=args.id_type,
        )
    entity = table.removesuffix("s")
    values = vars(args)
    return read_texts(
        values[table],
        id_column=values[f"{table}_id_column"] or values[f"{entity}_column"],
        name=f"{entity}_id",
        columns=values[f"{entity}_columns"],
        exclude=values[f"exclude_{entity}_columns"],
        id_type=args.id_type,
    )


def report(data: RecommendationData) -> str:
    """The statistics of a folder, one per line."""
    statistics = data.info["statistics"]
    width = max(map(len, statistics))
    lines = [f"{name.replace('_', ' '):<{width}}  {value:,}" for name, value in statistics.items()]
    return "\n".join([f"{data.folder}: {data.info['protocol']['line']}", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 if the folder was written, 2 if the input was at fault."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        data = prepare(args)
    except (ValueError, OSError) as error:
        print(f"prepare.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(report(data))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
