"""Load a recommender of any system from a folder or from the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import CONFIG_NAME

import modeling_cllm4rec as _registers_the_model_types  # noqa: F401
from modeling_cllm4rec.core.errors import InputError, MissingFileError, nearest
from modeling_cllm4rec.core.recommender import RecommenderModel

try:  # the client that huggingface_hub brings
    from httpx2 import HTTPError
except ImportError:  # huggingface_hub 1
    from httpx import HTTPError  # type: ignore[import-not-found, assignment, no-redef, unused-ignore]

__all__ = ["load_recommender", "load_tokenizer"]

PROBE_SECONDS = 10.0


def load_recommender(name: str | Path, argument: str = "model") -> RecommenderModel:
    """Load the recommender of a folder or of a name on the Hub.

    A name that can only be a path is not looked up on the Hub. The Hub gets one request first, because the libraries would retry
    an unreachable Hub for about a minute. If it fails, the model is loaded from the cache.

    Args:
        name: folder or name on the Hub.
        argument: the caller's argument that holds the name, for messages.

    Raises:
        MissingFileError: there is none.
        InputError: it is a model that does not recommend, or its weights or settings cannot be read.
    """
    unreached = None if Path(name).is_dir() else _hub_unreached(str(name), argument)
    from_cache = {"local_files_only": True, "adapter_kwargs": {"local_files_only": True}} if unreached else {}
    try:
        AutoConfig.from_pretrained(name, local_files_only=bool(unreached))
    except ValueError as error:  # by itself: a ValueError from the model's own code is a programming error
        raise InputError(
            f"{argument}: {name} holds no model that can be loaded ({' '.join(str(error).split())[:200]}); name the folder of a "
            "finished run, or a model on the Hub"
        ) from error
    except OSError:  # reported below, with the weights
        pass
    try:
        model = AutoModel.from_pretrained(name, **from_cache)
    except OSError as error:
        raise MissingFileError(
            f"{argument}: {name} is no folder with a model and could not be read from the Hub ({unreached or error})"
        ) from error
    except SafetensorError as error:
        raise InputError(
            f"{argument}: the weights in {name} cannot be read ({error}): a file is cut off or no safetensors file; copy or "
            "download the folder again"
        ) from error
    if not isinstance(model, RecommenderModel):
        raise InputError(
            f"{argument}: {name} holds a {type(model).__name__}, which does not recommend; name a finetuned or aligned model"
        )
    return model


def load_tokenizer(name: str | Path, argument: str = "model") -> Any:
    """Load the tokenizer of a saved model.

    Args:
        name: folder or name on the Hub.
        argument: the caller's argument that holds the name, for messages.

    Raises:
        InputError: there is none, or its files cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{argument}: the tokenizer in {name} cannot be read ({' '.join(str(error).split())[:200]}); copy or download the "
            "folder again"
        ) from error


def _hub_unreached(name: str, argument: str) -> Exception | None:
    """Return why the Hub has no model of this name; None if it has one.

    Raises:
        MissingFileError: the name can only be a path, or begins with a folder that is here.
    """
    path = Path(name)
    if name.startswith((".", "/", "~", "\\")) or len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir()):
        siblings = [one.name for one in path.parent.iterdir() if one.is_dir()] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings, "name the folder of a run, or a model on the Hub")
        raise MissingFileError(f"{argument}: {name} is no folder with a model: there is no such folder; {hint}")
    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG_NAME), timeout=PROBE_SECONDS)
    except (OSError, ValueError, HTTPError) as error:
        return error
    return None
