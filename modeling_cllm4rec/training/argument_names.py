"""Names of arguments: those of `transformers.TrainingArguments` that a stage honours or refuses, and earlier names of ours."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from modeling_cllm4rec.core.errors import InputError

Kind = TypeVar("Kind", bound=type)

PASSED_ON = "trainer"
"""Field that holds the further arguments of `transformers.TrainingArguments` that a stage passes on."""

HONOURED = (
    *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica", "log_on_each_node"),
    *("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory", "dataloader_multiprocessing_context"),
    *("ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs", "use_cpu", "full_determinism"),
    *("torch_empty_cache_steps", "skip_memory_metrics"),
)
"""Arguments of `transformers.TrainingArguments` that are passed on as they are."""

REFUSED = {
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "eval_delay", "do_eval"),
        "validation is at the end of epochs; set eval_every, the epochs between validations",
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "the epoch that is best by the stage's own metric is always kept",
    ),
    **dict.fromkeys(
        ("save_strategy", "save_total_limit", "save_only_model"),
        "the last two checkpoints and the best epoch are kept; set save_steps or save_minutes",
    ),
    "max_steps": "a stage trains num_train_epochs; stop_after_steps stops it earlier, to be resumed",
    "fp16": "the scale of gradients is not part of our checkpoints; set bf16",
    "auto_find_batch_size": "the plan of steps depends on the batch size; the log estimates the memory before training begins",
    **dict.fromkeys(
        ("train_sampling_strategy", "group_by_length", "length_column_name", "dataloader_drop_last", "data_seed"),
        "documents of similar length are always batched together, in an order that follows from seed",
    ),
    "deepspeed": "set fsdp=True, which is as ZeRO-3; with fsdp_config={'reshard_after_forward': False} as ZeRO-2",
    "parallelism_config": "all processes share the documents of a step; set fsdp=True to shard the weights as well",
    "label_smoothing_factor": "the losses are those of the papers",
    "neftune_noise_alpha": "ID rows and words are read from different tables",
    "use_liger_kernel": "its fused loss would take the place of the stage's",
    "ignore_data_skip": "a resumed run always goes on with the next documents",
    "average_tokens_across_devices": "losses are always averaged over all processes",
}
"""Argument of `transformers.TrainingArguments` -> why no stage honours it, and what to set."""

ALIASES = {"output_dir": "output", "model_name_or_path": "backbone", "overwrite_output_dir": "overwrite"}
"""Other names of transformers that are understood as they are."""


def _same(value: Any) -> Any:
    return value


EARLIER: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "epochs": ("num_train_epochs", _same),
    "batch_size": ("per_device_train_batch_size", _same),
    "eval_batch_size": ("per_device_eval_batch_size", _same),
    "lr": ("learning_rate", _same),
    "backbone_lr": ("backbone_learning_rate", _same),
    "backbone_weight_decay": ("weight_decay", _same),
    "schedule": ("lr_scheduler_type", _same),
    "warmup_share": ("warmup_steps", _same),
    "warmup_ratio": ("warmup_steps", _same),
    "attention": ("attn_implementation", lambda value: None if value == "own" else value),
    "precision": ("bf16", lambda value: {"bf16": True, "no": False}.get(value, value)),
    "patience": ("early_stopping_patience", _same),
    "save_every": ("save_steps", _same),
    "lora_rank": ("lora_r", _same),
}
"""Earlier name -> name, and the function that turns its value into the new one."""


def current_names(settings: Mapping[str, Any], kind: type[Any], place: str = "") -> dict[str, Any]:
    """Return settings under the names of the fields of a class of arguments.

    Args:
        settings: name -> value; unknown names stay, so that the caller reports them.
        kind: the dataclass.
        place: for messages, such as `my.yaml: `.

    Raises:
        InputError: an argument of transformers that no stage honours, or one that is given by two names.

    Warns:
        DeprecationWarning: an earlier name.
    """
    known = {one.name for one in fields(kind)}
    found: dict[str, Any] = {}
    passed: dict[str, Any] = {}
    for name, value in settings.items():
        new = name
        if name not in known and name in ALIASES:
            new = ALIASES[name]
        elif name not in known and name in EARLIER and EARLIER[name][0] in known:
            new, convert = EARLIER[name]
            value = convert(value)
            warnings.warn(f"{place}{name} is now {new}; the old name goes with version 0.2", DeprecationWarning, stacklevel=3)
        elif name not in known and PASSED_ON in known and name in _defaults():
            _check_honoured(name, value, place)
            if name in HONOURED:
                passed[name] = value
            continue
        if new in found:
            raise InputError(f"{place}{new} is given twice, once as {name}; leave one of them out")
        found[new] = value
    if passed:
        found[PASSED_ON] = {**(found.get(PASSED_ON) or {}), **passed}
    return found


def current_record(settings: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Return the settings of a run that an earlier version may have recorded, under the names of now; see `current_names`."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return current_names(settings, kind)


def accepts_other_names(kind: Kind) -> Kind:
    """Let a dataclass of arguments be made with names of transformers and with earlier names; a decorator."""
    original = kind.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def renamed(self: Any, *positional: Any, **settings: Any) -> None:
        original(self, *positional, **current_names(settings, kind))

    kind.__init__ = renamed  # type: ignore[misc]
    return kind


def check_passed_on(settings: Mapping[str, Any]) -> None:
    """Raise InputError if the field `trainer` names an argument that is not passed on."""
    for name, value in settings.items():
        if name not in _defaults():
            raise InputError(f"trainer: transformers.TrainingArguments has no argument {name!r}")
        _check_honoured(name, value, "trainer: ")


def _check_honoured(name: str, value: Any, place: str) -> None:
    default = _defaults()[name]
    if name in HONOURED or value == default:
        return
    reason = REFUSED.get(name, "no stage uses it; leave it out")
    raise InputError(f"{place}{name} is {value!r}, an argument of transformers.TrainingArguments that is not honoured: {reason}")


@functools.cache
def _defaults() -> dict[str, Any]:
    """Return the arguments of `transformers.TrainingArguments` and their defaults."""
    from transformers import TrainingArguments as TrainerArguments  # takes seconds, which `--help` need not wait for

    return {
        one.name: one.default_factory() if one.default_factory is not MISSING else one.default for one in fields(TrainerArguments)
    }


__all__ = [
    "EARLIER",
    "HONOURED",
    "PASSED_ON",
    "REFUSED",
    "accepts_other_names",
    "check_passed_on",
    "current_names",
    "current_record",
]
