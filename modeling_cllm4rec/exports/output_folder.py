"""Checks shared by all exports: of the model and of the output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeling_cllm4rec.core.errors import ExistingFileError, InputError
from modeling_cllm4rec.corpora.atomic_files import check_output_folder


def new_output_folder(folder: str | Path) -> Path:
    """Create the output folder, or accept an empty one.

    Raises:
        ExistingFileError: the folder is not empty, or there is a file in its place.
        FileWriteError: it may not be written into.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExistingFileError(f"folder is {path}, which is not empty; choose a new or empty folder")
    check_output_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def require_scoring_model(model: Any, what: str) -> None:
    """Check that the model scores all items from one state of the prompt, as CLLM4Rec does.

    Raises:
        InputError: the model searches instead, or is not ready to recommend.
    """
    if not model.scores_catalogue:
        raise InputError(
            f"{what}: got a {type(model).__name__}, which finds items by a search and has no vector of an item; "
            "allowed is a finetuned CLLM4Rec model; serve this one by `cllm4rec serve`"
        )
    model.check_ready()


__all__ = ["new_output_folder", "require_scoring_model"]
