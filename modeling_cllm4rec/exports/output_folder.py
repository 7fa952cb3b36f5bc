"""What all exports check first: a model that has what is to be written, and a folder that holds nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeling_cllm4rec.core.errors import ExistingFileError, InputError


def new_output_folder(folder: str | Path) -> Path:
    """Make a folder, or take one that is empty.

    Raises:
        ExistingFileError: it holds something.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExistingFileError(f"--output: {path} holds something already; name a folder that is new or empty")
    path.mkdir(parents=True, exist_ok=True)
    return path


def require_scoring_model(model: Any, what: str) -> None:
    """Raise InputError if the model does not score all items from one state of the prompt, as CLLM4Rec does."""
    if not model.scores_catalogue:
        raise InputError(
            f"{what}: got a {type(model).__name__}, which finds items by a search and has no vector of an item; "
            "allowed is a finetuned CLLM4Rec model; serve this one by `cllm4rec serve`"
        )
    model.check_ready()


__all__ = ["new_output_folder", "require_scoring_model"]
