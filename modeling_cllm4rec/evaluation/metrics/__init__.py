"""The ranking metrics as modules of the `evaluate` library, loaded from this folder without network access.

```python
recall = evaluate.load(metric_path("recall_at_k"))
recall.compute(predictions=[[4, 2, 7]], references=[[7, 9]], k=3)
```
"""

from __future__ import annotations

from pathlib import Path

from modeling_cllm4rec.core.errors import InputError

METRIC_NAMES = ("recall_at_k", "ndcg_at_k", "hit_rate_at_k", "mrr_at_k", "coverage_at_k")


def metric_path(name: str) -> str:
    """Return the folder of a metric module, the argument of `evaluate.load`.

    Args:
        name: one of `METRIC_NAMES`.

    Raises:
        InputError: `name` is unknown.

    >>> metric_path("recall_at_k").endswith("recall_at_k")
    True
    """
    if name not in METRIC_NAMES:
        raise InputError(f"name must be one of {', '.join(METRIC_NAMES)}, got {name!r}")
    return str(Path(__file__).parent / name)
