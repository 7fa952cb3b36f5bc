"""Tune a language model on the alignment tasks of LC-Rec: item indices and language (section III-C of arXiv 2311.09049).

    accelerate launch recipes/align.py --config recipes/configs/scientific_lcrec.yaml
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.training.alignment import AlignArguments, align
from modeling_cllm4rec.training.command import stage_command


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return stage_command(AlignArguments, "align", align, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
