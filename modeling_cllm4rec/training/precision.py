"""Frozen weights in 16 bits, held once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen_weights_in(dtype: torch.dtype | None, model: nn.Module) -> Iterator[None]:
    """Cast the frozen matrices of a model's layers to `dtype` within a block, and restore them after it.

    Autocast caches the cast of a trained weight only and casts a frozen one at every use. Casting once gives the same products
    to the bit, and the device holds 2 bytes a weight. Embedding tables are not cast, because autocast looks them up in full
    precision.

    Args:
        dtype: the data type of autocast; None changes nothing.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = (weight for weight in model.parameters() if weight.ndim == 2 and not weight.requires_grad)
    frozen = [weight for weight in matrices if id(weight) not in tables] if dtype is not None else []
    before: list[tuple[nn.Parameter, torch.dtype, torch.device, torch.Tensor | None]] = []
    try:
        for weight in frozen:
            cast = weight.data.to(dtype)
            # Backbones published in 16 bits lose nothing. Of others the digits are kept, but not on the accelerator.
            exact = torch.equal(cast.to(weight.dtype), weight.data)
            before.append((weight, weight.dtype, weight.device, None if exact else weight.data.cpu()))
            weight.data = cast
        yield
    finally:
        for weight, dtype_before, device, original in before:
            weight.data = weight.data.to(dtype_before) if original is None else original.to(device)
