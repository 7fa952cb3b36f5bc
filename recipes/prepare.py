"""Prepare a data folder from raw interactions and texts, with any ids: `cllm4rec prepare`.

python recipes/prepare.py --interactions reviews.parquet --output data/mine
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.prepare import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
