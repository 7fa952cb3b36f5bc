"""Withheld items are in no table that is trained on, and none of their interactions is lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from cold_items import ITEMS_FILE, HeldOutItems, hold_out_items

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData


def pairs(data: RecommendationData) -> set[tuple[object, object]]:
    users = data.users["user_id"].take(data.interactions["user_index"]).to_pylist()
    return set(zip(users, data.items["item_id"].take(data.interactions["item_index"]).to_pylist(), strict=True))


def test_nothing_is_lost_and_nothing_leaks(data: RecommendationData, tmp_path: Path) -> None:
    withheld = hold_out_items(data, tmp_path / "rest", share=0.2, tuning_share=0.1, seed=3)
    new = set(withheld.items["item_id"].to_pylist())
    assert [withheld.part(name).num_rows for name in ("report", "tuning")] == [8, 4] and len(new) == 12
    assert "part" not in withheld.part("report").column_names and "title" in withheld.part("report").column_names
    rest = pairs(withheld.data)
    assert set(withheld.data.items["item_id"].to_pylist()) == set(data.items["item_id"].to_pylist()) - new
    apart = set(zip(*(withheld.interactions[name].to_pylist() for name in ("user_id", "item_id")), strict=True))
    assert {item for _, item in apart} <= new and not {item for _, item in rest} & new
    assert rest | apart == pairs(data) and not rest & apart
    assert withheld.data.info["protocol"]["line"].endswith("; 8 + 4 items withheld, seed 3")
    assert withheld.data.reviews().num_rows < data.reviews().num_rows
    read = HeldOutItems.load(tmp_path / "rest")
    assert read.items.equals(withheld.items) and read.interactions.equals(withheld.interactions)
    assert read.data.interactions.equals(withheld.data.interactions)


def test_the_seed_alone_chooses(data: RecommendationData, tmp_path: Path) -> None:
    one, same, other = (hold_out_items(data, tmp_path / str(n), seed=seed).items for n, seed in enumerate((1, 1, 2)))
    assert one.equals(same) and not one.equals(other)
    order = np.array(data.items["item_id"].to_pylist(), dtype=object)
    rows = [int(np.flatnonzero(order == item)[0]) for item in one["item_id"].to_pylist()]
    assert rows != sorted(rows)  # a random order
    assert pc.unique(one["part"]).to_pylist() == ["report", "tuning"]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"share": 1.0}, "share is 1.0; it must be 0 or more and below 1"),
        ({"tuning_share": -0.1}, "tuning_share is -0.1"),
        ({"share": 0.001}, "withhold 0 and 2 of 40 items; at least one must be withheld"),
        ({"share": 0.9, "tuning_share": 0.1}, "withhold 36 and 4 of 40 items; at least one .* and one must stay"),
    ],
)
def test_shares_that_cannot_be(data: RecommendationData, tmp_path: Path, shares: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hold_out_items(data, tmp_path / "rest", **shares)


def test_parts_and_folders_that_are_none(data: RecommendationData, data_folder: Path, tmp_path: Path) -> None:
    withheld = hold_out_items(data, tmp_path / "rest", tuning_share=0.0)
    with pytest.raises(ValueError, match="no items were withheld for tuning; split again with a share above 0"):
        withheld.part("tuning")
    with pytest.raises(ValueError, match="part is 'test'; it must be one of report, tuning"):
        withheld.part("test")
    with pytest.raises(FileNotFoundError, match=f"has no {ITEMS_FILE}: no items were withheld from it"):
        HeldOutItems.load(data_folder)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        hold_out_items(data, tmp_path / "rest")


def test_users_without_texts_of_their_own(data: RecommendationData, tmp_path: Path) -> None:
    bare = dataclasses.replace(data, users=data.users.select(["user_id"]))
    withheld = hold_out_items(bare, tmp_path / "rest")
    assert withheld.data.users.column_names == ["user_id"] and withheld.data.num_users == 60


def test_a_truncated_table_of_withheld_items(data: RecommendationData, tmp_path: Path) -> None:
    hold_out_items(data, tmp_path / "rest", share=0.2)
    (tmp_path / "rest" / ITEMS_FILE).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=f"{ITEMS_FILE} is truncated or not Parquet"):
        HeldOutItems.load(tmp_path / "rest")
