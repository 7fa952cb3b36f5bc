"""`cllm4rec add-items`: add items to a trained model by their texts alone, and save it to a new folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from modeling_cllm4rec.cllm4rec.new_item_training import NewRowTraining
from modeling_cllm4rec.commands.changed_models import save_changed_model
from modeling_cllm4rec.commands.command_line import CommandParser, print_json
from modeling_cllm4rec.commands.model_flags import add_device_arguments, placement
from modeling_cllm4rec.core.console_log import show_log
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.atomic_files import check_new_folder
from modeling_cllm4rec.corpora.readers import read_table
from modeling_cllm4rec.hub.loading import load_recommender, load_tokenizer
from modeling_cllm4rec.systems import resolve, system_of

EPILOG = """example:
  cllm4rec add-items --model runs/mine --items new.parquet --output runs/mine-now
  cllm4rec add-items --model runs/mine-lcrec --items new.parquet --output runs/mine-lcrec-now
"""
NOTE = """
## Added afterwards

{count} items were added after training, by their texts alone. The metrics above were measured without them.
"""
LATER = "{count} items were added after this training, by their texts alone."


def parser() -> CommandParser:
    """Parse the flags."""
    flags = CommandParser(
        "add-items",
        description="Add items to a trained model of either system by their texts alone, and save it to a new folder.",
        epilog=EPILOG,
    )
    flags.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    flags.add_argument("--items", required=True, help="table (Parquet, CSV, JSON lines): item_id and text columns")
    flags.add_argument("--output", required=True, help="folder for the grown model; must not exist or be empty")
    add_growth_flags(flags)
    add_device_arguments(flags, ["device"])  # another data type would be that of the saved model
    flags.add_argument("--json", action="store_true", help="print output, added and items as JSON")
    return flags


def add_growth_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags that say how items are added."""
    defaults = NewRowTraining()
    rows = flags.add_argument_group("CLLM4Rec: rows of new items, by which they are recommended")
    rows.add_argument(
        "--start", choices=["regression", "words"], default="regression", help="what rows start from (default: regression)"
    )
    rows.add_argument(
        "--prediction-scale",
        type=float,
        default=0.5,
        help="of a regression: 0 seldom recommends new items, 1 often (default: 0.5)",
    )
    after = flags.add_argument_group(
        "CLLM4Rec: settling",
        "Afterwards the new content rows train on their texts, everything else frozen. It decides\n  what the content LM writes "
        "of new items; recommendations, which read collaborative rows,\n  are the same without it.",
    )
    after.add_argument(
        "--passes", type=int, default=defaults.passes, help=f"passes over their texts (default: {defaults.passes})"
    )
    after.add_argument("--lr", type=float, default=defaults.lr, help=f"learning rate of their rows (default: {defaults.lr})")
    after.add_argument(
        "--lambda-c", type=float, default=defaults.lambda_c, help=f"weight of the regularization (default: {defaults.lambda_c})"
    )
    after.add_argument("--max-text-tokens", type=int, help="cut longer texts; without it, a text beyond the context is an error")
    flags.add_argument("--encoder", help="LC-Rec: place of the encoder of item texts (default: the one that the model names)")
    flags.add_argument("--seed", type=int, default=defaults.seed, help="start of the random numbers")


def growth_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the flags for `training.growth.add_items`."""
    settling = NewRowTraining(
        passes=arguments.passes,
        lr=arguments.lr,
        lambda_c=arguments.lambda_c,
        max_text_tokens=arguments.max_text_tokens,
        seed=arguments.seed,
    )
    settings = {
        "start": arguments.start,
        "prediction_scale": arguments.prediction_scale,
        "settling": settling,
        "encoder": arguments.encoder,
    }
    # Left out where they are at their defaults: a system refuses settings that only another one has.
    defaults = {"start": "regression", "prediction_scale": 0.5, "settling": NewRowTraining(seed=settling.seed), "encoder": None}
    return {name: value for name, value in settings.items() if value != defaults[name]}


def run(arguments: argparse.Namespace) -> None:
    """Load, add, save.

    Raises:
        ExistingFileError: the output holds something.
    """
    output = Path(arguments.output)
    check_new_folder(output)
    settings = growth_settings(arguments)
    items = read_table(arguments.items, ["item_id"])
    model = load_recommender(arguments.model, **placement(arguments))
    if model.catalogue is not None and not model.catalogue.ids.is_text and pa.types.is_large_string(items["item_id"].type):
        ids = model.catalogue.ids.parse(items["item_id"].to_pylist())  # a CSV file has text only
        items = items.set_column(0, "item_id", pa.array(ids))
    old = load_tokenizer(arguments.model)
    system = system_of(model)
    if not system.add_items:
        raise InputError(f"{arguments.model} is of the system {system.title}, which cannot add items; train it again with them")
    if unread := [name for name in settings if name not in system.add_items_settings]:
        raise InputError(f"{', '.join(unread)}: {system.title} does not read this; leave it out")
    tokenizer = resolve(system.add_items)(model, old, items, **settings)
    count = items.num_rows
    save_changed_model(model, tokenizer, arguments.model, output, NOTE.format(count=count), LATER.format(count=count))
    if arguments.json:
        print_json({"output": str(output), "added": count, "items": model.num_items})
    else:
        print(f"{count} items added: {model.num_items} items in {output}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    show_log()
    return flags.run(arguments, lambda: run(arguments))
