"""Flags of the commands that run a model: which one, where it computes, and how it searches."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.hub.placement_names import DEVICE_MAPS, DTYPE_NAMES

if TYPE_CHECKING:  # importing it takes seconds, which a wrong flag need not wait for
    from modeling_cllm4rec.core.recommender import RecommenderModel

PLACEMENT = ("device", "dtype", "attn_implementation", "device_map")
"""Names of the arguments of `load_recommender` that say where a model computes."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--batch-size` and the settings of LC-Rec's search."""
    parser.add_argument("--model", required=True, help="folder or Hub name of a finetuned or aligned model")
    parser.add_argument("--batch-size", type=int, help="users in one pass (default: the model's)")
    add_device_arguments(parser)
    search = parser.add_argument_group("LC-Rec")
    search.add_argument(
        "--num-beams", type=int, nargs="+", help="beams of the search, or those of each level (default: the model's)"
    )
    search.add_argument("--scoring", choices=["beam", "all", "head"], help="search, score every item, or use the item head")


def add_device_arguments(parser: argparse.ArgumentParser, names: Sequence[str] = PLACEMENT) -> None:
    """Add the flags that say where a model computes, or some of them."""
    helps = {
        "device": "device such as cpu, cuda or cuda:1 (default: the accelerator if there is one, else the CPU)",
        "dtype": f"data type of the weights: {', '.join(DTYPE_NAMES)} (default: that of the saved model)",
        "attn_implementation": "attention of the backbone: sdpa, eager, flash_attention_2, ... (default: transformers' choice)",
        "device_map": f"spread a large model over devices: {', '.join(DEVICE_MAPS)}, or JSON with the device of each module",
    }
    placement = parser.add_argument_group("device")
    for name in names:
        placement.add_argument("--" + name.replace("_", "-"), help=helps[name])


def placement(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of `add_device_arguments` as arguments of `load_recommender`, whose line of the log is shown."""
    logging.getLogger("modeling_cllm4rec.hub.loading").setLevel(logging.INFO)
    return {name: getattr(arguments, name) for name in PLACEMENT if name in arguments}


def search_settings(arguments: argparse.Namespace, model: RecommenderModel) -> dict[str, Any]:
    """Return the settings of the search that were given.

    Raises:
        InputError: there are some, but the model scores all items at once and does not search.
    """
    given = {name: getattr(arguments, name) for name in ("num_beams", "scoring") if getattr(arguments, name) is not None}
    if isinstance(beams := given.get("num_beams"), list) and len(beams) == 1:
        (given["num_beams"],) = beams
    if unread := [name for name in given if name not in model.search_settings]:
        refuse_search(unread, arguments.model)
    return given


def refuse_search(names: list[str], model: str) -> None:
    """Raise InputError: these flags are for a model that searches."""
    flags = ", ".join("--" + name.replace("_", "-") for name in names)
    raise InputError(f"{flags}: {model} scores all items at once and has no search to set; leave it out")


def batch_size(arguments: argparse.Namespace, model: RecommenderModel) -> int:
    """Return the number of users per batch: the given one, or the model's default."""
    if arguments.batch_size is not None:
        return int(arguments.batch_size)
    return model.default_batch_size
