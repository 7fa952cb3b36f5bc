"""Pretrain CLLM4Rec on a data folder: `cllm4rec pretrain`.

accelerate launch recipes/pretrain.py --config recipes/configs/beauty.yaml
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.main import load

main = load("pretrain")

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
