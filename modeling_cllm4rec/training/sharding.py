"""Fully sharded data parallelism (torch's FSDP2): each process holds 1/n of the weights, of their gradients and of their moments.

A unit is gathered before it computes and freed after it: each decoder layer is one, and the root (ID tables, word embeddings,
output layer) is another, which stays whole during a step. accelerate shards on GPUs alone and says nothing on a CPU, so the
model is sharded here, by one path for both.

ID tables of which a step reads only some rows are no part of the root: large ones are sharded by rows and never gathered, see
`row_sharding`, small ones are whole on each process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.processes import process_count, process_number
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.estimates import FLOAT, GB, Units
from modeling_cllm4rec.training.parameters import TrainedRows
from modeling_cllm4rec.training.row_sharding import shard_rows
from modeling_cllm4rec.training.sparse_rows import sparse_tables

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

LAUNCHED = "ACCELERATE_USE_FSDP"
"""Variable by which `accelerate launch` asks for sharding; the other settings of its `fsdp_config` are in variables FSDP_NAME."""


@dataclass(frozen=True)
class ShardingSettings:
    """How a model is sharded.

    Attributes:
        reshard_after_forward: free a layer after its forward pass and gather it again for the backward pass, as ZeRO-3 does.
            False keeps the layers whole between the two, as ZeRO-2 does.
        shard_tables_above: GB (10^9 bytes) of the largest ID table that is whole on each process, if steps read only some rows.
    """

    reshard_after_forward: bool = True
    shard_tables_above: float = 0.0


def sharding_settings(arguments: TrainingArguments) -> ShardingSettings | None:
    """Return how the model is sharded, by the arguments or by `accelerate launch`; None where it is whole on each process.

    Raises:
        InputError: the launch asks for what is not supported.

    Example:
        >>> sharding_settings(TrainingArguments(data="d", output="o", fsdp=True))
        ShardingSettings(reshard_after_forward=True, shard_tables_above=0.0)
    """
    launched = _flag(LAUNCHED)
    if launched:
        _check_launched()
    if not (arguments.fsdp or launched):
        return None
    if arguments.torch_compile:
        raise InputError("torch_compile and fsdp are both set; sharded layers are not compiled: leave one of them out")
    given = arguments.fsdp_config if isinstance(arguments.fsdp_config, dict) else {}
    default = _flag("FSDP_RESHARD_AFTER_FORWARD", "true") if launched else True
    return ShardingSettings(bool(given.get("reshard_after_forward", default)), arguments.shard_tables_above)


def _check_launched() -> None:
    """Check the settings of `accelerate launch`, in the words of its configuration file."""
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InputError(f"fsdp_version is {version} in the launch configuration; only FSDP2 is supported: set fsdp_version: 2")
    for name, instead in (
        ("offload_params", "shards stay on their device: leave it out and take more processes"),
        ("activation_checkpointing", "set gradient_checkpointing=True of the stage in its place"),
    ):
        if _flag(f"FSDP_{name.upper()}"):
            raise InputError(f"fsdp_{name} is true in the launch configuration, which is not supported: {instead}")
    if _flag("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise InputError(
            "fsdp_cpu_ram_efficient_loading is true in the launch configuration, which is not supported: each process reads the "
            "model, then keeps its part; set fsdp_cpu_ram_efficient_loading: false"
        )
    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    if policy != "TRANSFORMER_BASED_WRAP":
        raise InputError(
            f"fsdp_auto_wrap_policy is {policy} in the launch configuration; each decoder layer is a unit: set "
            "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"
        )
    if os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("true", "false"):
        raise InputError(
            f"fsdp_reshard_after_forward is {os.environ['FSDP_RESHARD_AFTER_FORWARD']} in the launch configuration; it must be "
            "true (ZeRO-3) or false (ZeRO-2)"
        )


def _flag(name: str, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() in ("true", "1")


@contextmanager
def sharded_by_us() -> Iterator[None]:
    """Hide the request for sharding from accelerate and transformers within a block: they would shard, or load, in their way."""
    asked = os.environ.pop(LAUNCHED, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[LAUNCHED] = asked


class Sharding:
    """The shards of a model on all processes.

    Args:
        model: whole and the same on each process, on any device. It is changed in place: its parameters become DTensors on
            `device`, sharded by rows, but for small ID tables of which steps read only some rows.
        settings: see `ShardingSettings`.
        device: of this process.
        bf16: whether layers are gathered in bfloat16; the shards, and the sums of gradients, stay in 32 bits.

    Attributes:
        units: the numbers of weights that are gathered together.
        tables: name -> ID table of which steps read only some rows; empty if they read all of them.

    Raises:
        InputError: one process alone, or a backbone whose layers cannot be found.
    """

    def __init__(self, model: RecommenderModel, settings: ShardingSettings, device: torch.device, bf16: bool = False) -> None:
        check_processes(process_count())
        self.model, self.settings = model, settings
        layers = decoder_layers(model)
        self.tables = _tables_read_by_rows(model)
        self.units = Units.of(model, layers, [table.weight for table in self.tables.values()])
        hooks = {name: rows for name, weight in model.named_parameters() if (rows := TrainedRows.of(weight)) is not None}
        # torch has no way back from `fully_shard`. What it changes in a module is its class, its hooks and some attributes.
        self._before = [(module, type(module), _hooks(module), set(vars(module))) for module in model.modules()]
        mesh = init_device_mesh(device.type, (process_count(),))
        policy = MixedPrecisionPolicy()
        if bf16:
            # With autocast alone, autograd would keep a 16-bit copy of each gathered weight until the backward pass.
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for layer in layers:
            for norm in _norms(layer) if bf16 else ():  # as under autocast, they compute in 32 bits
                fully_shard(norm, mesh=mesh, reshard_after_forward=False)
            fully_shard(layer, mesh=mesh, reshard_after_forward=settings.reshard_after_forward, mp_policy=policy)
        self._place_tables(mesh, device)
        fully_shard(model, mesh=mesh, ignored_params=set(map(_weight, self.tables.values())))
        self._added = [set(vars(module)) - names for module, _, _, names in self._before]
        for name, weight in model.named_parameters():
            if name in hooks:  # hooks on the gradient of a whole weight went with that weight
                weight.register_post_accumulate_grad_hook(hooks[name].zero_others)

    def _place_tables(self, mesh: DeviceMesh, device: torch.device) -> None:
        """Share out the rows of large tables, and bring small ones whole to the device."""
        for name, table in self.tables.items():
            size = FLOAT * table.weight.numel() / GB
            sharded = size > self.settings.shard_tables_above
            if sharded:
                shard_rows(table, mesh, device)
            else:
                table.to(device)
            if process_number() == 0:
                place = f"sharded by rows over {mesh.size()} processes" if sharded else "whole on each process"
                logger.info("%s (%s rows, %.3g GB) is %s", name, f"{len(table.weight):,}", size, place)

    def within_forward(self, function: Callable[[], Result]) -> Result:
        """Call a function within the model's forward pass, where the root's weights are whole and layers can be called.

        All processes must call it, and call the layers equally often: each call gathers weights.
        """
        try:
            return self.model(objective=lambda model, **inputs: _Boxed(function())).value
        finally:
            self.reshard()

    def reshard(self) -> None:
        """Free all gathered weights."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def gather(self) -> None:
        """Give the main process the whole model, in main memory; on the others its weights are on the device `meta`.

        One weight at a time is gathered. The model is an ordinary one again: it can be saved, copied and changed.
        """
        self.reshard()
        is_main, whole = process_number() == 0, dict[int, nn.Parameter]()
        slots = [(module, name, weight) for module in self.model.modules() for name, weight in _own_parameters(module)]
        for _, _, weight in slots:  # tied weights are one
            if id(weight) not in whole:
                full = weight.full_tensor() if isinstance(weight, DTensor) else weight.detach()
                moved = full.cpu() if is_main else full.to("meta")
                whole[id(weight)] = nn.Parameter(moved, requires_grad=weight.requires_grad)
        for (module, kind, hooks, _), added in zip(self._before, self._added, strict=True):
            module.__class__ = kind
            vars(module).update(hooks)
            for name in added & set(vars(module)):
                del vars(module)[name]
        for module, name, weight in slots:
            module.register_parameter(name, whole[id(weight)])
        if is_main:
            nn.Module.to(self.model, "cpu")  # buffers


class _Boxed:
    """A result that hooks on a forward pass do not look into."""

    def __init__(self, value: Any) -> None:
        self.value = value


def check_processes(processes: int) -> None:
    """Raise InputError if there are no processes to share the weights."""
    if processes < 2:
        raise InputError(
            "fsdp: weights are sharded over all processes and this is the only one; launch two or more (accelerate launch "
            "--config_file recipes/accelerate_configs/fsdp2.yaml --num_processes 2, on CPUs ACCELERATE_USE_CPU=true torchrun "
            "--nproc_per_node 2), or set fsdp=False"
        )


def decoder_layers(model: RecommenderModel) -> list[nn.Module]:
    """Return the layers of the backbone.

    Raises:
        InputError: it has none that transformers marks as such.
    """
    layers = [module for module in model.backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"fsdp: {type(model.backbone).__name__} has no layers that transformers marks as such, so it cannot be sharded layer "
            "by layer; set fsdp=False, or choose another backbone"
        )
    inner = {id(module) for layer in layers for module in layer.modules() if module is not layer}
    return [layer for layer in layers if id(layer) not in inner]


def _tables_read_by_rows(model: RecommenderModel) -> dict[str, nn.Embedding]:
    """Return the ID tables of a model that trains some of them with sparse gradients, frozen ones too: none is read whole."""
    if not sparse_tables(model):
        return {}
    ids = {id(weight) for weight in model.id_parameters}
    tables = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {name: table for name, table in tables.items() if id(table.weight) in ids}


def _weight(table: nn.Embedding) -> Any:
    return table.weight


def _norms(layer: nn.Module) -> list[nn.Module]:
    """Return the modules of a layer whose weights are all vectors."""
    owned = [(module, [weight for _, weight in _own_parameters(module)]) for module in layer.modules()]
    return [module for module, weights in owned if weights and all(weight.ndim == 1 for weight in weights)]


def _hooks(module: nn.Module) -> Mapping[str, Any]:
    return {name: value.copy() for name, value in vars(module).items() if "_hooks" in name and hasattr(value, "copy")}


def _own_parameters(module: nn.Module) -> list[tuple[str, Any]]:
    return list(module.named_parameters(recurse=False, remove_duplicate=False))


__all__ = ["Sharding", "ShardingSettings", "check_processes", "decoder_layers", "sharded_by_us", "sharding_settings"]
