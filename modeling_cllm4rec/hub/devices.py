"""Where a loaded model computes: device, data type, attention, and the parts of a large backbone on several devices."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.hub.placement_names import DEVICE_MAPS, DTYPE_NAMES

__all__ = [
    "DEVICE_MAPS",
    "DTYPES",
    "available_devices",
    "check_device_map",
    "choose_device",
    "choose_dtype",
    "describe_placement",
]

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}
"""Name of a type of weights -> the type of torch."""
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def available_devices() -> list[str]:
    """Return the devices of this machine: those of the accelerator (cuda, xpu, mps, ...), then the CPU.

    Example:
        >>> available_devices()[-1]
        'cpu'
    """
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return [*(f"{kind.type}:{number}" for number in range(torch.accelerator.device_count())), "cpu"]


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to compute on.

    Args:
        device: `cpu`, a kind of accelerator (`cuda`) or one accelerator (`cuda:1`). None and `auto` choose the accelerator if
            there is one. Of the processes of one launch (`LOCAL_RANK`), each gets its own.

    Raises:
        InputError: this machine has no such device.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    found = available_devices()
    name = "auto" if device is None else str(device).lower()
    own = found[int(os.environ.get("LOCAL_RANK", "0")) % max(1, len(found) - 1)]
    if name == "auto":
        return torch.device(own)
    if name in found:
        return torch.device(name)
    if own.startswith(f"{name}:"):
        return torch.device(own)
    kinds = list(dict.fromkeys([*found, *(one.partition(":")[0] for one in found), "auto"]))
    hint = nearest(name, kinds, "leave it out to choose the accelerator if there is one")
    raise InputError(f"device is {str(device)!r}; this machine has {', '.join(found)}; {hint}")


def choose_dtype(dtype: str | torch.dtype | None = None) -> torch.dtype | None:
    """Return the data type of the weights; None keeps that of the saved folder.

    Args:
        dtype: a floating type, or its name as in `DTYPES`, in short `bf16`, `fp16`, `fp32`. None and `auto` are the same.

    Raises:
        InputError: another type.

    Example:
        >>> choose_dtype("bf16"), choose_dtype("auto")
        (torch.bfloat16, None)
    """
    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    if SHORT_DTYPES.get(name, name) not in DTYPES:
        raise InputError(
            f"dtype is {str(dtype)!r}; allowed are {', '.join(DTYPES)}, and auto for that of the saved model; "
            f"{nearest(name, [*DTYPES, 'auto'], 'choose one of them')}"
        )
    return DTYPES[SHORT_DTYPES.get(name, name)]


def check_device_map(device_map: str | dict[str, Any] | None, device: Any = None) -> str | dict[str, Any] | None:
    """Return the plan that spreads a model over devices, as transformers reads it.

    Args:
        device_map: a name of `DEVICE_MAPS`, or the device of each module as a dict or as JSON, as in
            `transformers.PreTrainedModel.from_pretrained`.
        device: the one device that was chosen, which excludes a plan.

    Raises:
        InputError: another name, JSON that is no object, or a device next to it.

    Example:
        >>> check_device_map('{"": "cpu"}')
        {'': 'cpu'}
    """
    if device_map is None or device_map == "":
        return None
    if device not in (None, "auto"):
        raise InputError(f"device is {str(device)!r} and device_map is {device_map!r}: a map names all devices; leave one out")
    if device_map in DEVICE_MAPS:
        return device_map
    try:
        plan = device_map if isinstance(device_map, dict) else json.loads(device_map)
    except (TypeError, ValueError):
        plan = None
    if not isinstance(plan, dict):
        raise InputError(
            f"device_map is {device_map!r}; allowed are {', '.join(DEVICE_MAPS)}, and an object such as "
            f'{{"": "cpu"}} with the device of each module; {nearest(str(device_map), DEVICE_MAPS, "choose one of them")}'
        )
    accelerators = len(available_devices()) - 1
    for module, place in plan.items():
        if place == "disk" or (isinstance(place, int) and place < accelerators):
            continue
        try:
            choose_device(place)
        except InputError as error:
            raise InputError(f"device_map: of {module!r}, {error}") from error
    return plan


def describe_placement(model: Any) -> str:
    """Return in words where a model computes, in which data type and with which attention.

    Example:
        >>> describe_placement(model)  # doctest: +SKIP
        'cuda:0 (NVIDIA H100), bfloat16, attention sdpa'
    """
    spread = getattr(model, "hf_device_map", None)  # set by transformers where a device_map was given
    places = sorted({str(place) for place in spread.values()}) if spread else [str(model.device)]
    if places[0].startswith("cuda") and len(places) == 1:
        places[0] += f" ({torch.cuda.get_device_name(places[0])})"
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{' + '.join(places)}, {dtype}, attention {model.backbone.config._attn_implementation}"
