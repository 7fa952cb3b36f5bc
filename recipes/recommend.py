"""Recommend items to users: `cllm4rec recommend`.

python recipes/recommend.py --model runs/beauty --users A3CIUO... --k 10
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.recommend import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
