"""Finetune a pretrained CLLM4Rec for recommendation: `cllm4rec finetune`.

accelerate launch recipes/finetune.py --config recipes/configs/beauty.yaml
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.main import load

main = load("finetune")

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
