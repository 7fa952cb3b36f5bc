"""Checks of a saved folder from the headers of its weights and the footers of its tables, before anything of it is read.

A folder may come from anyone. What does not fit together, or would take more memory than its own weights, is refused in one line.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .errors import InputError, MissingFileError
from .json_objects import COPY_AGAIN, read_json

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack")
"""Ends of names of weights in other formats; most of them are pickles, which can run code when they are read."""
CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types whose numbers are looked at: others, of packed weights, have no NaN or no sum."""
SMALL = 1 << 20
"""Weights that a model may have beyond three times those of its folder: tied ones are saved once."""


def check_finite(name: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Check that weights are numbers: with NaN or infinite ones a model ranks by chance, or fails at its first question.

    Args:
        name: folder or name on the Hub, for the message; weights: names and tensors. Those on no device are not looked at.

    Raises:
        InputError: a weight holds NaN or infinite numbers.

    Example:
        >>> check_finite("runs/mine", [("layer.weight", torch.tensor([1.0, float("nan")]))])
        Traceback (most recent call last):
        modeling_cllm4rec.core.errors.InputError: runs/mine: layer.weight holds 1 of 2 numbers that are NaN or infinite; ...
    """
    for key, weight in weights:
        # A sum needs no memory as large as the weights; it may itself be too large for its type, so it is only a first look.
        if weight.dtype not in CHECKED or weight.is_meta or bool(weight.sum().isfinite()):
            continue
        wrong = int((~weight.isfinite()).sum())
        if wrong:
            raise InputError(
                f"{name}: {key} holds {wrong:,} of {weight.numel():,} numbers that are NaN or infinite; {COPY_AGAIN}, or train "
                "the model again"
            )


def stored_weights(name: Any, hub: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the weights of a folder one after another: names and tensors on the CPU, so that memory holds one at a time."""
    for file in _weight_files(name, hub, None):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():
                yield key, tensors.get_tensor(key)


def check_weights(
    name: Any, config: Any, build: Callable[[Any], nn.Module], hub: Mapping[str, Any], variant: str | None = None
) -> None:
    """Check that a folder holds safetensors with the shapes of its configuration; only their headers are read.

    Args:
        name: folder or name on the Hub.
        config: configuration of the model.
        build: function of the configuration that builds the model.
        hub: arguments of `cached_file`.
        variant: variant of the weights, as in `PreTrainedModel.from_pretrained`.

    Raises:
        InputError: there are no safetensors, they are cut off, they have another shape, or the configuration describes no model.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    files = _weight_files(name, hub, variant)
    if hub.get("subfolder"):
        name = f"{name}/{hub['subfolder']}"
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                shapes |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}
        except (SafetensorError, OSError, EOFError) as error:
            raise InputError(
                f"the weights in {name} cannot be read ({error}): the file is cut off or no safetensors file; {COPY_AGAIN}"
            ) from error
    if getattr(config, "quantization_config", None) is not None:  # packed weights have other shapes
        return
    inner = getattr(config, "text_config", None)
    layers = 0 if inner is None else getattr(inner.get_text_config(), "num_hidden_layers", 0)
    if layers > len(shapes):  # before the model is built, which takes as long as its layers are many
        raise InputError(f"{name}: config.json says {layers} layers, but there are {len(shapes)} weights; {COPY_AGAIN}")
    empty = _empty(name, config, build)
    expected = {key: tuple(weight.shape) for key, weight in empty.state_dict().items()}
    asked, held = (sum(math.prod(shape) for shape in one.values()) for one in (expected, shapes))
    if asked > 3 * held + SMALL:  # weights that are missing would be made in full
        raise InputError(f"{name}: config.json describes {asked:,} weights, but the folder holds {held:,}; {COPY_AGAIN}")
    wrong = sorted(key for key in expected if key in shapes and shapes[key] != expected[key])
    if wrong:
        raise InputError(
            f"{name} lacks weights of this model or has them in another shape: {wrong[:5]} ({len(wrong)} in all, the first "
            f"{shapes[wrong[0]]} and not {expected[wrong[0]]}); it is no complete {type(empty).__name__} checkpoint"
        )


def _empty(name: Any, config: Any, build: Callable[[Any], nn.Module]) -> nn.Module:
    """Return a model without memory for its weights."""
    try:
        plain = copy.deepcopy(config)
        plain._attn_implementation = "eager"  # shapes do not depend on it, and another one may not be installed
        with torch.device("meta"):
            return build(plain)
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{name}: config.json describes no model that can be built ({reason})") from error


def _weight_files(name: Any, hub: Mapping[str, Any], variant: str | None) -> list[str]:
    """Return the files of the weights, one or several shards.

    Raises:
        InputError: there are none, or an index of shards that is damaged or names other places.
    """
    place = f"{name}/{hub['subfolder']}" if hub.get("subfolder") else name
    mark = "" if variant is None else f".{variant}"
    single = SAFE_WEIGHTS_NAME.replace(".safetensors", f"{mark}.safetensors")
    file = _found(name, single, hub)
    if file is not None:
        return [file]
    index = _found(name, SAFE_WEIGHTS_INDEX_NAME.replace(".json", f"{mark}.json"), hub)
    if index is None:
        folder = Path(place)
        others = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES) if folder.is_dir() else []
        if others:
            raise InputError(
                f"{place} holds its weights as {others[0]}, which can run code when it is read; only safetensors are read: if "
                "you trust it, load it with torch.load(..., weights_only=True) and write it with safetensors.torch.save_file"
            )
        raise MissingFileError(f"{place} has no file named {single}; {COPY_AGAIN}")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(one, str) for one in names.values()):
        raise InputError(f"{index} cannot be read (it has no weight_map of file names); {COPY_AGAIN}")
    shards = sorted(set(names.values()))
    for shard in shards:
        if os.path.basename(shard) != shard or not shard.endswith(".safetensors"):
            raise InputError(f"{index} names the shard {shard!r}; only safetensors files of the same folder are read")
    found = {shard: _found(name, shard, hub) for shard in shards}
    missing = [shard for shard, file in found.items() if file is None]
    if missing:
        raise InputError(f"{place} lacks the shard {missing[0]} of its weights ({len(missing)} in all); {COPY_AGAIN}")
    return [file for file in found.values() if file is not None]


def _found(name: Any, file: str, hub: Mapping[str, Any]) -> str | None:
    once = {key: value for key, value in hub.items() if key != "force_download"}
    return cached_file(name, file, **once, _raise_exceptions_for_missing_entries=False)


def check_table(path: str | Path, rows: int, what: str, kinds: Mapping[str, Callable[[pa.DataType], bool]]) -> None:
    """Check the number of rows and the types of a Parquet file by its footer.

    Args:
        path: the file.
        rows: number of rows that the weights say.
        what: name of the rows, for messages.
        kinds: column -> check of its type. The first column must be there.

    Raises:
        InputError: the file is damaged, or has other rows or types.
    """
    file = Path(path).name
    try:
        footer = pq.ParquetFile(path)
        count, schema = footer.metadata.num_rows, footer.schema_arrow
        footer.close()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file ({error}); it may be cut off: copy the folder again") from error
    if count != rows:
        raise InputError(f"{file} holds {count} {what}, the weights {rows}: it belongs to another checkpoint")
    needed = next(iter(kinds))
    if needed not in schema.names:
        raise InputError(f"{file} has no column {needed!r}, only {schema.names}; {COPY_AGAIN}")
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise InputError(f"{file} has {schema.names.count(twice[0])} columns of the name {twice[0]!r}; {COPY_AGAIN}")
    for name, fits in kinds.items():
        if name in schema.names and not fits(schema.field(name).type):
            raise InputError(f"{file}: column {name!r} has type {schema.field(name).type}, which it cannot have; {COPY_AGAIN}")


def is_id(kind: pa.DataType) -> bool:
    """Return whether a type is that of external ids."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))


def is_index_list(kind: pa.DataType) -> bool:
    """Return whether a type is a list of whole numbers."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_integer(kind.value_type))


__all__ = ["check_finite", "check_table", "check_weights", "is_id", "is_index_list", "stored_weights"]
