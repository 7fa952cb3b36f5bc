"""Push a finished run to the Hub: model, tokenizer, card, evaluations and the card of its data, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, PROCESSOR_NAME

from modeling_cllm4rec.core.catalogue import CATALOGUE_FILE, USERS_FILE
from modeling_cllm4rec.core.errors import InputError, MissingFileError, nearest
from modeling_cllm4rec.core.json_objects import read_json
from modeling_cllm4rec.core.linear_parts import LINEAR_PARTS_FILE
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.core.saved_folder import (
    CARD_FILE,
    COMPARISON_FILE,
    CURVES_FILE,
    DATA_CARD_FILE,
    REQUIREMENTS_FILE,
    files_to_upload,
    upload,
)
from modeling_cllm4rec.evaluation.training_curves import RECORD_FILE
from modeling_cllm4rec.hub.eval_results import eval_results
from modeling_cllm4rec.hub.loading import check_folder
from modeling_cllm4rec.hub.model_card import saved_reports
from modeling_cllm4rec.systems import SYSTEMS

PARTS = (
    *(CONFIG_NAME, GENERATION_CONFIG_NAME, CATALOGUE_FILE, USERS_FILE, LINEAR_PARTS_FILE, REQUIREMENTS_FILE),
    *(CARD_FILE, CURVES_FILE, COMPARISON_FILE, DATA_CARD_FILE, RECORD_FILE),
)
"""Files of a run that are pushed, next to weights, code, tokenizer and evaluations."""
TOKENIZER_PARTS = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", PROCESSOR_NAME),
)
WEIGHTS = re.compile(r"model[^/]*\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class Push:
    """A push that was planned or done.

    Attributes:
        repository: name on the Hub.
        private: whether a new repository is private.
        files: path in the repository -> bytes.
        left_out: what stays in the folder of the run, and why.
        commit: address of the commit, None for a dry run.
    """

    repository: str
    private: bool
    files: dict[str, int]
    left_out: dict[str, str]
    commit: str | None = None


def push_run(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    include_histories: bool = False,
    dataset: str | None = None,
    token: bool | str | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
) -> Push:
    """Push the model of a run, with its tokenizer, card, evaluations and the card of its data, as one commit.

    Checkpoints, the corpus, prepared data, values per user and files that are not of the model stay where they are. Everything is
    checked before anything is sent, as loading does, in memory for one of the weights at a time.

    Args:
        run: folder of a finished run.
        repo_id: `OWNER/NAME`, or `NAME` in your own account; made if there is no such repository.
        private: whether a new repository is private; an existing one stays as it is.
        include_histories: whether the users' histories are pushed.
        dataset: repository of the data folder on the Hub, for a run on a local copy of it. The card names it, and results on its
            test split are written to `.eval_results/`.
        token: access token; None uses that of `hf auth login` or `HF_TOKEN`.
        commit_message, revision, create_pr: as in `RecommenderModel.push_to_hub`.
        dry_run: list the files, and send nothing.

    Raises:
        MissingFileError: `run` is no folder, or holds no finished model.
        InputError: the model or its tokenizer cannot be loaded, a name is none of the Hub, or histories would become public.
        RunError: the Hub refuses the push or cannot be reached.

    Example:
        >>> push_run("runs/mine", "you/mine", dry_run=True).commit is None  # doctest: +SKIP
        True
    """
    run = Path(run)
    for argument, name in (("repo_id", repo_id), ("dataset", dataset)):
        _check_name(argument, name)
    files = model_files(run)
    left_out = _left_out(run, files)
    found = files_to_upload(files, repo_id, include_histories)
    if isinstance(found.get(USERS_FILE), bytes):
        left_out[f"histories of {USERS_FILE}"] = "pass include_histories=True to push them"
    if CARD_FILE not in files:
        left_out[CARD_FILE] = "the run has no card; evaluate it"
    reports = saved_reports(run)

    def more(name: str) -> dict[str, bytes]:
        extra = eval_results(reports, dataset, f"{constants.ENDPOINT}/{name}")
        if dataset is not None and CARD_FILE in files:
            card = files_to_upload({CARD_FILE: files[CARD_FILE]}, name, include_histories)[CARD_FILE]
            assert isinstance(card, bytes)
            extra[CARD_FILE] = _with_dataset(card.decode(), dataset).encode()
        return extra

    found |= more(repo_id)
    sizes = {path: len(part) if isinstance(part, bytes) else part.stat().st_size for path, part in found.items()}
    commit = None
    if not dry_run:
        commit = upload(
            run,
            repo_id,
            files=files,
            more=more,
            include_histories=include_histories,
            private=private,
            token=token,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return Push(repo_id, private, dict(sorted(sizes.items())), left_out, commit)


def model_files(run: Path) -> dict[str, Path]:
    """Return the files of a run that belong to its model: path in the repository -> file.

    Raises:
        MissingFileError: there is no such folder, or no finished model in it.
        InputError: the model or its tokenizer cannot be loaded.
    """
    model_class = _checked_model(run)
    wanted = {*PARTS, *TOKENIZER_PARTS, *_code_files(run)}
    found = {
        path.name: path
        for path in run.iterdir()
        if path.is_file() and (path.name in wanted or WEIGHTS.fullmatch(path.name) or _is_report(path))
    }
    for name in model_class.saved_subfolders:
        found |= {path.relative_to(run).as_posix(): path for path in (run / name).rglob("*") if path.is_file()}
    return found


def _checked_model(run: Path) -> type[RecommenderModel]:
    """Return the class of a run's model, once all that is loaded with it is known to be whole.

    Raises:
        MissingFileError, InputError: as `model_files`.
    """
    if not run.is_dir():
        siblings = [path.name for path in run.parent.iterdir() if path.is_dir()] if run.parent.is_dir() else []
        raise MissingFileError(f"run: there is no folder {run}; {nearest(run.name, siblings, 'name the folder of a run')}")
    if not (run / CONFIG_NAME).is_file():
        inner = sorted(path.parent.name for path in run.glob(f"*/{CONFIG_NAME}") if path.parent.name != "checkpoints")
        hint = f"finish it, or push {run / inner[0]}" if inner else "name the folder of a finished run"
        raise MissingFileError(f"run: {run} holds no finished model (there is no {CONFIG_NAME}); {hint}")
    kind = read_json(run / CONFIG_NAME).get("model_type")
    if kind not in SYSTEMS:
        raise InputError(
            f"run: {run} holds a model of the type {kind!r}, not one of {', '.join(SYSTEMS)}; name the folder of a finished run"
        )
    model = check_folder(run, "run")
    if model.catalogue is None and model.config.catalogue_fingerprint is not None:
        raise MissingFileError(
            f"run: {run} has no {CATALOGUE_FILE}, which names the items that its model was trained on; copy the folder again"
        )
    return type(model)


def _code_files(run: Path) -> set[str]:
    """Return the Python files that `auto_map` names, and those that they import.

    Raises:
        MissingFileError: one of them is not there, so that the pushed model could not be loaded by its own code.
    """
    found: set[str] = set()
    for name in (CONFIG_NAME, "tokenizer_config.json"):
        settings = read_json(run / name) if (run / name).is_file() else {}
        for targets in (settings.get("auto_map") or {}).values():
            for target in [targets] if isinstance(targets, str) else targets:
                if not target or "--" in target:  # code of another repository, or no slow tokenizer
                    continue
                module = run / f"{target.rpartition('.')[0]}.py"
                try:
                    imported = get_relative_import_files(str(module))
                except FileNotFoundError as error:
                    raise MissingFileError(
                        f"run: {run} has no {Path(error.filename).name}, which is code that {name} names; load the model and "
                        "save it again, or copy the folder again"
                    ) from error
                found |= {module.name, *(Path(file).name for file in imported)}
    return found


def _is_report(path: Path) -> bool:
    return path.name.startswith("evaluation-") and path.suffix == ".json"


def _left_out(run: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """Return what stays in the folder of a run: name -> why."""
    pushed = {path.partition("/")[0] for path in files}
    left: dict[str, str] = {}
    for path in sorted(run.iterdir()):
        if path.name in pushed or path.name.startswith("."):
            continue
        if path.is_dir():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            left[f"{path.name}/"] = f"{size:,} bytes, not part of the model"
        elif path.name.startswith("evaluation-"):
            left[path.name] = "values of each user"
        else:
            left[path.name] = "not part of the model"
    return left


def _check_name(argument: str, name: str | None) -> None:
    """Raise InputError if a name cannot be one of the Hub."""
    try:
        if name is not None:
            validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{argument} is {name!r}, which is no name on the Hub ({error}); write OWNER/NAME") from error
    if argument == "dataset" and name is not None and "/" not in name:
        raise InputError(f"{argument} is {name!r}; write OWNER/NAME, as the data is named on the Hub")


def _with_dataset(card: str, dataset: str) -> str:
    """Return a card whose header names a dataset."""
    _, header, text = card.split("---\n", 2)
    fields: dict[str, Any] = yaml.safe_load(header)
    others: Iterable[str] = fields.get("datasets", [])
    fields["datasets"] = list(dict.fromkeys([*others, dataset]))
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n{text}"


__all__ = ["Push", "model_files", "push_run"]
