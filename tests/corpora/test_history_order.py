"""Data whose histories have an order, and the warning where they have none."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.history_order import UnorderedHistoriesWarning, is_ordered, warn_if_unordered


@pytest.mark.parametrize(
    ("split", "with_times", "ordered"),
    [
        ("leave-one-out", False, True),
        ("temporal", True, True),
        ("given", True, True),
        ("given", False, False),
        ("random", True, False),
        ("random", False, False),
    ],
)
def test_order(data: RecommendationData, recwarn: pytest.WarningsRecorder, split: str, with_times: bool, ordered: bool) -> None:
    interactions = data.interactions.select(["user_index", "item_index", "split"])
    if with_times:
        interactions = interactions.append_column("timestamp", pa.array(range(len(interactions)), pa.int64()))
    protocol = {**data.info["protocol"], "split": split}
    other = dataclasses.replace(data, interactions=interactions, info={**data.info, "protocol": protocol})
    assert is_ordered(other) == ordered
    warn_if_unordered(other, "a model reads it")
    messages = [str(one.message) for one in recwarn.list if one.category is UnorderedHistoriesWarning]
    line = data.info["protocol"]["line"]
    expected = f"the order of histories means nothing in {data.folder.name} ({line}): a model reads it"
    assert messages == ([] if ordered else [expected])
