"""Descriptions of how the settings of a row were chosen, and of the budget, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modeling_cllm4rec.baselines import WEIGHTS, get_baseline, members
from modeling_cllm4rec.core.errors import InputError

TUNED_KEYS, CHOSEN_KEYS = ("trials", "metric", "fixed"), ("data", "tried")
"""Allowed keys of `tuned` and `chosen` in the YAML file of a benchmark."""
NOTHING = "nothing to tune"
EQUAL = "all 1, not tuned on this data; add --tune N"
DEFAULTS = "defaults, not tuned on this data; add --tune N"
OWN = "set in the YAML file, without a record of a search"
RECIPE = "recipe of the YAML file, without a record of how it was chosen"
UNKNOWN = "unknown"


def tuned_in_words(place: str, value: Mapping[str, Any], data: str = "") -> str:
    """Describe the value of `tuned:` in the settings of a baseline.

    Args:
        place: place in the file, for errors.
        value: `trials`, `metric` and, if some settings were not drawn, `fixed`, their names.
        data: name of the data with the validation split of the search.

    Raises:
        InputError: a key is missing, or a value is not allowed.

    >>> tuned_in_words("a.yaml", {"trials": 6, "metric": "recall@20", "fixed": ["iterations"]}, "beauty")
    'tuned on validation of beauty, 6 trials by recall@20 (iterations fixed)'
    """
    _needs(place, value, "trials", "metric")
    fixed = value.get("fixed", [])
    if not isinstance(fixed, list):
        raise InputError(f"{place}: fixed is {fixed!r}; it must be a list of settings")
    words = f"tuned on validation{f' of {data}' if data else ''}, {_count(place, 'trials', value['trials'])} trials"
    return f"{words} by {value['metric']}" + (f" ({', '.join(fixed)} fixed)" if fixed else "")


def chosen_in_words(place: str, value: Mapping[str, Any]) -> str:
    """Describe the value of `chosen:` of a system's recipe.

    Args:
        place: place in the file, for errors.
        value: `data`, the data with the validation split of the choice, and `tried`, the number of compared configurations.

    Raises:
        InputError: a key is missing, or a value is not allowed.

    >>> chosen_in_words("a.yaml", {"data": "beauty", "tried": 13})
    'recipe, chosen on validation of beauty among 13 configurations'
    """
    _needs(place, value, "data")
    tried = f" among {_count(place, 'tried', value['tried'])} configurations" if "tried" in value else ""
    return f"recipe, chosen on validation of {value['data']}{tried}"


def of_baseline(name: str, chosen: Mapping[str, str]) -> str:
    """Describe how the settings of a baseline were chosen; of several joined by +, those of each and the weights.

    >>> of_baseline("popularity+ease", {"ease": "tuned"})
    'popularity: nothing to tune; ease: tuned; weights: all 1, not tuned on this data; add --tune N'
    """
    if len(parts := members(name)) > 1:
        of_parts = [f"{part}: {of_baseline(part, chosen)}" for part in parts]
        return "; ".join([*of_parts, f"{WEIGHTS}: {chosen.get(name, EQUAL)}"])
    return chosen.get(name, DEFAULTS) if get_baseline(name).space else NOTHING


def _needs(place: str, value: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if name not in value:
            raise InputError(f"{place}: the key {name!r} is missing; add it, or remove {place.rpartition(': ')[2]!r}")


def _count(place: str, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{place}: {name} is {value!r}; it must be an integer, 1 or more")
    return value
