"""`cllm4rec similar-items`: the items whose vectors in the model are nearest to those of some items."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_cllm4rec.commands.command_line import CommandParser, cell
from modeling_cllm4rec.commands.model_flags import add_device_arguments, placement
from modeling_cllm4rec.core.console_log import hide_loading_bars, show_log
from modeling_cllm4rec.corpora.atomic_files import atomic_file, check_output_file
from modeling_cllm4rec.hub.model_names import check_name

if TYPE_CHECKING:  # importing them takes seconds, which a wrong flag need not wait for
    from modeling_cllm4rec.core.catalogue import SimilarItems
    from modeling_cllm4rec.core.recommender import RecommenderModel

EPILOG = """example:
  cllm4rec similar-items --model runs/mine --items B00021DVCQ --k 5
  cllm4rec similar-items --model runs/mine --k 20 --output similar.parquet

The score is the cosine of the model's vectors of the two items. The item itself is left out.
"""


def parser() -> CommandParser:
    """Parse the flags."""
    flags = CommandParser("similar-items", description="List the items that are most similar to items.", epilog=EPILOG)
    flags.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    flags.add_argument("--items", nargs="+", help="external item ids (default: every item of the catalogue)")
    flags.add_argument("--k", type=int, default=10, help="similar items for each (default: 10)")
    flags.add_argument("--candidates", nargs="+", help="choose among these item ids only")
    flags.add_argument("--on-unknown", choices=["raise", "skip"], default="raise", help="unknown ids: error, or left out")
    flags.add_argument("--batch-size", type=int, help="items in one pass over the catalogue (default: the model's)")
    form = flags.add_mutually_exclusive_group()
    form.add_argument("--output", help="Parquet file for the table; without it, the table is printed with titles")
    form.add_argument("--json", action="store_true", help="print JSON lines: target_item, rank, item, score, title")
    add_device_arguments(flags)
    return flags


def similar_items(arguments: argparse.Namespace, model: RecommenderModel) -> SimilarItems:
    """Return the similar items that the flags ask for."""
    ids = model.require_catalogue().ids
    return model.similar_items(
        ids.array if arguments.items is None else ids.parse(arguments.items),
        arguments.k,
        None if arguments.candidates is None else ids.parse(arguments.candidates),
        arguments.on_unknown,
        arguments.batch_size,
    )


def show(found: SimilarItems, model: RecommenderModel, as_json: bool) -> None:
    """Print similar items with titles, as columns or as JSON lines."""
    catalogue = model.require_catalogue()
    titles = catalogue.titles(catalogue.ids.indices_of(found.table["item"].to_pylist()))
    for row, title in zip(found.to_pylist(), titles, strict=True):
        if as_json:
            print(json.dumps({**row, "title": title}, ensure_ascii=False))
        else:
            target, item = cell(row["target_item"]), cell(row["item"])
            print(f"{target}\t{row['rank']:>3}\t{item}\t{row['score']:.3f}\t{cell(title)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    show_log(logging.WARNING)

    def work() -> None:
        if arguments.output:
            check_output_file(arguments.output)
        check_name(arguments.model)
        from modeling_cllm4rec.hub.loading import load_recommender

        hide_loading_bars()
        model = load_recommender(arguments.model, **placement(arguments))
        found = similar_items(arguments, model)
        if not arguments.output:
            show(found, model, arguments.json)
            return
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(arguments.output) as temporary:
            found.to_parquet(temporary)
        print(f"{len(found)} similar items written to {arguments.output}", file=sys.stderr)

    return flags.run(arguments, work)
