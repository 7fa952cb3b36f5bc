"""Load a recommender of any system from a folder or from the Hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import CONFIG_NAME

import modeling_cllm4rec as _registers_the_model_types  # noqa: F401
from modeling_cllm4rec.core.errors import CLLM4RecError, InputError, MissingFileError
from modeling_cllm4rec.core.folder_checks import check_finite, stored_weights
from modeling_cllm4rec.core.json_objects import read_json
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.hub.devices import check_device_map, choose_device, choose_dtype, describe_placement
from modeling_cllm4rec.hub.model_names import find_model, hub_problem, is_cached

__all__ = ["check_folder", "check_on_hub", "load_recommender", "load_tokenizer"]

ADAPTER = "adapter_config.json"
logger = logging.getLogger(__name__)


def load_recommender(
    name: str | Path,
    argument: str = "model",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> RecommenderModel:
    """Load the recommender of a folder or of a name on the Hub, on the accelerator if there is one.

    One line of the log says where it computes. A name that can only be a path is not looked up on the Hub. The Hub gets one
    request first, because the libraries would retry an unreachable Hub for about a minute. If it fails, the model is loaded from
    the cache.

    Args:
        name: folder or name on the Hub.
        argument: the caller's argument that holds the name, for messages.
        device: device to compute on (`cpu`, `cuda`, `cuda:1`, ...); None chooses the accelerator if there is one, else the CPU.
        dtype: data type of the weights (`float32`, `bfloat16`, `float16`); None keeps that of the saved model.
        attn_implementation: attention of the backbone (`sdpa`, `eager`, `flash_attention_2`, ...); None keeps the default.
        device_map: plan that spreads a large model over devices, in place of `device`; see `devices.check_device_map`.

    Raises:
        MissingFileError: there is none.
        InputError: it is a model that does not recommend, its weights or settings cannot be read, this machine has no such
            device, or the model refuses the attention or the map.

    Example:
        >>> model = load_recommender("runs/mine", device="cuda", dtype="bfloat16")  # doctest: +SKIP
    """
    plan = check_device_map(device_map, device)
    place = choose_device(device) if plan is None else None
    given = {"dtype": choose_dtype(dtype), "attn_implementation": attn_implementation, "device_map": plan}
    model = _read_model(name, argument, {key: value for key, value in given.items() if value is not None})
    if place is not None:
        model.to(place)  # type: ignore[arg-type]  # the wrapper of transformers is typed wrongly
    logger.info("%s: on %s", name, describe_placement(model))
    return model


def check_folder(name: str | Path, argument: str = "model") -> RecommenderModel:
    """Check that the model of a folder can be loaded and its tokenizer fits, in memory for one of its weights.

    Args:
        name: the folder.
        argument: the caller's argument that holds the name, for messages.

    Returns:
        The model with all its parts, but without weights.

    Raises:
        MissingFileError, InputError: as `load_recommender` and `load_tokenizer`.

    Example:
        >>> check_folder("runs/mine").num_items  # doctest: +SKIP
        12101
    """
    model = _read_model(name, argument, {"device_map": "meta"})
    check_finite(name, stored_weights(name, {}))
    model.check_tokenizer(load_tokenizer(name, argument))
    return model


def _read_model(name: str | Path, argument: str, given: dict[str, Any]) -> RecommenderModel:
    """Read the model of a folder or of a name on the Hub.

    Args:
        given: further arguments of `from_pretrained`, as the caller named them.

    Raises:
        MissingFileError, InputError: as `load_recommender`.
    """
    unreached = find_model(name, argument)
    from_cache = {"local_files_only": True, "adapter_kwargs": {"local_files_only": True}} if unreached else {}
    if Path(name, CONFIG_NAME).is_file():
        read_json(Path(name, CONFIG_NAME))
    if Path(name, ADAPTER).is_file():  # transformers would load what it names, in place of the folder's own weights
        raise InputError(
            f"{argument}: {name} holds an adapter ({ADAPTER}), and a recommender is saved whole; delete that file, or merge the "
            "adapter into its model first (merge_and_unload of peft)"
        )
    try:
        AutoConfig.from_pretrained(name, local_files_only=bool(unreached), trust_remote_code=False)
    except OSError:  # reported below, with the weights
        pass
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # its fields are wrong: no programming error
        reason = " ".join(str(error).split())[:300]
        if "trust_remote_code" in str(error):  # the advice to run the code of an unknown folder is none
            reason = "the model_type in its config.json is none of this package's"
        if Path(name).is_dir() and not Path(name, CONFIG_NAME).exists():
            reason = f"there is no {CONFIG_NAME}"
        raise InputError(
            f"{argument}: {name} holds no model that can be loaded ({reason}); name the folder of a finished run, or a model on "
            "the Hub"
        ) from error
    try:
        model = AutoModel.from_pretrained(name, trust_remote_code=False, **from_cache, **given)
    except CLLM4RecError:
        raise
    except SafetensorError as error:  # of a model that does not recommend
        raise InputError(
            f"{argument}: the weights in {name} cannot be read ({error}): a file is cut off or no safetensors file; copy or "
            "download the folder again"
        ) from error
    except (ImportError, ValueError) as error:
        asked = [key for key in ("attn_implementation", "device_map") if key in given]
        if not asked:
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{asked[0]} is {given[asked[0]]!r}; it cannot be used with the model in {name}: {reason}") from error
    except OSError as error:
        raise MissingFileError(
            f"{argument}: {name} is no folder with a model and could not be read from the Hub ({unreached or error})"
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
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # without it, transformers asks at the terminal
    except Exception as error:  # the tokenizers library raises `Exception` itself
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"{argument}: the tokenizer in {name} cannot be read ({reason}); copy or download the folder again"
        ) from error


def check_on_hub(name: str, argument: str) -> None:
    """Check within seconds that a language model is in a folder, in the cache, or on a Hub that answers.

    The libraries would ask an unreachable Hub again and again, for more than a minute.

    Args:
        name: folder or name on the Hub.
        argument: the caller's argument that holds the name, for the message.

    Raises:
        MissingFileError: it is in none of these places.
    """
    is_path = name.startswith((".", "/", "~", "\\")) or len(Path(name).parts) > 2
    if Path(name).is_dir() or is_path or constants.HF_HUB_OFFLINE:  # reading fails at once where there is none
        return
    if is_cached(name):
        return
    problem = hub_problem(name)
    if problem is not None:
        reason = " ".join(str(problem).split())[:200]
        raise MissingFileError(
            f"{argument}: {name} is no folder with a language model and could not be read from the Hub ({reason}); name a folder "
            "that holds one, or a model of the Hub that this machine can reach"
        ) from problem
