"""Whether the order of a history says which item comes next."""

from __future__ import annotations

import warnings

from modeling_cllm4rec.corpora.data_folder import RecommendationData

ORDERED_SPLITS = ("leave-one-out", "temporal")
"""Splits whose validation and test items come after the training items of their user."""


class UnorderedHistoriesWarning(UserWarning):
    """A model reads the order of histories in data whose order means nothing."""


def is_ordered(data: RecommendationData) -> bool:
    """Return whether held-out items come after the history of their user.

    That is so in splits by time or position. In a random split a held-out item may lie anywhere between those of the history. A
    given split counts as ordered if the interactions have timestamps; without them the rows of a user are often sorted by id.

    Example:
        >>> is_ordered(RecommendationData.load("data/beauty"))  # doctest: +SKIP
        False
    """
    split = data.info["protocol"]["split"]
    return split in ORDERED_SPLITS or (split == "given" and "timestamp" in data.interactions.column_names)


def warn_if_unordered(data: RecommendationData, remark: str) -> None:
    """Warn where the order of histories means nothing.

    Args:
        data: the data folder.
        remark: what reads the order, and the way out.

    Warns:
        UnorderedHistoriesWarning: the data is not ordered, see `is_ordered`.
    """
    if not is_ordered(data):
        line = data.info["protocol"]["line"]
        message = f"the order of histories means nothing in {data.folder.name} ({line}): {remark}"
        warnings.warn(message, UnorderedHistoriesWarning, stacklevel=3)
