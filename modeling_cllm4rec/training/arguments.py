"""Arguments of training: the dataclass that all stages share, and YAML files that set defaults."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from modeling_cllm4rec.core.errors import InputError, MissingFileError, nearest
from modeling_cllm4rec.training.argument_names import PASSED_ON, accepts_other_names, check_passed_on, current_names

SchedulerName = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]
"""Schedules whose learning rate is a function of the step, so that a resumed run needs no state of them."""

FSDP_SETTINGS: dict[str, tuple[Any, ...]] = {"version": (2,), "reshard_after_forward": (True, False)}
"""Setting of `fsdp_config` -> allowed values."""


@accepts_other_names
@dataclass
class TrainingArguments:
    """Arguments of all training stages, by the names of `transformers.TrainingArguments`, which are explained there.

    Further arguments of transformers may be given as if they were fields; they are held in `trainer`. One that a stage would not
    honour is an error, see `argument_names`.
    """

    least_epochs = 1  # without an annotation, so that it is no field
    shard_tables_above = 0.0  # a field of stages whose steps may read only some rows of ID tables

    data: str = field(default="", metadata={"help": "data folder written by `cllm4rec prepare`"})
    output: str = field(default="", metadata={"help": "folder of the run: the finished model, and checkpoints/ of each stage"})
    seed: int = field(default=42, metadata={"help": "start of all random numbers"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint of this run"})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "as --resume; or a checkpoint's folder of this run, to go on from that one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "throw away what an earlier run of this stage left in output"})
    tune: Literal["frozen", "lora", "full"] = field(
        default="frozen",
        metadata={"help": "the backbone: frozen as in the paper, LoRA matrices, or all of its weights"},
    )
    lora_r: int = field(default=16, metadata={"help": "rank of the LoRA matrices"})
    lora_alpha: int = field(default=32, metadata={"help": "scale of the LoRA matrices"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout in front of the LoRA matrices"})
    num_train_epochs: int = field(default=10, metadata={"help": "passes over the interactions"})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "documents at a time on one process"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches of one optimizer step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "learning rate of the ID rows"})
    backbone_learning_rate: float = field(default=1e-4, metadata={"help": "learning rate of the backbone, when it is tuned"})
    weight_decay: float = field(default=0.01, metadata={"help": "weight decay of the backbone; ID rows have none"})
    lr_scheduler_type: SchedulerName = field(
        default="linear", metadata={"help": "learning rate after the warm-up, which all of them have"}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "steps in which the learning rate rises; below 1 a share of all steps, rounded down"}
    )
    optim: Literal["adamw_torch_fused", "adamw_torch", "sgd", "adagrad"] = field(
        default="adamw_torch_fused", metadata={"help": "optimizer"}
    )
    max_grad_norm: float = field(default=10.0, metadata={"help": "clip gradients to this norm; 0 does not clip"})
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "attention of the backbone in training, such as sdpa or flash_attention_2; for short texts on a CPU eager is "
            "quicker (default: the backbone's own)"
        },
    )
    dropout: float | None = field(
        default=None, metadata={"help": "dropout in the backbone, everywhere (default: what its own configuration says)"}
    )
    average_decay: float = field(
        default=0.0,
        metadata={"help": "validate and keep a moving average of the weights with this decay, such as 0.995; 0: the last step's"},
    )
    max_text_tokens: int | None = field(
        default=None, metadata={"help": "cut longer texts; without it, a text beyond the context is an error"}
    )
    bf16: bool = field(default=False, metadata={"help": "compute in bfloat16; trained weights stay in 32 bits"})
    torch_compile: bool = field(default=False, metadata={"help": "compile the layers of the backbone"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "save memory: compute activations twice"})
    fsdp: bool = field(
        default=False,
        metadata={"help": "shard weights, gradients and moments over all processes (FSDP2), as the launch configuration fsdp2"},
    )
    fsdp_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'settings of fsdp, as JSON or a JSON file; {"reshard_after_forward": false} keeps layers whole until the '
            "backward pass (as ZeRO-2; default: true, as ZeRO-3)"
        },
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "stop after so many epochs without a better validation; 0 never stops"}
    )
    save_steps: int = field(default=500, metadata={"help": "optimizer steps between checkpoints (and at each epoch's end)"})
    save_minutes: float = field(
        default=30.0, metadata={"help": "most minutes between checkpoints, whatever save_steps says; 0: by steps alone"}
    )
    stop_after_steps: int = field(
        default=0, metadata={"help": "end the process after so many optimizer steps, to be resumed later; 0 runs to the end"}
    )
    max_memory: float | None = field(
        default=None, metadata={"help": "refuse to begin when the estimate is more GB (10^9 bytes) of memory than this"}
    )
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = field(
        default="none", metadata={"help": "tracker that receives losses and metrics"}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "upload the finished model to the Hub"})
    hub_model_id: str = field(default="", metadata={"help": "its name there, NAME or OWNER/NAME (default: that of output)"})
    hub_private_repo: bool = field(default=True, metadata={"help": "make a new repository private"})
    hub_strategy: Literal["end"] = field(
        default="end", metadata={"help": "when to upload: at the end; `cllm4rec push` uploads a run later"}
    )
    trainer: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "further arguments of transformers.TrainingArguments as JSON; they may also be flags of their own"},
    )

    def __post_init__(self) -> None:
        # transformers takes True, False and the name of a folder.
        if str(self.resume_from_checkpoint).lower() in ("true", "false"):
            self.resume = self.resume or str(self.resume_from_checkpoint).lower() == "true"
            self.resume_from_checkpoint = None
        if isinstance(self.trainer, str):
            self.trainer = from_json("trainer", self.trainer)
        self.fsdp_config = read_fsdp_config(self.fsdp_config)
        check_passed_on(self.trainer or {})
        if self.hub_strategy in ("every_save", "checkpoint", "all_checkpoints"):
            raise InputError(
                f"hub_strategy is {self.hub_strategy!r}; a checkpoint of a stage is no model that can be loaded, so only the "
                "finished one is uploaded: set hub_strategy=end, and copy the folder checkpoints of the run to keep it elsewhere"
            )
        check_types(self)
        for name in ("data", "output"):
            if not getattr(self, name):
                raise InputError(f"{name} is not set; give {name}=..., or set it in the YAML file")
        check_at_least(self, self.least_epochs, "num_train_epochs")
        check_at_least(self, 1, "per_device_train_batch_size", "gradient_accumulation_steps")
        check_at_least(self, 1, "lora_r", "lora_alpha", "save_steps")
        check_at_least(self, 1, "max_text_tokens")
        check_at_least(self, 0, "seed", "learning_rate", "backbone_learning_rate", "weight_decay")
        check_at_least(self, 0, "max_grad_norm", "warmup_steps", "early_stopping_patience", "stop_after_steps", "save_minutes")
        if self.warmup_steps > 1 and self.warmup_steps % 1:
            raise InputError(f"warmup_steps is {self.warmup_steps}; it must be a whole number of steps, or a share below 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; it must be 0 or more and lie below 1")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout is {self.lora_dropout}; it must be 0 or more and lie below 1")
        if not 0 <= self.average_decay < 1:
            raise InputError(f"average_decay is {self.average_decay}; it must be 0 (no averaging) or lie below 1")
        self.resume = self.resume or self.resume_from_checkpoint is not None
        if self.resume and self.overwrite:
            raise InputError("resume and overwrite are both set; choose one")

    @property
    def precision(self) -> Literal["no", "bf16"]:
        """Precision of the computation, in the words of accelerate."""
        return "bf16" if self.bf16 else "no"

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return Path(self.output)

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of further inputs of a run, so that it is not resumed with other inputs."""
        return {}


def read_fsdp_config(given: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """Return the settings of `fsdp` under their plain names; as in transformers they may have the prefix `fsdp_`.

    Args:
        given: the settings, or JSON, or the name of a JSON file.

    Raises:
        MissingFileError: no such file.
        InputError: a setting that is not supported.

    Example:
        >>> read_fsdp_config('{"fsdp_reshard_after_forward": false}')
        {'reshard_after_forward': False}
    """
    if isinstance(given, str):
        text = given
        if not text.lstrip().startswith("{"):
            if not Path(text).is_file():
                raise MissingFileError(f"fsdp_config: there is no file {text}; name a JSON file, or give a JSON object")
            text = Path(text).read_text(encoding="utf-8")
        given = from_json("fsdp_config", text)
    if not isinstance(given, dict):
        return given
    settings = {name.removeprefix("fsdp_"): value for name, value in given.items()}
    for name, value in settings.items():
        if name not in FSDP_SETTINGS:
            raise InputError(f"fsdp_config has {name!r}, which is not honoured; allowed are {', '.join(FSDP_SETTINGS)}")
        if value not in FSDP_SETTINGS[name] or type(value) is not type(FSDP_SETTINGS[name][0]):
            allowed = " or ".join(map(repr, FSDP_SETTINGS[name]))
            raise InputError(f"fsdp_config: {name} is {value!r}; it must be {allowed}")
    return settings


def from_json(name: str, text: str) -> dict[str, Any]:
    """Parse a JSON object of the command line.

    Raises:
        InputError: it is none.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is {text!r}, which is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{name} is {text!r}; it must be a JSON object of names and values")
    return value


CONFIGS = Path(__file__).parents[1] / "configs"
"""A link to recipes/configs in a checkout, the files themselves in an installed package."""


def read_config(path: str | Path, kind: type[Any], section: str) -> dict[str, Any]:
    """Read the settings of one stage from a YAML file.

    Raises:
        MissingFileError: no such file.
        InputError: no YAML, an unknown key (the nearest names are listed), or a value of another type than the field's.
    """
    return stage_settings(read_yaml(path), path, kind, section)


def packaged_configs() -> list[str]:
    """Return the names of the YAML files that the package brings, those of recipes/configs."""
    return sorted(file.relative_to(CONFIGS).as_posix() for file in (*CONFIGS.glob("*.yaml"), *CONFIGS.glob("*/*.yaml")))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file at a path, or else of a packaged file of that name.

    Raises:
        MissingFileError: no such file.
        InputError: no YAML, or something else than keys and values.
    """
    file = Path(path)
    if not file.is_file() and str(path) in packaged_configs():
        file = CONFIGS / path
    if not file.is_file():
        raise MissingFileError(f"config: there is no file {path}; name yours, or one of {', '.join(packaged_configs())}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error}); a YAML file is needed") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and values, got {type(content).__name__}")
    return content


def stage_settings(content: Mapping[str, Any], path: str | Path, kind: type[Any], section: str) -> dict[str, Any]:
    """Return the settings of one stage from the content of a YAML file.

    Args:
        path: the file, for messages.

    Raises:
        InputError: an unknown key (the nearest names are listed), or a value of another type than the field's.
    """
    sections, shared_kind = shared_by(kind)
    shared = {key: value for key, value in content.items() if key not in sections}
    own = content.get(section) or {}
    if not isinstance(own, dict):
        raise InputError(f"{path}: {section}: expected keys and values, got {type(own).__name__}")
    shared, own = current_names(shared, kind, f"{path}: "), current_names(own, kind, f"{path}: {section}: ")
    names = {one.name: one for one in fields(kind)}
    common = {one.name for one in fields(shared_kind)}
    for place, keys, allowed in (("", shared, common), (f"{section}: ", own, set(names))):
        for key in keys:
            if key not in allowed:
                raise InputError(f"{path}: {place}unknown key {key!r}; {nearest(key, sorted(allowed))}")
    merged = {**shared, **own}
    if shared.get(PASSED_ON) and own.get(PASSED_ON):
        merged[PASSED_ON] = {**shared[PASSED_ON], **own[PASSED_ON]}
    for key, value in merged.items():
        merged[key] = _typed(path, key, value, names[key].default)
    return merged


def shared_by(kind: type[Any]) -> tuple[tuple[str, ...], type[Any]]:
    """Return the sections of a YAML file that share its top-level keys, and the class whose fields those keys are."""
    for base in kind.__mro__:
        if "sections" in vars(base):
            return vars(base)["sections"], base
    return (), kind


def _typed(path: str | Path, key: str, value: Any, default: Any) -> Any:
    """YAML reads 1e-3 as a string and 1 as an integer: give numbers the type of the field."""
    if isinstance(default, bool) or default is MISSING or default is None or value is None:
        return value
    if isinstance(default, float):
        try:
            return value if isinstance(value, bool) else float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {key} is {value!r}; it must be a number") from error
    if type(value) is not type(default):
        raise InputError(f"{path}: {key} is {value!r} ({type(value).__name__}); it must be {type(default).__name__}")
    return value


def check_types(arguments: Any) -> None:
    """Raise InputError if a field holds what its annotation does not allow: a wrong type, a choice that is none, NaN."""
    for name, hint in get_type_hints(type(arguments)).items():
        value = getattr(arguments, name)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise InputError(f"{name} is {value!r}; allowed are {', '.join(map(repr, get_args(hint)))}")
            continue
        hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        kinds = tuple(get_origin(one) or one for one in hints)
        words = list(value) if isinstance(value, (dict, list)) else []
        if isinstance(value, dict) and dict[str, str] in hints:
            words += value.values()
        inner = int if hint == list[int] else str
        right = isinstance(value, (*kinds, int) if float in kinds else kinds) and all(type(word) is inner for word in words)
        if not right or (isinstance(value, bool) and bool not in kinds):
            allowed = " or ".join("null" if one is type(None) else getattr(one, "__name__", str(one)) for one in hints)
            raise InputError(f"{name} is {value!r} ({type(value).__name__}); it must be {allowed}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} is {value}; it must be a finite number")


def check_at_least(arguments: Any, least: int, *names: str) -> None:
    """Raise InputError if one of the named fields is given and below `least`."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"{name} is {value}; it must be {least} or more")
