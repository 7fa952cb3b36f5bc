"""One commit to a repository of the Hub: the files that are named, and no others.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError

from .errors import InputError, RunError

try:  # the client that huggingface_hub brings
    from httpx2 import HTTPError
except ImportError:  # huggingface_hub 1
    from httpx import HTTPError  # type: ignore[import-not-found, assignment, no-redef, unused-ignore]


def commit_files(
    repo_id: str,
    files: Callable[[str], Mapping[str, Path | bytes]],
    *,
    repo_type: str = "model",
    private: bool | None = True,
    secret: str = "",
    stale: Callable[[str], bool] | None = None,
    token: bool | str | None = None,
    message: str,
    description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Commit files to a repository, which is made if there is none.

    Args:
        repo_id: `NAME` in one's own account, or `OWNER/NAME`.
        files: from the full name of the repository to its files: path there -> file, or content.
        repo_type: `model` or `dataset`.
        private: visibility of a repository that is made; None means the owner's default. One that is there stays as it is.
        secret: content that must not get into a public repository unless `private` is False, in words for the message; empty
            for none.
        stale: whether a file that is in the repository, and not among the new ones, is deleted; None deletes none.
        token: access token; None uses that of `hf auth login` or `HF_TOKEN`.
        message, description: of the commit.
        revision: branch to commit to; made from the main one if there is no such branch.
        create_pr: propose the commit as a pull request.

    Returns:
        The address of the commit.

    Raises:
        InputError: `repo_id` has another form, the repository is public and the files are secret, or the Hub refuses the header
            of the card.
        RunError: the Hub refuses the commit or cannot be reached.
    """
    api = HfApi(token=token)
    try:
        made = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if secret and private is not False and not api.repo_info(made, repo_type=repo_type).private:
            raise InputError(
                f"repo_id: {made} is public, and the commit holds {secret}; leave them out, or choose a private repository"
            )
        if revision is not None and not create_pr:
            api.create_branch(made, repo_type=repo_type, branch=revision, exist_ok=True)
        new = files(made)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content)) for path, content in new.items()
        ]
        if stale is not None:
            present = api.list_repo_files(made, repo_type=repo_type, revision=None if create_pr else revision)
            operations += [CommitOperationDelete(path) for path in present if path not in new and stale(path)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # catalogue and users
            commit = api.create_commit(
                made,
                operations,
                repo_type=repo_type,
                commit_message=message,
                commit_description=description,
                revision=revision,
                create_pr=create_pr,
            )
    except HFValidationError as error:
        raise InputError(f"repo_id is {repo_id!r}, which is no name on the Hub ({error}); write OWNER/NAME") from error
    except InputError:
        raise
    except ValueError as error:  # the metadata of the card
        raise InputError(f"README.md: the Hub refuses its header ({' '.join(str(error).split())[:300]}); correct it") from error
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"repo_id: nothing was pushed to {repo_id} ({reason}); run `hf auth login`, or set HF_TOKEN") from error
    return str(commit.commit_url)


__all__ = ["commit_files"]
