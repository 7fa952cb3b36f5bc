"""An accelerator that is not there: tensors on "lazy" that compute on the CPU, and refuse to meet those of the CPU.

As on a real device, an operation on tensors of two devices is an error, apart from CPU numbers and CPU index tensors, and NumPy
cannot read them. The device is "lazy", the one that torch initializes nothing for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy")
COPIES = {"aten._to_copy.default", "aten.copy_.default"}
INDEXED = {"aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default", "aten._index_put_impl_.default"}


class OnDevice(torch.Tensor):
    """A tensor that is said to be on the device; its values are on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(function, args, kwargs or {})

    def tolist(self) -> Any:  # type: ignore[override]
        return self.values.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.values!r})"


def _dispatch(function: Any, args: Any, kwargs: Any) -> Any:
    name = str(function)
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    here = [one for one in tensors if not isinstance(one, OnDevice)]
    there = len(here) < len(tensors)
    indices = set(map(id, tree_flatten(args[1])[0])) if name in INDEXED and isinstance(args[0], OnDevice) else set()
    if there and name not in COPIES:
        for one in here:
            if one.dim() and id(one) not in indices:
                raise RuntimeError(f"{name}: tensors on cpu and on {DEVICE}")
    wanted = kwargs.get("device")
    if wanted is not None:
        there = torch.device(wanted).type == DEVICE.type
        kwargs = {**kwargs, "device": "cpu"}
    kwargs = {key: value for key, value in kwargs.items() if not (key == "pin_memory" and value is False)}
    plain_args, plain_kwargs = tree_map(lambda one: one.values if isinstance(one, OnDevice) else one, (args, kwargs))
    found = function(*plain_args, **plain_kwargs)
    operation = name.split(".")[1]
    if operation.endswith("_") and not operation.endswith("__"):  # in place
        return args[0]
    return tree_map(lambda one: OnDevice(one) if there and type(one) is torch.Tensor else one, found)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(function, args, kwargs or {})


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Make the device within a block; modules move to it by `to`."""
    before, tensor = torch.__future__.get_overwrite_module_params_on_conversion(), torch.tensor

    def from_data(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:  # it makes tensors where no mode sees it
        made: torch.Tensor = tensor(data, **kwargs)
        return made if device is None else made.to(device)

    torch.tensor = from_data  # type: ignore[assignment]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Mode():
            yield DEVICE
    finally:
        torch.tensor = tensor
        torch.__future__.set_overwrite_module_params_on_conversion(before)
