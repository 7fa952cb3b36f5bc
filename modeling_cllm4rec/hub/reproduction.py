"""Facts of a model card that reproduce a training: the commands, the backbone and the licences."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from transformers.utils import cached_file

NOT_REPEATED = (
    *("resume", "resume_from_checkpoint", "overwrite", "stop_after_steps", "stop_after_epochs"),
    *("save_every", "save_steps", "save_minutes", "report_to", "max_memory", "trainer"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"),
)
"""Arguments that do not change the result of a finished training."""
NOT_STATED = "not stated"
"""Shown in a card in place of a licence that was not given."""


def changed_arguments(arguments: Any) -> dict[str, Any]:
    """Return the arguments that differ from their defaults and change the result.

    >>> from modeling_cllm4rec.cllm4rec.arguments import PretrainArguments
    >>> changed_arguments(PretrainArguments(data="data", output="runs/mine", backbone="gpt2", num_train_epochs=3, resume=True))
    {'data': 'data', 'output': 'runs/mine', 'num_train_epochs': 3, 'backbone': 'gpt2'}
    """
    changed = {}
    for field in dataclasses.fields(arguments):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(arguments, field.name)
        if value != default and field.name not in NOT_REPEATED:
            changed[field.name] = value
    return changed


def training_command(stage: str, arguments: Mapping[str, Any], processes: int = 1) -> str:
    """Return the command line of a stage with some arguments; those without a value are omitted.

    >>> training_command("pretrain", {"data": "my data", "reorder": False, "init_columns": ["title", "brand"]})
    "cllm4rec pretrain --data 'my data' --reorder False --init-columns title brand"
    """
    start = ["cllm4rec"]
    if processes > 1:
        start = ["accelerate", "launch", "--num_processes", str(processes), "-m", "modeling_cllm4rec"]
    words = [*start, stage]
    for name, value in arguments.items():
        if value is None or name in NOT_REPEATED:
            continue
        values = value if isinstance(value, (list, tuple)) else [json.dumps(value) if isinstance(value, dict) else value]
        words += ["--" + name.replace("_", "-"), *map(str, values)]
    return shlex.join(words)


def backbone_record(name: str) -> dict[str, Any]:
    """Return the name of a backbone, whether it is a local folder, and licence and languages by its card or configuration.

    A backbone that is no folder is looked up on the Hub or in the cache. The licence is None, and there are no languages, if none
    is found.
    """
    card = _file(name, "README.md")
    about: Mapping[str, Any] = (metadata_load(card) or {}) if card is not None else {}
    stated = about.get("language") or []
    languages = [stated] if isinstance(stated, str) else list(stated)
    return {"name": name, "local": Path(name).is_dir(), "license": _stated_license(name, about), "language": languages}


def _stated_license(name: str, about: Mapping[str, Any]) -> str | None:
    """Return the licence that the header of a model's card or else its configuration states."""
    if about.get("license") is None:
        config = _file(name, "config.json")
        about = json.loads(config.read_text(encoding="utf-8")) if config is not None else {}
    stated = about.get("license")
    if stated is None:
        return None
    words = ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated)
    return f"{words} ({about['license_name']})" if "license_name" in about else words


def license_header(backbone: str | None, data: str | None) -> dict[str, str]:
    """Return the licence fields of a card's YAML header, none if the licence of the backbone is not known.

    The Hub accepts a list of licence names; any other name must be `license_name`, with `other` as the licence.

    Args:
        backbone, data: licences as their owners state them.

    >>> license_header("mit", None), license_header("mit", "cc-by-4.0"), license_header("other (llama)", None)
    ({'license': 'mit'}, {'license': 'other', 'license_name': 'backbone mit, data cc-by-4.0'}, {'license': 'other', \
'license_name': 'llama'})
    """
    if backbone is None:
        return {}
    if data is not None and data != backbone:
        return {"license": "other", "license_name": f"backbone {backbone}, data {data}"}
    if re.fullmatch(r"[a-z0-9.-]+", backbone) and backbone != "other":
        return {"license": backbone}
    return {"license": "other", "license_name": backbone.removeprefix("other (").removesuffix(")")}


def _file(name: str, file: str) -> Path | None:
    """Return a file of a model in a folder or on the Hub, None if there is none."""
    try:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    except OSError:  # the model was removed, or access to it is restricted
        return None
    return None if path is None else Path(path)


__all__ = ["NOT_STATED", "backbone_record", "changed_arguments", "license_header", "training_command"]
