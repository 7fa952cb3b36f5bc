"""`cllm4rec recommend --engine ray`: a Ray Data pipeline whose actors hold a model each and write the parts of a folder.

What flows through the pipeline are numbers of parts. Each actor opens the folder for the question that it reads itself, so a
machine of a cluster with another model or another histories file is refused. A part depends on the question alone and is there
whole or not at all, so that the part of a lost actor is just written again.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from modeling_cllm4rec.commands.model_flags import placement
from modeling_cllm4rec.commands.recommendation_tables import Asked, asked_users, open_parts, tables
from modeling_cllm4rec.core.errors import CLLM4RecError, InputError, RunError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.hub.devices import describe_placement
from modeling_cllm4rec.hub.loading import load_recommender

__all__ = ["PartWriter", "recommend_on_ray"]

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Restarts of one lost worker. Without a limit, Ray's default, a model that does not fit into memory is loaded again for ever."""
OBJECT_STORE_BYTES = 100 * 2**20
"""Shared memory of a Ray that is started here: numbers of parts need little, and Ray would take 30% of the machine."""


class PartWriter:
    """One worker: it loads the model at its first part, and writes parts.

    Args:
        arguments: of the command, with absolute paths.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments

    # Not in __init__: Ray reports an error there without its cause.
    @cached_property
    def opened(self) -> tuple[RecommenderModel, Asked, Any]:
        """The model, the users and the folder, which is refused here if it holds the parts of another question."""
        model = load_recommender(self.arguments.model, **placement(self.arguments))
        asked = asked_users(self.arguments, model)
        return model, asked, open_parts(self.arguments, model, asked)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the part `row["item"]` unless it is there.

        Returns:
            `written`, whether it was; `place`, where the model computes; `warnings` of the recommendations, for the user to see.
        """
        model, asked, folder = self.opened
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            written = folder.write(int(row["item"]), lambda start, stop: tables(self.arguments, model, asked, start, stop))
        texts = [str(one.message) for one in caught if one.category is UserWarning]
        return {"written": written, "place": describe_placement(model), "warnings": texts}


def recommend_on_ray(arguments: argparse.Namespace) -> str:
    """Write the parts that are missing on a pool of Ray workers; returns a line about them.

    Raises:
        InputError: the question is wrong, or a Ray that is started here has too few CPUs or GPUs for the workers.
        RunError: a worker was lost more than `MAX_RESTARTS` times, or the cluster cannot be reached.
    """
    logger.setLevel(logging.INFO)
    arguments = _with_absolute_paths(arguments)
    # On the CPU, and gone before the workers load theirs: here it only checks the question.
    model = load_recommender(arguments.model, device="cpu", dtype=arguments.dtype)
    model.check_ready()
    folder = open_parts(arguments, model, asked_users(arguments, model))
    del model
    missing = folder.missing()
    written = _run(missing, _of_a_worker(arguments)) if missing else 0
    return f"{written} parts written, {len(folder.files) - written} were there before; {folder.state()}"


def _with_absolute_paths(arguments: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments as workers read them, whose working directory may be another one."""
    paths = {"output": str(Path(arguments.output).resolve())}
    if Path(arguments.model).is_dir():
        paths["model"] = str(Path(arguments.model).resolve())
    if arguments.histories:
        paths["histories"] = str(Path(arguments.histories).resolve())
    return argparse.Namespace(**{**vars(arguments), **paths})


def _of_a_worker(arguments: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments with the numbers that were left out, and the device where a worker has no GPU."""
    gpus = arguments.gpus_per_worker
    if gpus is None:
        on_cpu = arguments.device == "cpu" or not torch.cuda.is_available()
        gpus = 0.0 if on_cpu else 1.0
    device = arguments.device
    if not gpus and device in (None, "auto") and arguments.device_map is None:
        device = "cpu"  # Ray hides no GPU from a worker that asked for none
    sizes = {"num_workers": arguments.num_workers or 1, "cpus_per_worker": arguments.cpus_per_worker or 1.0}
    return argparse.Namespace(**{**vars(arguments), **sizes, "gpus_per_worker": gpus, "device": device})


def _run(parts: list[int], arguments: argparse.Namespace) -> int:
    """Write parts on the workers; returns how many they wrote."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data
    from ray.exceptions import RayActorError, RayTaskError

    own = {} if arguments.ray_address else {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address=arguments.ray_address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except Exception as error:  # Ray raises `Exception` itself where its processes do not start in time
        reason = " ".join(str(error).split())[:300]
        if arguments.ray_address:
            raise RunError(f"ray_address is {arguments.ray_address!r}; the cluster cannot be reached: {reason}") from error
        raise RunError(
            f"engine: Ray cannot be started here ({reason}); run the command again, or leave engine='ray' out"
        ) from error
    try:
        if not arguments.ray_address:
            _check_resources(arguments, ray.cluster_resources())
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is reported below
        with warnings.catch_warnings():
            # Ray 2.60 has no other way to set restarts; setup.cfg excludes the version that removes this one.
            warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
            pipeline = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
                PartWriter,
                fn_constructor_args=(arguments,),
                compute=ray.data.ActorPoolStrategy(size=arguments.num_workers),
                num_cpus=arguments.cpus_per_worker,
                num_gpus=arguments.gpus_per_worker,
                ray_remote_args_fn=lambda: {"max_restarts": MAX_RESTARTS, "max_task_retries": -1},
            )
        written, places = 0, set()
        with tqdm(total=len(parts), desc="recommending", unit="part") as bar:
            for row in pipeline.iter_rows():
                if row["place"] not in places:
                    logger.info("%s: Ray workers (%d) on %s", arguments.model, arguments.num_workers, row["place"])
                places.add(row["place"])
                for text in row["warnings"]:
                    warnings.warn(text, stacklevel=3)
                written += bool(row["written"])
                bar.update()
        return written
    except RayTaskError as error:
        if isinstance(error.cause, CLLM4RecError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise RunError(
            f"a worker was lost more than {MAX_RESTARTS} times, such as for lack of memory: give fewer or larger workers "
            "(num_workers, cpus_per_worker) and run the command again; it writes the parts that are missing"
        ) from error
    finally:
        ray.shutdown()


def _check_resources(arguments: argparse.Namespace, found: dict[str, float]) -> None:
    """Raise InputError if a Ray that was started here has too little for the workers, which would wait for ever."""
    for name, kind in (("cpus_per_worker", "CPU"), ("gpus_per_worker", "GPU")):
        each, there = getattr(arguments, name), found.get(kind, 0.0)
        if arguments.num_workers * each > there:
            raise InputError(
                f"num_workers is {arguments.num_workers}, with {each:g} {kind}s each; this machine has {there:g}: lower "
                f"num_workers or {name}"
            )
