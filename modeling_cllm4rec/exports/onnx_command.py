"""The command `cllm4rec export onnx`."""

from __future__ import annotations

from pathlib import Path

from modeling_cllm4rec.commands.command_line import print_json
from modeling_cllm4rec.exports.flags import export_parser

EPILOG = """example:
  cllm4rec export onnx --model runs/mine --output exports/onnx
  cllm4rec export onnx --model runs/mine --dtype int8 --output exports/onnx-int8

Output: model.onnx (inputs input_ids and attention_mask, int64 (batch, tokens); output item_logits, float32 (batch, items)),
large weights in model.onnx.data, model.json (how a prompt is built), catalogue.parquet (which item a column is). LC-Rec: output
index_log_probs (batch, tokens of semantic IDs), and item_log_probs with an item head; the files of `export causal-lm` with
decode.py, which searches with the graph.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = export_parser(
        "onnx", "Write scoring as ONNX, and check it with onnxruntime against torch.", EPILOG, "a finetuned or aligned model"
    )
    flags.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "int8"],
        default="float32",
        help="type of the weights; the check prints what it costs (default: float32)",
    )
    arguments = flags.parse_args(argv)

    def work() -> None:
        from modeling_cllm4rec.exports.onnx_graph import GRAPH_FILE, export_onnx
        from modeling_cllm4rec.hub.loading import load_recommender

        check = export_onnx(load_recommender(arguments.model, device="cpu"), arguments.output, arguments.dtype)["check"]
        if arguments.json:
            print_json(check)
        else:
            file = Path(arguments.output, GRAPH_FILE)
            difference, allowed = check["largest_difference"], check["tolerance"]
            limit = "" if allowed is None else f" ({allowed:g} allowed)"
            print(f"{file}: scores differ from torch's by {difference:.2g} at most{limit}")
            print(f"{100 * check['top_10_overlap']:.1f}% of torch's ten best are among its own, on {check['prompts']} prompts")

    return flags.run(arguments, work)
