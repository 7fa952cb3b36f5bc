"""Data sets of the `datasets` library, saved in a folder or on the Hub, and single files of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError, MissingFileError

HUB_PREFIX = "hf:"
HUB_FILES = "hf://"


def saved_dataset(folder: Path) -> Any:
    """Open a folder written by `Dataset.save_to_disk`."""
    import datasets  # slow to import, and most sources are files

    if not any(folder.glob("dataset_*.json")):
        raise InputError(
            f"{folder}: is a folder, but neither one of Parquet files nor one written by datasets.Dataset.save_to_disk"
        )
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{folder}: cannot be read as a saved dataset: {error}") from error
    if isinstance(dataset, datasets.DatasetDict):
        first = folder / next(iter(dataset))
        raise InputError(f"{folder}: holds the splits {', '.join(dataset)}; name the folder of one, such as {first}")
    return dataset


def hub_dataset(name: str) -> Any:
    """Load a dataset of the Hub.

    Raises:
        MissingFileError: there is no such dataset or split, or it cannot be downloaded.
    """
    import datasets  # slow to import, and most sources are files

    path, _, split = name.removeprefix(HUB_PREFIX).partition(":")
    if not path:
        raise InputError(f"{name!r} names no dataset; write {HUB_PREFIX}NAME or {HUB_PREFIX}NAME:SPLIT")
    try:
        return datasets.load_dataset(path, split=split or "train")
    except (OSError, ValueError) as error:
        raise MissingFileError(
            f"{name} cannot be read from the Hub ({error}); check the name, the split and the network"
        ) from error


def hub_file(name: str) -> Path:
    """Download one file of a data set of the Hub, `hf://datasets/OWNER/NAME[@REVISION]/FILE`.

    Raises:
        MissingFileError: there is no such file, or it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    parts = name.removeprefix(HUB_FILES).split("/", 3)
    if len(parts) < 4 or parts[0] != "datasets" or not all(parts):
        raise InputError(
            f"{name!r} names no file of a data set; write {HUB_FILES}datasets/OWNER/NAME/FILE, or {HUB_PREFIX}OWNER/NAME"
        )
    repository, _, revision = f"{parts[1]}/{parts[2]}".partition("@")
    try:
        return Path(hf_hub_download(repository, parts[3], repo_type="dataset", revision=revision or None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise MissingFileError(
            f"{name} cannot be read from the Hub ({error}); check the name, the file and the network"
        ) from error
