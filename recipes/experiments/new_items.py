"""Recall of cold items: hold items out of training, add them by their texts alone, and rank them.

    python recipes/experiments/new_items.py split --data data/beauty --output data/beauty-withheld
    ... train a model on data/beauty-withheld ...
    python recipes/experiments/new_items.py measure --data data/beauty-withheld --model runs/withheld --output new-items.json

Use `--part tuning` to choose settings and `--part report` for the figures to report. The two parts are disjoint. The table
compares models of both systems with popularity, random and text nearest neighbours.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from cold_items import PARTS, HeldOutItems, hold_out_items
from new_items_recall import NewItemsResult, baselines_for, new_items_recall, new_items_table
from transformers import AutoTokenizer

from modeling_cllm4rec.cllm4rec.catalogue_changes import ITEM_WORDS
from modeling_cllm4rec.commands.add_items import add_growth_flags, growth_settings
from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.core.catalogue import Catalogue, text_column
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.id_checks import check_same_ids
from modeling_cllm4rec.corpora.item_embeddings import MINILM, embed_items
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.systems import resolve, system_of


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(prog="new_items.py", description=__doc__)
    commands = flags.add_subparsers(dest="command", required=True)
    split = commands.add_parser("split", help="write a data folder without a share of the items")
    split.add_argument("--data", required=True, help="prepared data folder")
    split.add_argument("--output", required=True, help="output folder for the data without these items, and for the items")
    split.add_argument("--share", type=float, default=0.1, help="share of the items to report on (default: 0.1)")
    split.add_argument(
        "--tuning-share", type=float, default=0.05, help="share of the items for choosing settings (default: 0.05)"
    )
    split.add_argument("--split-seed", type=int, default=0, help="random seed of the split")
    split.add_argument("--overwrite", action="store_true", help="replace an existing data folder")
    measure = commands.add_parser("measure", help="add the held-out items to models and rank them")
    measure.add_argument("--data", required=True, help="folder that `split` wrote")
    measure.add_argument("--model", nargs="*", default=[], help="folders of models of either system trained on it")
    measure.add_argument("--part", choices=PARTS, default="report", help="items to report on, or items for choosing settings")
    measure.add_argument("--k", type=int, default=20, help="length of the ranked lists (default: 20)")
    measure.add_argument("--batch-size", type=int, default=256, help="users per batch (default: 256)")
    measure.add_argument("--output", help="JSON file for the numbers")
    texts = measure.add_argument_group("text nearest neighbour")
    texts.add_argument("--baseline-encoder", default=MINILM, help="text encoder (default: minilm)")
    texts.add_argument("--baseline-text-tokens", type=int, default=256, help="truncate longer texts (default: 256)")
    add_growth_flags(measure)
    return flags


def measure(arguments: argparse.Namespace) -> dict[str, NewItemsResult]:
    """Rank the new items by the baselines and by each model."""
    held_out = HeldOutItems.load(arguments.data)
    new = held_out.part(arguments.part)
    vectors = text_vectors(
        pa.concat_tables([held_out.data.items, new]), arguments.baseline_encoder, arguments.baseline_text_tokens
    )
    shared = {"k": arguments.k, "batch_size": arguments.batch_size, "seed": arguments.seed}
    results = {
        name: new_items_recall(one, held_out, new, **shared)
        for name, one in baselines_for(held_out, new.num_rows, vectors, arguments.seed).items()
    }
    for folder in arguments.model:
        model = load_recommender(folder)
        check_same_ids(model, held_out.data, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        system = system_of(model)
        if model.scores_catalogue:
            model.catalogue = Catalogue(held_out.data.items)  # models may be saved without some text columns
        settings = {name: value for name, value in growth_settings(arguments).items() if name in system.add_items_settings}
        resolve(system.add_items)(model, tokenizer, new, **settings)
        results[f"{system.title} ({Path(folder).name})"] = new_items_recall(model, held_out, new, **shared)
    return results


def text_vectors(items: pa.Table, encoder: str, max_text_tokens: int) -> np.ndarray:
    """Return (J, d) vectors of title, brand and categories as one text, the same input as that of the models."""
    columns = [text_column(items, name) for name in ITEM_WORDS if name in items.column_names]
    texts = [" ".join(filter(None, parts)) for parts in zip(*columns, strict=True)]
    table = pa.table({"item_id": items["item_id"], "text": pa.array(texts, pa.string())})
    return embed_items(table, encoder=encoder, fields=("text",), max_text_tokens=max_text_tokens)


def run(arguments: argparse.Namespace) -> None:
    """Run `split` or `measure` and print the result."""
    if arguments.command == "split":
        shares = {"share": arguments.share, "tuning_share": arguments.tuning_share}
        data = RecommendationData.load(arguments.data)
        held_out = hold_out_items(data, arguments.output, **shares, seed=arguments.split_seed, overwrite=arguments.overwrite)
        print(
            f"{held_out.data.num_items} items and {held_out.data.interactions.num_rows} interactions in {arguments.output}, "
            f"{held_out.items.num_rows} items with {held_out.interactions.num_rows} interactions held out"
        )
        return
    results = measure(arguments)
    if arguments.output:
        text = json.dumps({name: result.to_dict() for name, result in results.items()}, indent=1)
        Path(arguments.output).write_text(text + "\n", encoding="utf-8")
    print(new_items_table(results))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return flags.run(arguments, lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
