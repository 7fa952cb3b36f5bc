"""The command `cllm4rec export causal-lm`."""

from __future__ import annotations

from modeling_cllm4rec.commands.command_line import print_json
from modeling_cllm4rec.exports.flags import export_parser

EPILOG = """example:
  cllm4rec export causal-lm --model runs/lcrec --output exports/lcrec
  python exports/lcrec/decode.py ITEM_ID ITEM_ID

Output: a folder for AutoModelForCausalLM and AutoTokenizer, semantic_ids.json (items, tokens, prompts),
semantic_id_trie.safetensors (the trie as compressed sparse rows), sid2item.json (codes to items) and decode.py, which searches
with these files alone. docs/guides/engines.md: how SGLang, vLLM and FlashRec use them.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = export_parser(
        "causal-lm",
        "Write LC-Rec as a plain causal language model with its semantic IDs as files.",
        EPILOG,
        "an aligned LC-Rec model",
    )
    flags.add_argument(
        "--token-format",
        default="<{level}_{code}>",
        help="names of the tokens of semantic IDs, with a letter for the level; engines that look for names want "
        "'<s_{level}_{code}>' (default: '<{level}_{code}>')",
    )
    arguments = flags.parse_args(argv)

    def work() -> None:
        from modeling_cllm4rec.exports.causal_lm import export_causal_lm
        from modeling_cllm4rec.hub.loading import load_recommender

        about = export_causal_lm(load_recommender(arguments.model, device="cpu"), arguments.output, arguments.token_format)
        if arguments.json:
            print_json(about)
            return
        print(
            f"{arguments.output}: {about['architecture']} with {about['parameters']:,} parameters in {about['dtype']}, "
            f"{about['items']} items of {about['levels']} tokens"
        )
        if about["item_head_left_out"]:
            print("its item head is left out: the export finds items as recommend does with scoring='beam'")

    return flags.run(arguments, work)
