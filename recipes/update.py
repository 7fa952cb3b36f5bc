"""Go on training a CLLM4Rec on new interactions, users and items: `cllm4rec update`.

accelerate launch recipes/update.py --start runs/mine --data data/mine-now --output runs/mine-now
"""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.main import load

main = load("update")

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
