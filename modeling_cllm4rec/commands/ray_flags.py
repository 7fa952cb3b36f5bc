"""Flags of `cllm4rec recommend --engine ray`, and their checks; `ray_engine` does the work."""

from __future__ import annotations

import argparse

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.optional_packages import require

__all__ = ["RAY_FLAGS", "add_ray_arguments", "check_ray_arguments"]

RAY_FLAGS = ("num_workers", "cpus_per_worker", "gpus_per_worker", "ray_address")
"""Flags that only `--engine ray` reads."""


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--engine` and the flags of its workers."""
    group = parser.add_argument_group("Ray")
    group.add_argument("--engine", choices=["ray"], help="write the parts on a pool of Ray workers (default: in this process)")
    group.add_argument("--num-workers", type=int, help="Ray workers, each with a model in memory (default: 1)")
    group.add_argument("--cpus-per-worker", type=float, help="CPUs of a Ray worker, and its threads (default: 1)")
    group.add_argument(
        "--gpus-per-worker", type=float, help="GPUs of a Ray worker, such as 0.5 for two on one (default: 1 if there is one here)"
    )
    group.add_argument("--ray-address", help="a running cluster, as for ray.init (default: Ray is started here, and stopped)")


def check_ray_arguments(arguments: argparse.Namespace, processes: int) -> None:
    """Check the flags of the engine, before anything is loaded.

    Args:
        processes: number of processes that were launched.

    Raises:
        InputError: flags of Ray without it, or flags that say something else of what Ray decides.
        MissingPackageError: Ray is not installed.
    """
    if arguments.engine is None:
        if unread := [name for name in RAY_FLAGS if getattr(arguments, name) is not None]:
            raise InputError(f"{unread[0]}: only Ray has workers; add engine='ray', or leave it out")
        return
    if arguments.output is None or arguments.output.endswith(".parquet"):
        raise InputError("engine is 'ray'; its workers write the parts of a folder: give --output FOLDER")
    if arguments.shard is not None or processes > 1:
        what = f"shard is {arguments.shard!r}" if arguments.shard is not None else f"engine: {processes} processes were launched"
        raise InputError(
            f"{what}; the workers of Ray share the parts out: start one process without a shard, and set num_workers"
        )
    if arguments.num_workers is not None:
        from modeling_cllm4rec.core.questions import check_whole_number

        check_whole_number("num_workers", arguments.num_workers)
    if arguments.cpus_per_worker is not None and not 0 < arguments.cpus_per_worker < float("inf"):
        raise InputError(f"cpus_per_worker is {arguments.cpus_per_worker}; give a positive number, such as 2, or 0.5")
    gpus = arguments.gpus_per_worker
    if gpus is not None and not (0 <= gpus < 1 or (1 <= gpus < float("inf") and gpus.is_integer())):
        raise InputError(f"gpus_per_worker is {gpus}; give a whole number, or a share of one GPU such as 0.5")
    if arguments.device is not None and ":" in arguments.device:
        raise InputError(f"device is {arguments.device!r}; Ray gives each worker its GPUs: leave the number out")
    require("ray", "ray", "engine='ray'", "leave it out: torchrun and --shard share the parts out without it")
