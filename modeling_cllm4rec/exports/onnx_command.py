"""The command `cllm4rec export onnx`."""

from __future__ import annotations

from pathlib import Path

from modeling_cllm4rec.commands.command_line import print_json
from modeling_cllm4rec.exports.flags import export_parser

EPILOG = """example:
  cllm4rec export onnx --model runs/mine --output exports/onnx

Output: model.onnx (inputs input_ids and attention_mask, int64 (batch, tokens); output item_logits, float32 (batch, items)),
large weights in model.onnx.data, model.json (how a prompt is built), catalogue.parquet (which item a column is).
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = export_parser("onnx", "Write CLLM4Rec's scoring as ONNX, and check it with onnxruntime against torch.", EPILOG)
    arguments = flags.parse_args(argv)

    def work() -> None:
        from modeling_cllm4rec.exports.scoring_graph import GRAPH_FILE, export_onnx
        from modeling_cllm4rec.hub.loading import load_recommender

        check = export_onnx(load_recommender(arguments.model, device="cpu"), arguments.output)["check"]
        if arguments.json:
            print_json(check)
        else:
            file = Path(arguments.output, GRAPH_FILE)
            difference, allowed = check["largest_difference"], check["tolerance"]
            print(f"{file}: scores differ from torch's by {difference:.2g} at most ({allowed:g} allowed)")

    return flags.run(arguments, work)
