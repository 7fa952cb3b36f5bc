"""Teaches `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and `AutoTokenizer` the model type `cllm4rec`.

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
from typing import Any

MODEL_TYPE = "cllm4rec"


def register() -> None:
    """Write our names into the tables of transformers: now where they exist already, else as soon as they do."""
    sys.meta_path.insert(0, _AutoModulesFinder())
    for module_name, write_names in _WRITERS.items():
        if module_name in sys.modules:
            write_names(importlib.import_module(module_name))  # waits while another thread is importing it


def _write_config_name(module: ModuleType) -> None:
    module.CONFIG_MAPPING_NAMES[MODEL_TYPE] = "CLLM4RecConfig"
    # The tables look for a class in the module `transformers.models.<model type>`: for ours, that is this package.
    sys.modules[f"transformers.models.{MODEL_TYPE}"] = sys.modules["modeling_cllm4rec"]


def _write_model_names(module: ModuleType) -> None:
    names, causal_lm_names = module.MODEL_MAPPING_NAMES, module.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    _write_class_name(names, module.MODEL_MAPPING, "CLLM4RecForRecommendation")
    _write_class_name(causal_lm_names, module.MODEL_FOR_CAUSAL_LM_MAPPING, "CLLM4RecForCausalLM")


def _write_tokenizer_name(module: ModuleType) -> None:
    _write_class_name(module.TOKENIZER_MAPPING_NAMES, module.TOKENIZER_MAPPING, "CLLM4RecTokenizer")


def _write_class_name(names: dict[str, str], mapping: Any, class_name: str) -> None:
    names[MODEL_TYPE] = class_name
    mapping._reverse_config_mapping["CLLM4RecConfig"] = MODEL_TYPE  # a copy of the configuration table made before ours


_WRITERS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _write_config_name,
    "transformers.models.auto.modeling_auto": _write_model_names,
    "transformers.models.auto.tokenization_auto": _write_tokenizer_name,
}


class _AutoModulesFinder:
    """Finds the three modules with the tables as the import system does, and has our names written after each ran."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
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
