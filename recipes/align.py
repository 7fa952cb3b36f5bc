"""Tune a language model on the alignment tasks of LC-Rec: `cllm4rec align`.

accelerate launch recipes/align.py --config recipes/configs/scientific_lcrec.yaml
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.main import load

main = load("align")

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
