"""The command `cllm4rec export vectors`."""

from __future__ import annotations

import argparse
from typing import Any

from modeling_cllm4rec.commands.command_line import print_json
from modeling_cllm4rec.commands.model_flags import add_device_arguments, placement
from modeling_cllm4rec.exports.flags import export_parser

EPILOG = """example:
  cllm4rec export vectors --model runs/mine --output exports/vectors

Output: item_vectors.parquet and .safetensors, the same files for users, query_encoder/ (a model folder), vectors.json and
items.usearch with its recall. The score of an item is the dot product of the two vectors. Of LC-Rec without an item head: item
vectors and an index by cosine, for similar items.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = export_parser(
        "vectors",
        "Write item vectors, user vectors, the query encoder and an approximate index.",
        EPILOG,
        "a finetuned or aligned model",
    )
    flags.add_argument("--without-users", action="store_true", help="export no user vectors, for privacy")
    flags.add_argument("--no-index", action="store_true", help="build no approximate index")
    flags.add_argument("--k", type=int, default=10, help="k of the recall of the index (default: 10)")
    flags.add_argument(
        "--queries", type=int, default=1000, help="random users, or items, on which recall is measured (default: 1000)"
    )
    flags.add_argument("--seed", type=int, default=0, help="random seed of the users (default: 0)")
    flags.add_argument("--batch-size", type=int, default=256, help="users per batch (default: 256)")
    add_device_arguments(flags)
    arguments = flags.parse_args(argv)

    def work() -> None:
        from modeling_cllm4rec.exports.vectors import export_vectors
        from modeling_cllm4rec.hub.loading import load_recommender

        about = export_vectors(
            load_recommender(arguments.model, **placement(arguments)),
            arguments.output,
            include_users=not arguments.without_users,
            with_index=not arguments.no_index,
            k=arguments.k,
            queries=arguments.queries,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            progress=True,
        )
        if arguments.json:
            print_json(about)
        else:
            print("\n".join(_summary(about, arguments)))

    return flags.run(arguments, work)


def _summary(about: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    lines = [f"{arguments.output}: {about['items']} item vectors and {about['users']} user vectors of width {about['width']}"]
    if about["score"] == "cosine":
        lines.append(
            "the model has no item head, so it encodes no queries: the cosine of two item vectors says how similar they are"
        )
    recall = about["recall"]
    if recall is not None:
        lines.append(
            f"index: recall@{recall['k']} {recall['recall']:.4f} of the exact answer on {recall['queries']} queries; "
            f"{recall['approximate_ms']:.3f} ms per query, exact {recall['exact_ms']:.3f} ms"
        )
    elif about["index"] is not None:
        lines.append("index: written; its recall is unknown because the model has no histories for queries")
    return lines
