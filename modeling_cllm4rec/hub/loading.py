"""Load a recommender of any system from a folder or from the Hub."""

from __future__ import annotations

import difflib
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from transformers import AutoModel
from transformers.utils import CONFIG_NAME

import modeling_cllm4rec as _registers_the_model_types  # noqa: F401
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.recommender import RecommenderModel

try:  # the client that huggingface_hub brings
    from httpx2 import HTTPError
except ImportError:  # huggingface_hub 1
    from httpx import HTTPError  # type: ignore[import-not-found, assignment, no-redef, unused-ignore]

__all__ = ["load_recommender"]

PROBE_SECONDS = 10.0


def load_recommender(name: str | Path) -> RecommenderModel:
    """Load the recommender of a folder or of a name on the Hub.

    A name that can only be a path is not looked up on the Hub. The Hub gets one request first, because the libraries would retry
    an unreachable Hub for about a minute. If it fails, the model is loaded from the cache.

    Raises:
        MissingFileError: there is none.
        InputError: it is a model that does not recommend.
    """
    unreached = None if Path(name).is_dir() else _hub_unreached(str(name))
    from_cache = {"local_files_only": True, "adapter_kwargs": {"local_files_only": True}} if unreached else {}
    try:
        model = AutoModel.from_pretrained(name, **from_cache)
    except OSError as error:
        raise MissingFileError(
            f"--model: {name} is no folder with a model and could not be read from the Hub ({unreached or error})"
        ) from error
    if not isinstance(model, RecommenderModel):
        raise InputError(
            f"--model: {name} holds a {type(model).__name__}, which does not recommend; name a finetuned or aligned model"
        )
    return model


def _hub_unreached(name: str) -> Exception | None:
    """Return why the Hub has no model of this name; None if it has one.

    Raises:
        MissingFileError: the name can only be a path, or begins with a folder that is here.
    """
    path = Path(name)
    if name.startswith((".", "/", "~", "\\")) or len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir()):
        siblings = [one.name for one in path.parent.iterdir() if one.is_dir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "name the folder of a run, or a model on the Hub"
        raise MissingFileError(f"--model: {name} is no folder with a model: there is no such folder; {hint}")
    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG_NAME), timeout=PROBE_SECONDS)
    except (OSError, ValueError, HTTPError) as error:
        return error
    return None
