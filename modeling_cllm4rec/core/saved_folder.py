"""The folder of a model: weights, catalogue, users, generation settings, card and code, saved, loaded and uploaded together.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers import GenerationConfig
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from .catalogue import CATALOGUE_FILE, USERS_FILE, Catalogue, KnownUsers, is_text_type
from .errors import ExistingFileError, InputError, MissingFileError
from .folder_checks import check_table, is_id, is_index_list
from .handler import EndpointHandler  # noqa: F401 (imported files are copied: Inference Endpoints look for handler.py)
from .hub_upload import commit_files
from .json_objects import COPY_AGAIN, read_json
from .linear_parts import LINEAR_PARTS_FILE, LinearParts

CARD_FILE = "README.md"
"""Model card of a saved folder."""
CURVES_FILE = "training_curves.png"
"""Plot of the training in a saved folder."""
COMPARISON_FILE = "comparison.png"
"""Plot of the model's metrics next to those of baselines in a saved folder."""
REQUIREMENTS_FILE = "requirements.txt"
"""Packages that the code of a saved folder needs."""
DATA_CARD_FILE = "data_card.md"
"""File of a saved folder with the card of its data."""
REQUIREMENTS = ("pandas>=2.2.3", "pyarrow>=24.0", "safetensors>=0.8", "torch>=2.13", "transformers>=5.20,<6")
"""Requirements that Inference Endpoints install before they start `handler.py`: their images hold other versions."""
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that are passed on to downloads from the Hub."""
UPLOAD_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr")
"""Arguments of `save_pretrained(..., push_to_hub=True)` that are passed on to the upload."""


def check_tables(config: Any, name_or_path: Any, hub: dict[str, Any]) -> None:
    """Check catalogue and users of a folder by their footers, before anything is read.

    Raises:
        InputError: a damaged file, another number of rows than the configuration says, or a column of another type.
    """
    texts = dict.fromkeys(("title", "brand", "categories"), is_text_type)
    tables = [
        (CATALOGUE_FILE, config.num_items, "items", {"item_id": is_id, **texts, "codes": is_index_list}),
        (USERS_FILE, config.num_users, "users", {"user_id": is_id, "history": is_index_list}),
    ]
    for file, rows, what, kinds in tables:
        path = cached_file(name_or_path, file, **hub, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            check_table(path, rows, what, kinds)


def load_parts(model: Any, name_or_path: Any, hub: dict[str, Any]) -> None:
    """Give a model the catalogue, users, cards, curves and generation settings of its folder.

    Args:
        model: a `RecommenderModel` whose weights are loaded.
        name_or_path: folder or name on the Hub.
        hub: arguments of `cached_file`, such as `revision` and `token`.

    Raises:
        MissingFileError: the linear models of a hybrid are not there.
        InputError: catalogue, users or linear models belong to another checkpoint.
    """
    parts: list[tuple[str, str, Callable[[str], Any]]] = [
        ("catalogue", CATALOGUE_FILE, Catalogue.load),
        ("users", USERS_FILE, KnownUsers.load),
        ("linear_parts", LINEAR_PARTS_FILE, LinearParts.load),
        ("card", CARD_FILE, _read_text),
        ("training_curves", CURVES_FILE, _read_bytes),
        ("comparison", COMPARISON_FILE, _read_bytes),
        ("data_card", DATA_CARD_FILE, _read_text),
    ]
    if not model.can_generate():
        parts.append(("generation_config", GENERATION_CONFIG_NAME, _read_generation_config))
    for name, file, load in parts:
        path = cached_file(name_or_path, file, **hub, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            setattr(model, name, load(path))
    named = model.config.linear_parts
    if named and model.linear_parts is None:
        raise MissingFileError(
            f"{name_or_path} has no {LINEAR_PARTS_FILE}, but config.json says that the model is a hybrid with "
            f"{', '.join(named)}; {COPY_AGAIN}, or set linear_parts in config.json to [] for the language model alone"
        )
    model.check_catalogue()


def check_parts(config: Any, catalogue: Catalogue | None, users: KnownUsers | None) -> None:
    """Check that catalogue and users are those of a model's weights.

    Raises:
        InputError: they belong to another checkpoint.
    """
    if catalogue is not None and len(catalogue) != config.num_items:
        raise InputError(
            f"{CATALOGUE_FILE} holds {len(catalogue)} items, the weights {config.num_items}: it belongs to another checkpoint"
        )
    if catalogue is not None and config.catalogue_fingerprint not in (None, catalogue.ids.fingerprint):
        raise InputError(
            f"{CATALOGUE_FILE} holds other items, or in another order, than the weights were trained on: "
            "it belongs to another checkpoint"
        )
    if users is not None and len(users) != config.num_users:
        raise InputError(
            f"{USERS_FILE} holds {len(users)} users, the weights {config.num_users}: it belongs to another checkpoint"
        )
    if users is None or users.items is None:
        return
    first, last = int(np.min(users.items, initial=0)), int(np.max(users.items, initial=-1))
    if first < 0 or last >= config.num_items:
        raise InputError(
            f"{USERS_FILE} has histories with item {first if first < 0 else last}, the catalogue goes from 0 to "
            f"{config.num_items - 1}: it belongs to another checkpoint"
        )


def check_target(model: Any, folder: Path) -> None:
    """Check that a folder holds no catalogue or users of another model, which would be loaded with this one.

    Raises:
        ExistingFileError: there is such a file.
    """
    for part, file in ((model.catalogue, CATALOGUE_FILE), (model.users, USERS_FILE)):
        if part is None and (folder / file).exists():
            raise ExistingFileError(
                f"{folder} holds a {file} of another model, this model has none and would be loaded with it; "
                "save into another folder, or delete that file"
            )


def save_parts(model: Any, folder: Path, include_histories: bool) -> None:
    """Write what belongs to a model apart from its weights: code, requirements, generation settings, catalogue, users, card."""
    for name, code in flat_code(type(model)).items():
        (folder / name).write_bytes(code)
    (folder / REQUIREMENTS_FILE).write_text("\n".join([*REQUIREMENTS, ""]), encoding="utf-8")
    if not model.can_generate():
        model.generation_config.save_pretrained(folder)
    if model.catalogue is not None:
        model.catalogue.save(folder)
    if model.users is not None:
        (model.users if include_histories else model.users.without_histories()).save(folder)
    if model.linear_parts is not None:
        model.linear_parts.save(folder)
    if model.card is not None:
        (folder / CARD_FILE).write_text(model.card, encoding="utf-8")
    for picture, name in ((model.training_curves, CURVES_FILE), (model.comparison, COMPARISON_FILE)):
        if picture is not None:
            (folder / name).write_bytes(picture)
    if model.data_card is not None:
        (folder / DATA_CARD_FILE).write_text(model.data_card, encoding="utf-8")


def replace_files(source: Path, target: Path) -> None:
    """Move the files of a folder that was just written into the folder of a model, in place of those of the same names.

    Weights of an earlier save that the new one does not have, such as further shards or linear parts, are removed.
    """
    new = {file.name for file in source.iterdir()}
    files = sorted(source.rglob("*"))
    for file in files:
        if file.suffix == ".safetensors" and (config := file.parent / "config.json").exists():
            shutil.copymode(config, file)  # safetensors writes files that only their owner may read
    for file in files:
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(exist_ok=True)
        else:
            file.replace(place)
    if LINEAR_PARTS_FILE not in new:
        (target / LINEAR_PARTS_FILE).unlink(missing_ok=True)
    for stem in {_SHARD.sub("", name) for name in new if name.endswith(".safetensors")}:
        index = f"model.safetensors.index{stem.removeprefix('model')}.json"
        for file in target.iterdir():
            old = file.name == index or (file.suffix == ".safetensors" and _SHARD.sub("", file.name) == stem)
            if old and file.name not in new:
                file.unlink()


def flat_code(model_class: type) -> dict[str, bytes]:
    """Return the Python files that a saved folder needs to load a class without this package.

    They are the closure of relative imports, as transformers computes it when it loads code from a folder. transformers looks
    for every module in the folder of the one that imports it, so the imports are flattened: `from ..core.catalogue import
    IdMap` is written as `from .catalogue import IdMap`. Code that was itself loaded from a saved folder stays the same.

    Args:
        model_class: a class whose module imports the others of ours by relative imports only.

    Returns:
        Content by file name.

    Raises:
        InputError: two modules of one name, which cannot lie in one folder.
    """
    waiting, found = [Path(inspect.getfile(model_class)).absolute()], dict[str, Path]()
    while waiting:
        file = waiting.pop()
        if found.setdefault(file.name, file) != file:
            raise InputError(f"{file} and {found[file.name]} have one name and cannot lie in one saved folder; rename one")
        imported = [_imported_file(file, name) for name in get_relative_imports(file)]
        waiting += [path for path in imported if path not in found.values()]
    return {name: _FLATTENED.sub(rb"\1.\2\3", found[name].read_bytes()) for name in sorted(found)}


_SHARD = re.compile(r"(-\d{5}-of-\d{5})?\.safetensors$")
_FLATTENED = re.compile(rb"^(\s*from )\.+(?:\w+\.)*(\w+)( import)", re.MULTILINE)


def _imported_file(file: Path, name: str) -> Path:
    """Return the file of a relative import: `name` is what follows the first dot, as transformers reads it."""
    folder = file.parent
    while name.startswith("."):
        folder, name = folder.parent, name[1:]
    return folder.joinpath(*name.split(".")).with_suffix(".py")


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except ValueError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error}); copy or download the folder again") from error


def _read_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


def _read_generation_config(path: str) -> GenerationConfig:
    settings = read_json(path)
    try:
        return GenerationConfig.from_dict(settings)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy or download the folder again") from error


def files_to_upload(files: Mapping[str, Path], name: str, include_histories: bool) -> dict[str, Path | bytes]:
    """Return what goes to the Hub of some files of a saved folder: path in the repository -> file, or its content.

    Args:
        files: path in the repository -> file.
        name: of the repository, which the card's example loads.
        include_histories: False leaves the histories out of `users.parquet`.
    """
    found: dict[str, Path | bytes] = dict(sorted(files.items()))
    if CARD_FILE in files:
        card = _read_text(str(files[CARD_FILE]))
        found[CARD_FILE] = _NAMED.sub(lambda _: named_model(name), card, count=1).encode()
    if USERS_FILE in files and not include_histories:
        users = KnownUsers.load(files[USERS_FILE])
        if users.has_histories:
            with TemporaryDirectory() as place:
                users.without_histories().save(place)
                found[USERS_FILE] = Path(place, USERS_FILE).read_bytes()
    return found


def upload(
    folder: Path,
    repo_id: str,
    *,
    files: Mapping[str, Path] | None = None,
    more: Callable[[str], Mapping[str, bytes]] | None = None,
    include_histories: bool = False,
    private: bool | None = True,
    token: bool | str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a saved folder to the Hub, into a repository that is made if there is none. All ways to push a model end here.

    Weights of an earlier upload that this one does not have, such as further shards, are deleted from the repository.

    Args:
        folder: the saved folder.
        files: path in the repository -> file; None takes all files of the folder.
        more: from the full name of the repository to further content, in place of files of these paths: path -> content.
        include_histories: whether `users.parquet` keeps the users' histories.
        private: visibility of a repository that is made; None means the owner's default.

    Returns:
        The address of the commit.

    Raises:
        InputError: `repo_id` is no name, or names a public repository and histories are included without `private=False`.
        RunError: the Hub refuses the upload or cannot be reached.
    """
    if files is None:
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    secret = ""
    if include_histories and USERS_FILE in files:
        users = KnownUsers.load(files[USERS_FILE])
        secret = f"the histories of {len(users)} users (include_histories=True)" if users.has_histories else ""
    given = files

    def contents(name: str) -> dict[str, Path | bytes]:
        return {**files_to_upload(given, name, include_histories), **({} if more is None else more(name))}

    return commit_files(
        repo_id,
        contents,
        private=private,
        secret=secret,
        stale=is_weight_file,
        token=token,
        message=commit_message or "Upload CLLM4Rec model",
        description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def is_weight_file(path: str) -> bool:
    """Check whether a file of a saved folder holds weights, or says which file holds which.

    Example:
        >>> [is_weight_file(name) for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json")]
        [True, True, False]
    """
    return path.endswith((".safetensors", ".safetensors.index.json"))


def named_model(name: str) -> str:
    """Return the line of a card's example that names the model; an upload puts the repository in its place."""
    return f"name = {json.dumps(name, ensure_ascii=False)}  # this model's folder, or its name on the Hub"


_NAMED = re.compile(r'^name = ".*"  # this model\'s folder, or its name on the Hub$', re.MULTILINE)


__all__ = [
    "CARD_FILE",
    "COMPARISON_FILE",
    "CURVES_FILE",
    "DATA_CARD_FILE",
    "HUB_ARGUMENTS",
    "UPLOAD_ARGUMENTS",
    "check_parts",
    "check_tables",
    "check_target",
    "files_to_upload",
    "flat_code",
    "is_weight_file",
    "load_parts",
    "named_model",
    "replace_files",
    "save_parts",
    "upload",
]
