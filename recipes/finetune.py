"""Finetune a pretrained CLLM4Rec for recommendation: masked history in, held-out items out (section 3.4).

    accelerate launch recipes/finetune.py --config recipes/configs/beauty.yaml
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.training.arguments import FinetuneArguments
from modeling_cllm4rec.training.command import stage_command
from modeling_cllm4rec.training.finetuning import finetune


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return stage_command(FinetuneArguments, "finetune", finetune, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
