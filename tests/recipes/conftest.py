"""The recipes' `main` functions, called as the shell would."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

RECIPES = Path(__file__).parents[2] / "recipes"


def main_of(name: str) -> Callable[..., int]:
    """Return `main` of a recipe, each time with a fresh accelerate state."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main(*argv: str | Path) -> int:
        AcceleratorState._reset_state(reset_partial_state=True)
        return module.main([str(word) for word in argv])

    return main


@pytest.fixture(scope="session")
def mains() -> dict[str, Callable[..., int]]:
    """Name of a recipe -> its `main`."""
    return {name: main_of(name) for name in ("pretrain", "finetune", "index_items", "align", "eval", "recommend")}
