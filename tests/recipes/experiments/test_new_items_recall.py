"""Recall of cold items, checked against hand-computed values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cold_items import HeldOutItems
from new_items_recall import baselines_for, new_items_recall, new_items_table

from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.corpora.preparation import prepare_tables


@pytest.fixture
def held_out(tmp_path: Path) -> HeldOutItems:
    """Old items a, b, c; new ones x, y, z. Ann chose x and y, bob z, cid only x, dan none of them."""
    users = ["ann", "ann", "bob", "bob", "dan"]
    items = ["a", "b", "b", "c", "c"]
    table = pa.table({"user_id": users, "item_id": items, "split": ["train"] * 5})
    data = prepare_tables(table, pa.table({"item_id": ["a", "b", "c"]}), None, tmp_path / "data", split="given")
    new = pa.table({"item_id": ["x", "y", "z"], "part": ["report"] * 3})
    return HeldOutItems(data, new, pa.table({"user_id": ["ann", "ann", "bob", "cid"], "item_id": ["x", "y", "z", "x"]}))


class Fixed:
    """The same scores for everyone: old items a, b, c, then x, y, z."""

    num_items = 6

    def score_histories(self, users: np.ndarray | None, histories: Histories) -> np.ndarray:
        return np.tile(np.array([9, 8, 5, 3, 1, 2], dtype=np.float32), (len(histories.indptr) - 1, 1))


def test_by_hand(held_out: HeldOutItems) -> None:
    new = held_out.part("report")
    result = new_items_recall(Fixed(), held_out, new, k=2, batch_size=1, progress=False)
    # Among new items x, z come first: ann (x, y) finds 1 of 2, bob (z) 1 of 1.
    # Among all, what they have seen is left out: ann gets c and x, bob a and x.
    assert result.per_user["new among new"].tolist() == [0.5, 1.0] and result.recall["new among new"] == 0.75
    assert result.per_user["new among all"].tolist() == [0.5, 0.0] and result.recall["new among all"] == 0.25
    assert np.isnan(result.per_user["old among all"]).all() and "old among all" not in result.recall  # nobody has a test item
    assert (result.users, result.left_out) == (2, 1)  # cid has no history
    assert result.intervals["new among new"] == (0.5, 1.0)
    assert "per_user" not in result.to_dict()
    table = new_items_table({"fixed": result})
    assert "| fixed | 0.7500 [0.5000, 1.0000] | 0.2500 [0.0000, 0.5000] |" in table
    assert "2 users with a new item; 1 more have no training history and are excluded" in table


def test_baselines(held_out: HeldOutItems) -> None:
    new = held_out.part("report")
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [1, 0.1], [0, 1]], dtype=np.float32)
    found = baselines_for(held_out, new.num_rows, vectors)
    results = {name: new_items_recall(one, held_out, new, k=1, progress=False) for name, one in found.items()}
    assert list(results) == ["popularity", "random", "text nearest neighbour"]
    assert results["popularity"].recall["new among all"] == 0.0  # what is new has no users yet
    assert results["text nearest neighbour"].per_user["new among new"].tolist()[0] == 1.0  # ann: x


@pytest.mark.parametrize(
    ("k", "rows", "message"),
    [
        (4, 3, "k is 4; it must be between 1 and the number of new items, 3"),
        (1, 2, "the recommender has 6 items, the data 3 and 2 new ones; add exactly these items"),
    ],
)
def test_what_cannot_be_measured(held_out: HeldOutItems, k: int, rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_items_recall(Fixed(), held_out, held_out.part("report").slice(0, rows), k=k, progress=False)


def test_nobody_to_ask(held_out: HeldOutItems) -> None:
    alone = HeldOutItems(held_out.data, held_out.items, held_out.interactions.slice(3))
    with pytest.raises(ValueError, match="no user with a training history interacted with a new item"):
        new_items_recall(Fixed(), alone, alone.part("report"), k=1, progress=False)
