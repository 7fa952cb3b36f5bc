"""What `evaluate` and `recommend` ask alike: which model, and how it searches."""

from __future__ import annotations

import argparse
from typing import Any

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.recommender import RecommenderModel


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--batch-size` and the settings of LC-Rec's search."""
    parser.add_argument("--model", required=True, help="folder or Hub name of a finetuned or aligned model")
    parser.add_argument("--batch-size", type=int, help="users in one pass (default: the model's)")
    search = parser.add_argument_group("LC-Rec")
    search.add_argument("--num-beams", type=int, help="beams of the search (default: the model's)")
    search.add_argument("--scoring", choices=["beam", "all"], help="search (default), or score every item exactly")


def search_settings(arguments: argparse.Namespace, model: RecommenderModel) -> dict[str, Any]:
    """Return the settings of the search that were given.

    Raises:
        InputError: there are some, but the model scores all items at once and does not search.
    """
    given = {name: getattr(arguments, name) for name in ("num_beams", "scoring") if getattr(arguments, name) is not None}
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
