"""Rank the whole catalogue and measure what was found: `cllm4rec evaluate`.

python recipes/eval.py --model runs/beauty --data data/beauty --split test
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.evaluate import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
