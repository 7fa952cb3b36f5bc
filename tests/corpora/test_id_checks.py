"""A model and a data folder of other users or items do not fit."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.id_checks import check_same_ids

USERS, ITEMS = ["ann", "ben"], ["p", "q", "r"]
CATALOGUE = "runs/x is a checkpoint of another catalogue than small: its item ids or their order differ; use the data folder"
OTHER_USERS = "runs/x is a checkpoint of other users than small: its user ids or their order differ; use the data folder"


def data_of(users: list[str] | list[int], items: list[str]) -> RecommendationData:
    index = pa.array([0], pa.int32())
    interactions = pa.table({"user_index": index, "item_index": index, "split": ["train"]})
    return RecommendationData(pa.table({"user_id": users}), pa.table({"item_id": items}), interactions, {}, Path("small"))


@pytest.fixture(scope="module")
def model(tiny_backbones: dict[str, Path]) -> CLLM4RecForRecommendation:
    return CLLM4RecForRecommendation.from_backbone(tiny_backbones["gpt2"], users=KnownUsers(USERS), catalogue=Catalogue(ITEMS))


def test_the_same_ids_fit_whatever_their_arrow_type(model: CLLM4RecForRecommendation) -> None:
    data = data_of(USERS, ITEMS)
    check_same_ids(model, data, "runs/x")
    large = data.items.set_column(0, "item_id", data.items["item_id"].cast(pa.large_string()))
    check_same_ids(model, RecommendationData(data.users, large, data.interactions, {}, data.folder), "runs/x")


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        (USERS, ["q", "p", "r"], CATALOGUE),
        (USERS, ["p", "q"], CATALOGUE),
        (USERS, ["p", "q", "s"], CATALOGUE),
        (["ben", "ann"], ITEMS, OTHER_USERS),
        (["ann", "ben", "cat"], ITEMS, OTHER_USERS),
        ([1, 2], ITEMS, OTHER_USERS),
    ],
)
def test_other_ids_do_not(users: list[str] | list[int], items: list[str], message: str, model: CLLM4RecForRecommendation) -> None:
    with pytest.raises(ValueError, match=message):
        check_same_ids(model, data_of(users, items), "runs/x")


def test_a_model_without_ids_does_not(tiny_backbones: dict[str, Path]) -> None:
    nameless = CLLM4RecForRecommendation.from_backbone(tiny_backbones["gpt2"], num_users=2, num_items=3)
    with pytest.raises(
        ValueError, match=r"runs/x has no catalogue\.parquet, so its rows cannot be compared with small; copy its"
    ):
        check_same_ids(nameless, data_of(USERS, ITEMS), "runs/x")
