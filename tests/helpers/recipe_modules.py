"""Recipes as modules, to call their functions in the process of the tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from accelerate.state import AcceleratorState

RECIPES = Path(__file__).parents[2] / "recipes"


def load_recipe(name: str) -> ModuleType:
    """Load `recipes/NAME.py` as a new module; a recipe is a script that no package holds."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main_of(name: str) -> Callable[..., int]:
    """Return `main` of a recipe, called with any values as words, each time with a fresh accelerate state."""
    module = load_recipe(name)

    def main(*argv: object) -> int:
        AcceleratorState._reset_state(reset_partial_state=True)
        return int(module.main([str(word) for word in argv]) or 0)

    return main
