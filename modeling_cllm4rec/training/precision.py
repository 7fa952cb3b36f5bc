"""16-bit copies of weights that do not train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen_weights_in(dtype: torch.dtype | None, model: nn.Module) -> Iterator[None]:
    """Within the block the frozen matrices of a model's layers are `dtype`; after it they are what they were.

    Autocast casts a weight at every use and keeps the cast only of weights that train. Cast once, the products are the
    same to the bit. Embedding tables stay: they are looked up, not multiplied, in full precision.

    Args:
        dtype: what autocast computes in; None leaves everything as it is.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    frozen = [one for one in model.parameters() if one.ndim == 2 and not one.requires_grad and id(one) not in tables]
    before = [weight.data for weight in frozen]
    try:
        if dtype is not None:
            for weight in frozen:
                weight.data = weight.data.to(dtype)
        yield
    finally:
        for weight, data in zip(frozen, before, strict=True):
            weight.data = data
