"""Settings of an LC-Rec model's search: how items are scored, and the beams.

This file is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..core.questions import QuestionError, check_whole_number
from .configuration_lcrec import LCRecConfig

Scoring = Literal["beam", "all", "head"]
"""How items are found: beam search, the exact best items, or the item head."""
Beams = int | Sequence[int]
"""Beams of a search: of all levels, or a list with those of each level."""


def scoring_of(config: LCRecConfig, num_beams: Beams | None = None, scoring: Scoring | None = None) -> Scoring:
    """Return how items are found: as asked, or as the configuration says; beams belong to a search.

    Example:
        >>> scoring_of(LCRecConfig(scoring="all")), scoring_of(LCRecConfig(scoring="all"), num_beams=20)
        ('all', 'beam')
    """
    if scoring is not None:
        return scoring
    configured: Scoring = config.scoring
    return configured if num_beams is None else "beam"


def check_search_settings(config: LCRecConfig, k: int, num_beams: Beams | None = None, scoring: Scoring | None = None) -> None:
    """Check the settings of a search for k items.

    Raises:
        QuestionError: a wrong value, fewer beams than k, or a list of beams for another number of levels.
    """
    scoring = scoring_of(config, num_beams, scoring)
    if scoring not in ("beam", "all", "head"):
        raise QuestionError("scoring", scoring, "'beam', 'all' and 'head'", "choose one of them")
    if scoring == "head" and not config.item_head:
        raise QuestionError(
            "scoring", scoring, "'beam' and 'all' with this model, which has no item head", "align with item_head"
        )
    if isinstance(num_beams, (list, tuple)):
        if len(num_beams) != config.num_levels:
            levels = f"a whole number, or a list of {config.num_levels}, one for each level of a semantic ID"
            raise QuestionError("num_beams", num_beams, levels, "choose another num_beams")
        for level, number in enumerate(num_beams):
            check_whole_number(f"num_beams[{level}]", number)
    elif num_beams is not None:
        check_whole_number("num_beams", num_beams)
    if scoring != "beam":
        if num_beams is not None:
            raise QuestionError(
                "num_beams", num_beams, f"none with scoring={scoring!r}, which has no beams", "leave one of them out"
            )
        return
    beams: Beams = config.search_beams if num_beams is None else num_beams
    most = beams[-1] if isinstance(beams, Sequence) else beams
    if k > most:
        levels = f" of the last of {config.num_levels} levels" if isinstance(beams, Sequence) else ""
        allowed = f"1 to {most}, the number of beams of the search{levels}"
        raise QuestionError("k", k, allowed, f"give num_beams={k} or more, or a smaller k")


def search_words(config: LCRecConfig, num_beams: Beams | None = None, scoring: Scoring | None = None) -> str:
    """Return in words how a search with these settings decodes.

    Example:
        >>> search_words(LCRecConfig(), num_beams=50)
        'constrained search with 50 beams'
        >>> search_words(LCRecConfig(num_levels=3), num_beams=[50, 30, 20])
        'constrained search with 50, 30, 20 beams'
    """
    match scoring_of(config, num_beams, scoring):
        case "head":
            return "all items scored by the item head"
        case "all":
            return "all indices scored"
    beams = config.search_beams if num_beams is None else num_beams
    return f"constrained search with {', '.join(map(str, beams)) if isinstance(beams, Sequence) else beams} beams"


__all__ = ["Beams", "Scoring", "check_search_settings", "scoring_of", "search_words"]
