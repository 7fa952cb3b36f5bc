"""Seconds per user of the exact best items of LC-Rec (`scoring="all"`): by the scores of all items, and by a bounded search.

    python recipes/experiments/exact_search_speed.py --model runs/scientific-lcrec --items 1000 4344 10000

Both ways get the same prompts, of users of the model, in the same process in turn, and their lists are compared. A catalogue
larger than the model's has further random semantic IDs, a smaller one its first items. `--untrained` scales the output layer
down to 0, so that all codes are equally likely: the worst case of a bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.core.errors import InputError, RunError
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.lcrec.beam_search import score_all
from modeling_cllm4rec.lcrec.constrained_decoding import ItemTrie
from modeling_cllm4rec.lcrec.exact_search import best_of_all
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation

K = 10


def codes_of_size(codes: np.ndarray, codebook_size: int, items: int, seed: int) -> np.ndarray:
    """Return (items, H) codes: the first ones, or all and random others.

    Example:
        >>> codes_of_size(np.array([[0, 1], [1, 1]]), 2, 4, seed=0)[:2].tolist()
        [[0, 1], [1, 1]]
    """
    levels = codes.shape[1]
    if items > codebook_size**levels:
        raise InputError(f"items is {items}; {levels} levels of {codebook_size} codes tell {codebook_size**levels} apart")
    powers = codebook_size ** np.arange(levels)
    numbers = dict.fromkeys((codes[:items].astype(np.int64) @ powers).tolist())
    random = np.random.default_rng(seed)
    while len(numbers) < items:
        numbers |= dict.fromkeys(random.integers(0, codebook_size**levels, items).tolist())
    return np.array(list(numbers))[:items, None] // powers % codebook_size


def compare(model: LCRecForRecommendation, items: int, users: int, seed: int) -> dict[str, Any]:
    """Return the seconds per user of both ways, their ratio, and the share of equal lists.

    Raises:
        RunError: the scores of the best items differ.
    """
    assert model.users is not None
    random = np.random.default_rng(seed)
    trie = ItemTrie(codes_of_size(model.semantic_ids.codes, model.config.codebook_size, items, seed), model.config.codebook_size)
    chosen = random.choice(len(model.users), users, replace=False)
    histories = [model.users.history(user) for user in chosen.tolist()]
    prompts = model.build_prompts(None, histories)
    first = model.config.first_index_token
    seconds: dict[str, list[float]] = {"all": [], "bounded": []}
    same = []
    for prompt in prompts:
        ids, mask = model.pad_prompts([prompt])
        start = time.process_time()
        scores = score_all(model.backbone, ids, mask, trie, first)
        middle = time.process_time()
        found = best_of_all(model.backbone, ids, mask, trie, first, K)
        seconds["all"].append(middle - start)
        seconds["bounded"].append(time.process_time() - middle)
        expected, best = scores.topk(K)
        if not torch.allclose(expected, found.scores, atol=1e-3):
            raise RunError(f"the best scores differ by {float((expected - found.scores).abs().max())} nats")
        same.append(torch.equal(best, found.items))
    mean = {name: float(np.mean(values)) for name, values in seconds.items()}
    nodes = sum(trie.num_nodes(level) for level in range(1, trie.num_levels))
    return {"items": items, "prefixes": nodes, **mean, "ratio": mean["all"] / mean["bounded"], "same_lists": float(np.mean(same))}


def run(arguments: argparse.Namespace) -> None:
    """Measure all sizes and print a table; with --output, write it as JSON."""
    torch.set_num_threads(1)
    model = load_recommender(arguments.model, device="cpu")
    if not isinstance(model, LCRecForRecommendation) or model.users is None:
        raise InputError(f"model is {arguments.model}; it must be an LC-Rec model with users")
    if arguments.untrained:
        model.backbone.get_output_embeddings().weight.data *= 0
    rows = []
    print("| items | prefixes | all scored, CPU s per user | bounded, CPU s per user | ratio | same lists |\n" + "|---" * 6 + "|")
    for items in arguments.items:
        row = compare(model.eval(), items, arguments.users, arguments.seed)
        rows.append(row)
        print(
            f"| {row['items']:,} | {row['prefixes']:,} | {row['all']:.3f} | {row['bounded']:.3f} | {row['ratio']:.1f} x | "
            f"{row['same_lists']:.0%} |",
            flush=True,
        )
    if arguments.output:
        Path(arguments.output).write_text(
            json.dumps({"k": K, "users": arguments.users, "rows": rows}, indent=1), encoding="utf-8"
        )


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(prog="exact_search_speed.py", description=__doc__)
    flags.add_argument("--model", required=True, help="folder of a trained LC-Rec model with users")
    flags.add_argument("--items", type=int, nargs="+", default=[1000, 10_000], help="sizes of the catalogue")
    flags.add_argument("--users", type=int, default=8, help="users whose items are found")
    flags.add_argument("--untrained", action="store_true", help="make all codes equally likely")
    flags.add_argument("--seed", type=int, default=0, help="random seed")
    flags.add_argument("--output", default="", help="JSON file to write")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    return flags.run(arguments, lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
