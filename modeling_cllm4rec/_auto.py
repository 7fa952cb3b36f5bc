"""Teaches `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and `AutoTokenizer` our model types.

The Auto classes keep tables of class names and import a class when a checkpoint first asks for it. Our names are
written into those tables instead of our classes, for two reasons: nothing of ours (and no torch) is imported before it
is needed, and no import can run in a circle, whichever of transformers and this package comes first. If transformers is
imported later, the names are written right after the module that holds a table has run.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NamedTuple

from modeling_cllm4rec.systems import AFTER_REGISTRATION, SYSTEMS, System


class Names(NamedTuple):
    """Class names of a model type; None where it has no such class."""

    config: str
    model: str
    causal_lm: str | None = None
    tokenizer: str | None = None


def _names(system: System) -> Names:
    targets = (system.config, system.model, system.causal_lm, system.tokenizer)
    return Names(*(target.partition(":")[2] or None for target in targets))  # type: ignore[arg-type]


def model_types() -> dict[str, Names]:
    """Return the names of all model types: those of the systems, and the indexer of LC-Rec."""
    return {**{name: _names(system) for name, system in SYSTEMS.items()}, "cllm4rec_rqvae": Names("RQVAEConfig", "RQVAEModel")}


def target_of(class_name: str) -> str | None:
    """Return `module:Class` of a system's class, None for a name that no system has."""
    targets = [
        target for system in SYSTEMS.values() for target in (system.config, system.model, system.causal_lm, system.tokenizer)
    ]
    return next((target for target in targets if target.partition(":")[2] == class_name), None)


def register() -> None:
    """Write our names into the tables of transformers: now where they exist already, else as soon as they do."""
    sys.meta_path.insert(0, _AutoModulesFinder())
    write_names_now()
    AFTER_REGISTRATION.append(write_names_now)


def write_names_now() -> None:
    """Write the names into the tables that exist already, also those of a system that was registered later."""
    for module_name, write_names in _WRITERS.items():
        if module_name in sys.modules:
            write_names(importlib.import_module(module_name))  # waits while another thread is importing it


def _write_config_names(module: ModuleType) -> None:
    for model_type, names in model_types().items():
        module.CONFIG_MAPPING_NAMES[model_type] = names.config
        # The tables look for a class in the module `transformers.models.<model type>`: for ours, that is this package.
        sys.modules[f"transformers.models.{model_type}"] = sys.modules["modeling_cllm4rec"]


def _write_model_names(module: ModuleType) -> None:
    for model_type, names in model_types().items():
        _write_class_name(module.MODEL_MAPPING_NAMES, module.MODEL_MAPPING, model_type, names.model)
        _write_class_name(
            module.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, module.MODEL_FOR_CAUSAL_LM_MAPPING, model_type, names.causal_lm
        )


def _write_tokenizer_names(module: ModuleType) -> None:
    for model_type, names in model_types().items():
        _write_class_name(module.TOKENIZER_MAPPING_NAMES, module.TOKENIZER_MAPPING, model_type, names.tokenizer)


def _write_class_name(table: dict[str, str], mapping: Any, model_type: str, class_name: str | None) -> None:
    if class_name is not None:
        table[model_type] = class_name
        # a copy of the table of configurations, made before ours were in it
        mapping._reverse_config_mapping[model_types()[model_type].config] = model_type


_WRITERS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _write_config_names,
    "transformers.models.auto.modeling_auto": _write_model_names,
    "transformers.models.auto.tokenization_auto": _write_tokenizer_names,
}


class _AutoModulesFinder:
    """Finds the three modules with the tables as the import system does, and has our names written after each ran."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _WRITERS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute, write_names = spec.loader.exec_module, _WRITERS[fullname]

        def execute_then_write(module: ModuleType) -> None:
            execute(module)
            write_names(module)

        spec.loader.exec_module = execute_then_write  # type: ignore[method-assign]
        return spec
