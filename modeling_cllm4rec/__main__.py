"""`python -m modeling_cllm4rec COMMAND`, which `accelerate launch -m` starts in several processes."""

from __future__ import annotations

import sys

from modeling_cllm4rec.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
