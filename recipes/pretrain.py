"""Pretrain CLLM4Rec on a data folder: content warm-up, then alternating L and C passes (sections 3.2 and 3.3).

    accelerate launch recipes/pretrain.py --config recipes/configs/beauty.yaml
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.training.arguments import PretrainArguments
from modeling_cllm4rec.training.command import stage_command
from modeling_cllm4rec.training.pretraining import pretrain


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return stage_command(PretrainArguments, "pretrain", pretrain, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
