"""Data folders on the Hugging Face Hub: download and upload of dataset repositories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from modeling_cllm4rec.core.errors import InputError, MissingFileError, RunError

PREFIXES = ("hf://datasets/", "hf:")
"""Beginnings of a name on the Hub; the first one is that of `huggingface_hub`'s file system."""


def is_hub_name(folder: str | Path) -> bool:
    """Check whether a folder is named on the Hub.

    >>> is_hub_name("hf:you/mine"), is_hub_name("data/mine"), is_hub_name(Path("data"))
    (True, False, False)
    """
    return isinstance(folder, str) and folder.startswith(PREFIXES)


def repository_of(name: str) -> tuple[str, str | None]:
    """Return the repository and the revision of a name on the Hub.

    >>> repository_of("hf:you/mine"), repository_of("hf://datasets/you/mine@v1")
    (('you/mine', None), ('you/mine', 'v1'))
    """
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    repository, _, revision = name.partition("@")
    return repository.strip("/"), revision or None


def download(name: str) -> Path:
    """Download a dataset repository into the cache, and return its folder there.

    Raises:
        InputError: the name has another form than `hf:OWNER/NAME`.
        MissingFileError: there is no such repository or revision, or it cannot be reached.
    """
    repository, revision = repository_of(name)
    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision))
    except HFValidationError as error:
        raise InputError(f"{name!r} is no name of the Hub ({error}); write hf:OWNER/NAME or hf:OWNER/NAME@REVISION") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingFileError(
            f"{name} cannot be read from the Hub ({error}); check the name, the revision, your access and the network"
        ) from error


def upload(
    folder: Path, files: Sequence[str], repo_id: str, *, private: bool, token: str | None = None, message: str | None = None
) -> str:
    """Upload some files of a folder as one commit, and return the address of the commit.

    Args:
        folder: a local folder.
        files: names of its files to upload; the repository then has no other files.
        repo_id: the dataset repository, made if there is none.
        private: whether a new repository is private.
        token, message: see `RecommendationData.push_to_hub`.

    Raises:
        InputError: `repo_id` has another form than OWNER/NAME.
        RunError: the Hub refuses the upload or cannot be reached.
    """
    api = HfApi(token=token)
    try:
        made = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=list(files),
            commit_message=message or "Upload data folder",
        )
    except HFValidationError as error:
        raise InputError(f"repo_id is {repo_id!r}, which is no name on the Hub ({error}); write OWNER/NAME") from error
    except (HfHubHTTPError, OSError) as error:
        raise RunError(f"{folder} could not be pushed to {repo_id} ({error}); run `hf auth login`, or set HF_TOKEN") from error
    return str(commit.commit_url)
