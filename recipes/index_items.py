"""Give every item of a data folder a semantic index: `cllm4rec index-items`.

python recipes/index_items.py --config recipes/configs/scientific_index.yaml
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.main import load

main = load("index-items")

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
