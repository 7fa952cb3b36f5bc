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


def require_exportable(model: Any, what: str) -> None:
    """Check that the scores of a model are those of its language model and item vectors alone, and that it can recommend.

    Raises:
        InputError: the model adds linear models, or is not ready to recommend.
    """
    if model.linear_parts is not None:
        raise InputError(
            f"{what}: the model is a hybrid with the linear models {', '.join(model.linear_parts.weights)}, which cannot be "
            "exported; export the model that it was made of, or serve this one by `cllm4rec serve`"
        )
    model.check_ready()


__all__ = ["new_output_folder", "require_exportable"]
