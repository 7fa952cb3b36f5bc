"""The folder of a model: weights, catalogue, users, generation settings, card and code, saved, loaded and uploaded together.

This file stands alone: it is copied into every saved folder.
"""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import GENERATION_CONFIG_NAME, cached_file
from transformers.utils.hub import resolve_revision

from .catalogue import CATALOGUE_FILE, USERS_FILE, Catalogue, KnownUsers
from .errors import ExistingFileError, InputError
from .handler import EndpointHandler  # noqa: F401 (transformers copies what is imported: so the file goes along)

CARD_FILE, CURVES_FILE, REQUIREMENTS_FILE = "README.md", "training_curves.png", "requirements.txt"
REQUIREMENTS = ("pandas>=2.3", "pyarrow>=24.0", "safetensors>=0.8", "torch>=2.13", "transformers>=5.23,<6")
"""What Inference Endpoints install before they start `handler.py`: their images bring other versions along."""
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_UPLOAD_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr")


class SavedFolderModel(PreTrainedModel):
    """A model whose folder holds more than weights.

    Attributes:
        catalogue: the items that the model recommends, None where they have no external ids.
        users: the users who have an ID token, None where they have no external ids.
        card: text of the model card, None before there is one.
        training_curves: the picture (PNG) that the card shows, None where none was drawn.
    """

    catalogue: Catalogue | None = None
    users: KnownUsers | None = None
    card: str | None = None
    training_curves: bytes | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`, with the folder's catalogue, users and card.

        Raises:
            InputError: weights that are missing, cut off or of another shape, or a catalogue of another checkpoint. Nothing
                is left at random silently.
        """
        where = {name: kwargs[name] for name in ("token", "local_files_only", "cache_dir") if name in kwargs}
        revision = resolve_revision(pretrained_model_name_or_path, kwargs.get("revision"), **where)
        if revision is not None:  # one commit, from which all files come
            kwargs["revision"] = revision
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # they are refused below, by name
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs)
        except (SafetensorError, EOFError) as error:
            raise InputError(
                f"the weights in {pretrained_model_name_or_path} cannot be read ({error}): the file is cut off or no "
                "safetensors file; copy or download the folder again"
            ) from error
        model, info = loaded
        broken = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
        if broken:
            raise InputError(
                f"{pretrained_model_name_or_path} lacks weights of this model or has them in another shape: {broken[:5]} "
                f"({len(broken)} in all); it is no complete CLLM4Rec checkpoint"
            )
        parts: list[tuple[str, str, Callable[[str], Any]]] = [
            ("catalogue", CATALOGUE_FILE, Catalogue.load),
            ("users", USERS_FILE, KnownUsers.load),
            ("card", CARD_FILE, _read_text),
            ("training_curves", CURVES_FILE, _read_bytes),
        ]
        if not model.can_generate():
            parts.append(("generation_config", GENERATION_CONFIG_NAME, _read_generation_config))
        for name, file, load in parts:
            path = cached_file(pretrained_model_name_or_path, file, **hub, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                setattr(model, name, load(path))
        model.check_catalogue()
        return (model, info) if wants_info else model

    def check_catalogue(self) -> None:
        """Raise InputError if catalogue or users are not those of the weights."""
        config, catalogue, users = self.config, self.catalogue, self.users
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
        last = -1 if users is None or users.items is None else int(np.max(users.items, initial=-1))
        if last >= config.num_items:
            raise InputError(
                f"{USERS_FILE} has histories with item {last}, the catalogue ends at {config.num_items - 1}: "
                "it belongs to another checkpoint"
            )

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, *, include_histories: bool = True, **kwargs: Any
    ) -> None:
        """As `PreTrainedModel.save_pretrained`, and catalogue, users, card, code and what it requires beside the weights.

        Args:
            include_histories: False leaves the users' histories out, for privacy; they are then given at the call.
        """
        self.check_catalogue()
        for part, file in ((self.catalogue, CATALOGUE_FILE), (self.users, USERS_FILE)):
            if part is None and (Path(save_directory) / file).exists():
                raise ExistingFileError(
                    f"{save_directory} holds a {file} of another model, this model has none and would be loaded with it; "
                    "save into another folder, or delete that file"
                )
        push = kwargs.pop("push_to_hub", False)
        upload = {name: kwargs.pop(name) for name in _UPLOAD_ARGUMENTS if name in kwargs}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if not is_main_process:
            return
        for name, code in flat_code(type(self)).items():
            (Path(save_directory) / name).write_bytes(code)
        (Path(save_directory) / REQUIREMENTS_FILE).write_text("\n".join([*REQUIREMENTS, ""]), encoding="utf-8")
        if not self.can_generate():
            self.generation_config.save_pretrained(save_directory)
        if self.catalogue is not None:
            self.catalogue.save(save_directory)
        if self.users is not None:
            (self.users if include_histories else self.users.without_histories()).save(save_directory)
        if self.card is not None:
            (Path(save_directory) / CARD_FILE).write_text(self.card, encoding="utf-8")
        if self.training_curves is not None:
            (Path(save_directory) / CURVES_FILE).write_bytes(self.training_curves)
        if push:
            _upload(save_directory, **{"repo_id": Path(save_directory).name, **upload}, token=kwargs.get("token"))

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        include_histories: bool = True,
    ) -> str:
        """Upload what `save_pretrained` writes, the generated card included.

        Args:
            repo_id: `name` or `organization/name`; made if there is no such repository.
            private: visibility of a repository that is made; None means the owner's default.
            revision: branch to commit to; made from the main one if there is no such branch.
            create_pr: propose the commit as a pull request.
            include_histories: as in `save_pretrained`.

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, include_histories=include_histories, max_shard_size=max_shard_size)
            return _upload(
                folder,
                repo_id,
                token=token,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                revision=revision,
                create_pr=create_pr,
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to register: every folder is saved with its code and the whole `auto_map`."""


def flat_code(model_class: type) -> dict[str, bytes]:
    """Return the Python files that a saved folder needs to load a class without this package.

    They are the closure of relative imports, as transformers computes it when it loads code from a folder. transformers looks
    for every module beside the one that imports it, so the imports are flattened: `from ..core.catalogue import IdMap` is
    written as `from .catalogue import IdMap`. On code that was itself loaded from a saved folder this changes nothing.

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


_FLATTENED = re.compile(rb"^(\s*from )\.+(?:\w+\.)*(\w+)( import)", re.MULTILINE)


def _imported_file(file: Path, name: str) -> Path:
    """Return the file of a relative import: `name` is what follows the first dot, as transformers reads it."""
    folder = file.parent
    while name.startswith("."):
        folder, name = folder.parent, name[1:]
    return folder.joinpath(*name.split(".")).with_suffix(".py")


def _read_text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _read_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


def _read_generation_config(path: str) -> GenerationConfig:
    return GenerationConfig.from_dict(json.loads(_read_text(path)))


def _upload(
    folder: Any,
    repo_id: str,
    *,
    token: bool | str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return str(
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload CLLM4Rec model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    )


__all__ = ["CARD_FILE", "CURVES_FILE", "SavedFolderModel", "flat_code"]
