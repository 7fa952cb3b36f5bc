"""Checks shared by all exports: of the model and of the output folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.atomic_files import atomic_folder, check_new_folder


@contextmanager
def new_output_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes the output folder when the block ends without an error.

    Raises:
        ExistingFileError: the folder is not empty, or there is a file in its place.
        FileWriteError: it may not be written into.
    """
    check_new_folder(folder, "folder")
    path = Path(folder).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(path, unique=True) as temporary:
        yield temporary
        check_new_folder(folder, "folder")  # another process may have written it in the meantime


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
