"""Data folders on the Hugging Face Hub: download and upload of dataset repositories, and their leaderboards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.hub_upload import commit_files
from modeling_cllm4rec.corpora.atomic_files import sweep_folder

PREFIXES = ("hf://datasets/", "hf:")
"""Beginnings of a name on the Hub; the first one is that of `huggingface_hub`'s file system."""

BENCHMARK_FILE = "eval.yaml"
"""File of a dataset repository that declares its leaderboards: https://huggingface.co/docs/hub/eval-results"""
BENCHMARK_FRAMEWORK = "cllm4rec"
BENCHMARK_METRICS = (
    *("recall@10", "recall@20", "recall@40", "ndcg@5", "ndcg@10", "ndcg@20", "ndcg@100"),
    *("hit_rate@1", "hit_rate@5", "hit_rate@10", "mrr@10"),
)
"""Metrics on the split `test` with a leaderboard of their own."""


def is_hub_name(folder: str | Path) -> bool:
    """Check whether a folder is named on the Hub.

    >>> is_hub_name("hf:you/mine"), is_hub_name("data/mine"), is_hub_name(Path("data"))
    (True, False, False)
    """
    return isinstance(folder, str) and folder.startswith(PREFIXES)


def check_data_folder(folder: str | Path) -> None:
    """Check that there is a folder of a prepared data set, as far as that is seen without reading it.

    Args:
        folder: a path; or a name on the Hub, which is not looked up.

    Raises:
        MissingFileError: there is no such folder.

    Example:
        >>> check_data_folder("no/such/data")
        Traceback (most recent call last):
        modeling_cllm4rec.core.errors.MissingFileError: no/such/data: there is no such data folder; make one with ...
    """
    if is_hub_name(folder):
        return
    if not Path(folder).is_dir():
        sweep_folder(Path(folder).resolve())  # A process may have been killed while it replaced the folder.
    if not Path(folder).is_dir():
        raise MissingFileError(f"{folder}: there is no such data folder; make one with `cllm4rec prepare`")


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


def origin_of(folder: Path) -> tuple[str, str] | None:
    """Return the repository and the commit of a folder that `download` returned; None for any other folder.

    >>> origin_of(Path("hub/datasets--you--mine/snapshots/5503434d"))
    ('you/mine', '5503434d')
    >>> origin_of(Path("data/mine")) is None
    True
    """
    found = re.fullmatch(r"datasets--(.+)", folder.parent.parent.name)
    if found is None or folder.parent.name != "snapshots":
        return None
    return found[1].replace("--", "/"), folder.name


def upload(
    folder: Path,
    files: Sequence[str],
    repo_id: str,
    *,
    private: bool,
    more: Mapping[str, bytes] | None = None,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Upload some files of a folder as one commit, and return the address of the commit.

    Args:
        folder: a local folder.
        files: names of its files to upload.
        repo_id: the dataset repository, made if there is none.
        private: whether a new repository is private.
        more: name -> content of further files.
        token, message: see `RecommendationData.push_to_hub`.

    Raises:
        InputError: `repo_id` has another form than OWNER/NAME.
        RunError: the Hub refuses the upload or cannot be reached.
    """
    contents: dict[str, Path | bytes] = {name: folder / name for name in files}
    return commit_files(
        repo_id,
        lambda name: {**contents, **(more or {})},
        repo_type="dataset",
        private=private,
        token=token,
        message=message or "Upload data folder",
    )


def task_of(metric: str) -> str:
    """Return the leaderboard of a metric on the split `test`, the same in `eval.yaml` and in the results of models.

    >>> task_of("recall@20")
    'test_recall_20'
    """
    return f"test_{metric.replace('@', '_')}"


def benchmark_description(name: str, info: Mapping[str, Any]) -> str:
    """Return the `eval.yaml` of a data folder: it declares a leaderboard for each metric on the split `test`.

    The Hub accepts frameworks that are in its list alone; docs/hub-registration.md has the entry for this package.

    Args:
        name: of the data folder.
        info: the contents of `dataset.json`.

    >>> text = benchmark_description("mine", {"protocol": {"line": "leave-one-out"}, "statistics": {"users": 9, "items": 5}})
    >>> print(*text.splitlines()[:3], sep="\\n")
    name: mine
    description: Recommend the held-out test items of 9 users among all 5 items (leave-one-out).
    evaluation_framework: cllm4rec
    """
    counts = info["statistics"]
    about = f"Recommend the held-out test items of {counts.get('users')} users among all {counts.get('items')} items"
    tasks = [{"id": task_of(metric), "config": "interactions", "split": "test"} for metric in BENCHMARK_METRICS]
    document = {
        "name": name,
        "description": f"{about} ({info['protocol']['line']}).",
        "evaluation_framework": BENCHMARK_FRAMEWORK,
        "tasks": tasks,
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
