"""Add items to a trained model by their texts alone, and save it to a new folder: `cllm4rec add-items`.

python recipes/add_items.py --model runs/mine --items new.parquet --output runs/mine-now
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.add_items import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
