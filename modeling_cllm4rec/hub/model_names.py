"""Whether there is a model of a name, found out without torch and transformers, whose imports take seconds."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

from modeling_cllm4rec.core.errors import MissingFileError, nearest

try:  # the client that huggingface_hub brings
    from httpx2 import HTTPError
except ImportError:  # huggingface_hub 1
    from httpx import HTTPError  # type: ignore[import-not-found, assignment, no-redef, unused-ignore]

__all__ = ["PROBE_SECONDS", "check_name", "find_model", "hub_problem", "is_cached"]

CONFIG_NAME = "config.json"
PROBE_SECONDS = 10.0
"""How long the Hub may take to answer. The libraries would ask an unreachable one for more than a minute."""


def check_name(name: str | Path, argument: str = "model") -> None:
    """Raise what `find_model` would, for a command that loads the model later; the Hub is not asked for a name in the cache.

    Loading asks it: on a machine without a network both would wait for the answer.

    Example:
        >>> check_name(".")
    """
    if not is_cached(str(name)):
        find_model(name, argument)


def find_model(name: str | Path, argument: str = "model") -> Exception | None:
    """Find a model: a folder, else a name on the Hub or in its cache.

    Args:
        name: folder or name on the Hub.
        argument: the caller's argument that holds the name, for messages.

    Returns:
        Why the Hub has no model of this name, where the cache has one; None where there is a folder or the Hub has it.

    Raises:
        MissingFileError: there is none. The name of a missing path is not looked up on the Hub.

    Example:
        >>> find_model("/no/such/run")
        Traceback (most recent call last):
        modeling_cllm4rec.core.errors.MissingFileError: model: /no/such/run is no folder with a model: there is no such folder...
    """
    path, name = Path(name), str(name)
    if path.is_dir():
        return None
    if name.startswith((".", "/", "~", "\\")) or len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir()):
        siblings = [one.name for one in path.parent.iterdir() if one.is_dir()] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings, "name the folder of a run, or a model on the Hub")
        raise MissingFileError(f"{argument}: {name} is no folder with a model: there is no such folder; {hint}")
    problem = hub_problem(name)
    if problem is not None and not is_cached(name):
        reason = " ".join(str(problem).split())
        raise MissingFileError(
            f"{argument}: {name} is no folder with a model and could not be read from the Hub ({reason})"
        ) from problem
    return problem


def hub_problem(name: str) -> Exception | None:
    """Ask the Hub once, for `PROBE_SECONDS` at most, and return why it has no model of this name; None if it has one."""
    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG_NAME), timeout=PROBE_SECONDS)
    except (OSError, ValueError, HTTPError) as error:
        return error
    return None


def is_cached(name: str) -> bool:
    """Return whether the cache of the Hub has the configuration of a model of this name."""
    try:
        return isinstance(try_to_load_from_cache(name, CONFIG_NAME), str)
    except ValueError:  # no name of a repository
        return False
