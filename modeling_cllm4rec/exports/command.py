"""The command `cllm4rec export TARGET`: a table of targets, each imported when it is called."""

from __future__ import annotations

import sys
from typing import NamedTuple

from modeling_cllm4rec.commands.command_line import BAD_ARGUMENTS, OK
from modeling_cllm4rec.core.errors import nearest
from modeling_cllm4rec.systems import resolve


class Export(NamedTuple):
    """An export target.

    Attributes:
        target: `module:function`; the function takes the words after the target's name and returns an exit code.
        about: one line for the help.
        example: the flags of an example call.
        extra: extra of the package that the target needs; "" for none.
    """

    target: str
    about: str
    example: str
    extra: str


EXPORTS = {
    "causal-lm": Export(
        "modeling_cllm4rec.exports.causal_lm_command:main",
        "LC-Rec as a plain causal language model with its semantic IDs as files, for SGLang, vLLM and FlashRec",
        "--model runs/lcrec --output exports/lcrec",
        "",
    ),
    "onnx": Export(
        "modeling_cllm4rec.exports.onnx_command:main",
        "scoring by CLLM4Rec or LC-Rec as ONNX, checked with onnxruntime",
        "--model runs/mine --output exports/onnx",
        "onnx",
    ),
    "vectors": Export(
        "modeling_cllm4rec.exports.vectors_command:main",
        "item vectors, the query encoder where the score is a dot product, an approximate index and its recall",
        "--model runs/mine --output exports/vectors --without-users",
        "vectors",
    ),
    "space": Export(
        "modeling_cllm4rec.app.space:main",
        "a Hugging Face Space with the page of `cllm4rec app`",
        "--model you/beauty --output space",
        "app",
    ),
}
"""Name of each export target -> its row. A further target needs one row here."""


def help_text() -> str:
    """Return the text of `cllm4rec export --help`."""
    width = max(map(len, EXPORTS))
    targets = "\n".join(f"  {name:<{width}}  {row.about}{row.extra and f' (extra {row.extra})'}" for name, row in EXPORTS.items())
    examples = "\n".join(f"  cllm4rec export {name} {row.example}" for name, row in EXPORTS.items())
    return (
        f"usage: cllm4rec export {{{','.join(EXPORTS)}}} ...\n\nWrite a model in a format that other programs read.\n\n"
        f"{targets}\n\nexample:\n{examples}\n\n`cllm4rec export TARGET --help` shows the flags of a target.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run an export and return its exit code, 2 for an unknown target."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(help_text(), end="")
        return OK if words else BAD_ARGUMENTS
    name, rest = words[0], words[1:]
    if name not in EXPORTS:
        print(f"cllm4rec export: error: unknown target {name!r}; {nearest(name, EXPORTS)}", file=sys.stderr)
        return BAD_ARGUMENTS
    code: int = resolve(EXPORTS[name].target)(rest)
    return code
