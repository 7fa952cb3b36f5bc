"""The recipes' `main` functions, called as the shell would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from recipe_modules import main_of


@pytest.fixture(scope="session")
def mains() -> dict[str, Callable[..., int]]:
    """Name of a recipe -> its `main`."""
    return {name: main_of(name) for name in ("pretrain", "finetune", "index_items", "align", "eval", "recommend")}
