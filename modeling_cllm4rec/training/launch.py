"""The processes of a run, as `torchrun` or `accelerate launch` started them."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.sharding import check_processes, sharding_settings

LONGEST_WAIT = 7200
"""Seconds that a process waits for the others, unless `ddp_timeout` is given: the first one alone tokenizes a large corpus."""
DATA_PARALLEL = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.MULTI_XPU)
IN_PLACE_OF_DEEPSPEED = (
    "launch data parallel (multi-GPU, multi-CPU), or with sharded weights by recipes/accelerate_configs/fsdp2.yaml: fsdp=True is "
    "as ZeRO-3, with fsdp_config={'reshard_after_forward': False} as ZeRO-2"
)


def start_processes(arguments: TrainingArguments) -> PartialState:
    """Return the processes and the device of a run, without writing anything.

    Raises:
        InputError: a kind of parallel training that is not supported, or sharded weights on one process.
        MissingPackageError: a tracker that is not installed.
    """
    if arguments.report_to != "none":
        extra = "tensorboard" if arguments.report_to == "tensorboard" else "trackers"
        require(arguments.report_to, extra, f"report_to={arguments.report_to!r}", "pass report_to='none'")
    _check_launch()
    passed_on = arguments.trainer if isinstance(arguments.trainer, dict) else {}
    seconds = passed_on.get("ddp_timeout", LONGEST_WAIT)
    backend = {"backend": passed_on["ddp_backend"]} if "ddp_backend" in passed_on else {}
    sharding = sharding_settings(arguments)
    # PartialState does not read the variable, and without `cpu` it takes each process of a machine without GPUs for the only one.
    launched_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true" or not torch.accelerator.is_available()
    on_cpu = bool(passed_on.get("use_cpu")) or ("LOCAL_RANK" in os.environ and launched_on_cpu)
    state = PartialState(cpu=on_cpu, timeout=timedelta(seconds=seconds), **backend)
    if state.distributed_type not in (DistributedType.NO, *DATA_PARALLEL):
        raise InputError(f"distributed_type {state.distributed_type.value} is not supported; {IN_PLACE_OF_DEEPSPEED}")
    if sharding is not None:
        check_processes(state.num_processes)
    return state


def _check_launch() -> None:
    """Refuse what `accelerate launch` was asked for and stages do not do, or silently leaves out on a CPU.

    Raises:
        InputError: several processes were asked for and this is the only one; or DeepSpeed, tensor or context parallelism.
    """
    asked = os.environ.get
    # `accelerate launch --cpu --num_processes 2` sets the address of a main process, but no rank.
    on_cpu = not torch.accelerator.is_available() or asked("ACCELERATE_USE_CPU", "false").lower() == "true"
    launched = on_cpu and asked("ACCELERATE_MIXED_PRECISION") and asked("MASTER_ADDR")
    if launched and not (asked("RANK") or asked("WORLD_SIZE")):
        raise InputError(
            "num_processes: accelerate launch was asked for several processes and started one; on CPUs launch with "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m modeling_cllm4rec ..."
        )
    if asked("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true":
        raise InputError(
            "parallelism_config is set in the launch configuration, but stages train data parallel, with whole or sharded "
            "weights; leave it out, and launch by recipes/accelerate_configs/fsdp2.yaml to shard the weights"
        )
    if asked("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise InputError(f"distributed_type DEEPSPEED is not supported; {IN_PLACE_OF_DEEPSPEED}")


__all__ = ["start_processes"]
