"""Give every item of a data folder a semantic index: texts to embeddings to unique codes (section III-B of arXiv 2311.09049).

    accelerate launch recipes/index_items.py --data data/scientific --config recipes/configs/scientific_index.yaml
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.training.command import stage_command
from modeling_cllm4rec.training.indexing import IndexArguments, index_items


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return stage_command(IndexArguments, "index", index_items, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
