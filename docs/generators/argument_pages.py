"""The configuration reference: fields of the stages' arguments and of the models' configurations, from their classes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from command_pages import cell

from modeling_cllm4rec.serving.settings import ServiceSettings
from modeling_cllm4rec.systems import SYSTEMS, resolve

PAGE = "reference/configuration.md"


def argument_classes() -> dict[type, list[str]]:
    """Return the dataclasses of arguments, bases first, each with the stages that have its fields."""
    found: dict[type, list[str]] = {}
    stages = [stage for system in SYSTEMS.values() for stage in (*system.stages, *system.updates)]
    for stage in stages:
        for kind in reversed(resolve(stage.arguments).__mro__):
            if dataclasses.is_dataclass(kind):
                found.setdefault(kind, []).append(stage.name)
    return found


def config_classes() -> list[type]:
    """Return the classes of `config.json` and of the service's settings."""
    found = [resolve(system.config) for system in SYSTEMS.values()]
    indexer = resolve("modeling_cllm4rec.lcrec.configuration_rqvae:RQVAEConfig")
    return [*found, indexer, ServiceSettings]


def own_fields(kind: type) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and meaning of the fields that a dataclass adds to its bases or changes."""
    own = inspect.get_annotations(kind)
    rows = []
    for one in dataclasses.fields(kind):
        if one.name in own:
            meaning = one.metadata.get("help") or documented(kind).get(one.name, "")
            # HfArgumentParser writes into the fields' types, so the annotations are read.
            rows.append((one.name, type_name(own[one.name]), _default(one), meaning))
    return rows


def parameters(kind: type) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and meaning of the arguments of a class, with the meaning from its docstring."""
    if dataclasses.is_dataclass(kind) and own_fields(kind):
        return own_fields(kind)
    meanings = documented(kind)
    rows = []
    for one in list(inspect.signature(kind.__init__).parameters.values())[1:]:  # type: ignore[misc]
        if one.kind is not inspect.Parameter.VAR_KEYWORD:
            rows.append((one.name, type_name(one.annotation), _shown(one.default), meanings.get(one.name, "")))
    return rows


def documented(kind: type) -> dict[str, str]:
    """Return the meaning of each argument in the section Args of a class's docstring (Google style)."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(kind) or "", re.MULTILINE | re.DOTALL)
    if section is None:
        return {}
    # Each entry begins at the same indentation; its further lines are indented more.
    entries = re.split(r"^    (?=\w)", section[1], flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        names, _, meaning = entry.partition(":")
        found |= {name.strip(): " ".join(meaning.split()).rstrip(".") for name in names.split(",")}
    return found


def type_name(annotation: Any) -> str:
    """Return a type as it is written in the code, with the values of a `Literal` alone.

    Example:
        >>> type_name("Literal['a', 'b'] | None"), type_name(int)
        ('a | b | None', 'int')
    """
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    literal = re.sub(r"Literal\[([^\]]*)\]", lambda found: " | ".join(re.findall(r"[\w.+-]+", found[1])), text)
    return literal.replace("typing.", "")


def _default(one: dataclasses.Field[Any]) -> str:
    if one.default_factory is not dataclasses.MISSING:
        return _shown(one.default_factory())
    return _shown(one.default)


def _shown(value: Any) -> str:
    if value is dataclasses.MISSING or value is inspect.Parameter.empty:
        return "required"
    return '""' if value == "" else str(value)


def table(rows: list[tuple[str, str, str, str]]) -> str:
    """Return fields as a table."""
    lines = ["| name | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {cell(kind)} | {cell(default)} | {cell(meaning)} |" for name, kind, default, meaning in rows]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page."""
    parts = [
        """# Configuration

A stage takes its arguments from a YAML file (`--config FILE`), from flags, or as fields of its dataclass in Python. Flags
override the file. Keys of the file are the names below, above or inside the section of the stage (`pretrain:`, `finetune:`,
`index:`, `align:`, `update:`). An unknown key is an error that names the nearest ones. Further arguments of
`transformers.TrainingArguments` are taken under their own names.

## Arguments of the stages
"""
    ]
    classes = argument_classes()
    for kind, stages in classes.items():
        rows = own_fields(kind)
        if not rows:
            continue
        bases = ", ".join(f"[{base.__name__}](#{base.__name__.lower()})" for base in kind.__bases__ if base in classes)
        more = f" It has the fields of {bases} as well." if bases else ""
        used = ", ".join(f"`{name}`" for name in dict.fromkeys(stages))
        module = kind.__module__
        parts.append(f"### {kind.__name__} {{ #{anchor(kind, classes)} }}\n\n`{module}`. Stages: {used}.{more}\n\n{table(rows)}")
    parts.append("## Configurations of models\n\nThey are saved as `config.json`.\n")
    for kind in config_classes():
        if kind is ServiceSettings:
            parts.append("## The service\n")
        parts.append(f"### {kind.__name__}\n\n`{kind.__module__}`\n\n{table(parameters(kind))}")
    parts.append("Generated from the classes of the installed version.\n")
    return "\n".join(parts)


def anchor(kind: type, classes: dict[type, list[str]]) -> str:
    """Return the anchor of a class: its name, with the system where two classes share it."""
    same = [one for one in classes if one.__name__ == kind.__name__]
    return kind.__name__.lower() if same[0] is kind else f"{kind.__module__.split('.')[1]}-{kind.__name__.lower()}"


def pages() -> dict[str, str]:
    """Return the path of the page below docs/ and its text."""
    return {PAGE: page()}
