"""`cllm4rec export onnx | vectors | space`: a model in the forms that other programs read."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from modeling_cllm4rec.commands.command_line import BAD_ARGUMENTS, OK, CommandParser, print_json

HELP = """usage: cllm4rec export {onnx,vectors,space} ...

Write a model in a form that other programs read.

  onnx     CLLM4Rec's scoring as ONNX, checked with onnxruntime
  vectors  item vectors, the query encoder, an approximate index and its recall
  space    a folder that is a Hugging Face Space with the page of `cllm4rec app`

example:
  cllm4rec export onnx --model runs/mine --output exports/onnx
  cllm4rec export vectors --model runs/mine --output exports/vectors --without-users

`cllm4rec export onnx --help` shows the flags of one of them.
"""
ONNX_EPILOG = """example:
  cllm4rec export onnx --model runs/mine --output exports/onnx

Written: model.onnx (inputs input_ids and attention_mask, int64 (batch, tokens); output item_logits, float32 (batch, items)),
large weights in model.onnx.data, model.json (how a prompt is built), catalogue.parquet (which item a column is).
"""
VECTORS_EPILOG = """example:
  cllm4rec export vectors --model runs/mine --output exports/vectors

Written: item_vectors.parquet and .safetensors, the same of users, query_encoder/ (a model folder), vectors.json and, where
usearch is installed, items.usearch with its recall. The score of an item is the dot product of the two vectors.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one of the exports; its exit code, 2 if there is none of that name."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return OK if words else BAD_ARGUMENTS
    kind, rest = words[0], words[1:]
    if kind == "onnx":
        return onnx_main(rest)
    if kind == "vectors":
        return vectors_main(rest)
    if kind == "space":
        code: int = importlib.import_module("modeling_cllm4rec.app.space").main(rest)
        return code
    print(f"cllm4rec export: error: there is no export {kind!r}; allowed are onnx, vectors, space", file=sys.stderr)
    return BAD_ARGUMENTS


def onnx_main(argv: list[str]) -> int:
    """`cllm4rec export onnx`."""
    flags = _parser("onnx", "Write CLLM4Rec's scoring as ONNX, and check it with onnxruntime against torch.", ONNX_EPILOG)
    arguments = flags.parse_args(argv)

    def work() -> None:
        from modeling_cllm4rec.exports.scoring_graph import GRAPH_FILE, export_onnx
        from modeling_cllm4rec.hub.loading import load_recommender

        check = export_onnx(load_recommender(arguments.model), arguments.output)["check"]
        if arguments.json:
            print_json(check)
        else:
            file = Path(arguments.output, GRAPH_FILE)
            difference, allowed = check["largest_difference"], check["tolerance"]
            print(f"{file}: scores differ from torch's by {difference:.2g} at most ({allowed:g} allowed)")

    return flags.run(arguments, work)


def vectors_main(argv: list[str]) -> int:
    """`cllm4rec export vectors`."""
    flags = _parser("vectors", "Write item vectors, users' vectors, the query encoder, and an approximate index.", VECTORS_EPILOG)
    flags.add_argument("--without-users", action="store_true", help="leave the known users' vectors out, for privacy")
    flags.add_argument("--no-index", action="store_true", help="build no approximate index")
    flags.add_argument("--k", type=int, default=10, help="the index's recall is measured at k (default: 10)")
    flags.add_argument("--queries", type=int, default=1000, help="on so many users, drawn at random (default: 1000)")
    flags.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    flags.add_argument("--batch-size", type=int, default=256, help="people encoded at a time (default: 256)")
    arguments = flags.parse_args(argv)

    def work() -> None:
        from modeling_cllm4rec.exports.vectors import export_vectors
        from modeling_cllm4rec.hub.loading import load_recommender

        about = export_vectors(
            load_recommender(arguments.model),
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
            print("\n".join(_in_words(about, arguments)))

    return flags.run(arguments, work)


def _in_words(about: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    lines = [f"{arguments.output}: {about['items']} item vectors and {about['users']} user vectors of width {about['width']}"]
    recall = about["recall"]
    if recall is not None:
        lines.append(
            f"index: recall@{recall['k']} {recall['recall']:.4f} of the exact answer on {recall['queries']} users; "
            f"{recall['approximate_ms']:.3f} ms a query, exact {recall['exact_ms']:.3f} ms"
        )
    elif about["index"] is not None:
        lines.append("index: written; its recall is unknown, because the model keeps no histories to ask with")
    elif not arguments.no_index:
        lines.append("index: none, usearch is not installed; run: pip install usearch")
    return lines


def _parser(kind: str, description: str, epilog: str) -> CommandParser:
    flags = CommandParser(
        f"export {kind}",
        description=description,
        epilog=epilog,
    )
    flags.add_argument("--model", required=True, help="folder or Hub name of a finetuned CLLM4Rec model")
    flags.add_argument("--output", required=True, help="folder to write; new or empty")
    flags.add_argument("--json", action="store_true", help="print what was measured as JSON")
    return flags
