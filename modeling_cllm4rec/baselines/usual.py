"""The baselines that a model is compared with at the end of its training, where none are named."""

from __future__ import annotations

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import ITEM_TEXTS

LARGEST_EASE = 20_000
"""Items up to which EASE is fitted, as a teacher and for comparisons; its matrix takes 8 bytes a pair of items."""


def usual_baselines(data: RecommendationData) -> tuple[str, ...]:
    """Return popularity, and EASE of up to `LARGEST_EASE` items, with neighbours by text where items have texts.

    Example:
        >>> usual_baselines(data)  # doctest: +SKIP
        ('popularity', 'ease+textknn')
    """
    if data.num_items > LARGEST_EASE:
        return ("popularity",)
    has_texts = any(column in data.items.column_names for column in ITEM_TEXTS)
    return ("popularity", "ease+textknn" if has_texts else "ease")


__all__ = ["LARGEST_EASE", "usual_baselines"]
