"""16-bit copies of frozen weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen_weights_in(dtype: torch.dtype | None, model: nn.Module) -> Iterator[None]:
    """Cast the frozen matrices of a model's layers to `dtype` within a block, and restore them after it.

    Autocast caches the cast of a trained weight only and casts a frozen one at every use. Casting once gives the same products
    to the bit. Embedding tables are not cast, because autocast looks them up in full precision.

    Args:
        dtype: the data type of autocast; None changes nothing.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    frozen = [
        weight for weight in model.parameters() if weight.ndim == 2 and not weight.requires_grad and id(weight) not in tables
    ]
    # The originals are kept rather than cast back: a round trip through 16 bits would lose digits of the saved weights.
    before = [weight.data for weight in frozen]
    try:
        if dtype is not None:
            for weight in frozen:
                weight.data = weight.data.to(dtype)
        yield
    finally:
        for weight, data in zip(frozen, before, strict=True):
            weight.data = data
