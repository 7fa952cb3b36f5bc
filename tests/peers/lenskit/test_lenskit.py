"""LensKit's conformance suite over scorers that hold our models: `make test-lenskit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from lcrec_models import LEVELS, new_lcrec
from lenskit.data import Dataset, ItemList, QueryInput, RecQuery, from_interactions_df
from lenskit.operations import recommend
from lenskit.pipeline import Component, topn_pipeline
from lenskit.testing import BasicComponentTests, ScorerTests
from lenskit.training import Trainable, TrainingOptions
from pydantic import BaseModel

from modeling_cllm4rec import train_recommender
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds

PLACES: dict[str, Path] = {}
"""Folders of the session: `backbone`, a tiny GPT-2, and `runs`."""


class Settings(BaseModel):
    """Settings of a scorer, as LensKit keeps them."""

    epochs: int = 1


class Scorer(Component[ItemList], Trainable):
    """Score items for a user by a model of ours; items and users that it does not know have no score."""

    config: Settings
    search: ClassVar[dict[str, str]] = {}

    def model_of(self, interactions: pd.DataFrame) -> Any:
        """Return a model of the users and items of a table."""
        raise NotImplementedError

    def is_trained(self) -> bool:
        """Whether there is a model."""
        return hasattr(self, "model")

    def train(self, data: Dataset, options: TrainingOptions = TrainingOptions()) -> None:  # noqa: B008 (LensKit's signature)
        """Train, unless there is a model that may stay."""
        if self.is_trained() and not options.retrain:
            return
        table = data.interaction_table(format="pandas", original_ids=True)
        self.histories = {user: rows.tolist() for user, rows in table.groupby("user_id")["item_id"]}
        self.model = self.model_of(table[["user_id", "item_id"]].astype(str))
        self.items = {*table["item_id"].astype(str)}

    def __call__(self, query: QueryInput, items: ItemList) -> ItemList:
        """Return the items with their scores."""
        query = RecQuery.create(query)
        known = self.histories.get(query.user_id, [])
        history = known if query.user_items is None else query.user_items.ids().tolist()
        seen = [str(item) for item in history if str(item) in self.items]
        asked = [str(item) for item in items.ids().tolist()] if len(items) else []
        candidates = [item for item in asked if item in self.items]
        scores = {}
        if seen and candidates:
            settings = {"k": len(candidates), "candidates": candidates, "exclude_seen": False, **self.search}
            found = self.model.recommend(histories=[seen], **settings).to_pandas()
            scores = dict(zip(found["item"], found["score"], strict=True))
        return ItemList(items, scores=np.array([scores.get(item, np.nan) for item in asked], np.float32))


class CLLM4RecScorer(Scorer):
    """CLLM4Rec, trained for an epoch."""

    def model_of(self, interactions: pd.DataFrame) -> Any:
        number = sum(1 for _ in PLACES["runs"].iterdir())
        shared = {"num_train_epochs": self.config.epochs, "per_device_train_batch_size": 32, "report_to": "none"}
        return train_recommender(
            interactions, PLACES["runs"] / f"run{number}", backbone=str(PLACES["backbone"]), verbose=False, **shared
        )


class LCRecScorer(Scorer):
    """LC-Rec with random weights and indices of two levels; all items are scored, not those of some beams."""

    search: ClassVar[dict[str, str]] = {"scoring": "all"}

    def model_of(self, interactions: pd.DataFrame) -> Any:
        items, users = sorted(set(interactions["item_id"])), sorted(set(interactions["user_id"]))
        side = int(np.ceil(np.sqrt(len(items))))
        numbers = np.random.default_rng(0).permutation(side**LEVELS)[: len(items)]
        codes = np.stack([numbers // side, numbers % side], axis=1).astype(np.int32)
        empty = KnownUsers(users, np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int32))
        changes = {"catalogue": Catalogue(pa.table({"item_id": items})), "users": empty, "indexer": None}
        model, _ = new_lcrec(PLACES["backbone"], semantic_ids=SemanticIds(codes, side), codes=side, **changes)
        return model


class Suite(BasicComponentTests, ScorerTests):
    """LensKit's tests of a scorer that knows the items of its training."""

    can_score = "known"

    def verify_models_equivalent(self, orig: Scorer, copy: Scorer) -> None:
        weights, others = orig.model.state_dict(), copy.model.state_dict()
        assert weights.keys() == others.keys()
        assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


class TestCLLM4Rec(Suite):
    """CLLM4Rec under LensKit's tests."""

    component = CLLM4RecScorer


class TestLCRec(Suite):
    """LC-Rec under LensKit's tests."""

    component = LCRecScorer


@pytest.fixture(scope="session", autouse=True)
def places(tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Set the folders that scorers use, which are no part of their settings."""
    PLACES.update(backbone=tiny_backbones["gpt2"], runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator for the samples of the suite."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def ml_ratings() -> pd.DataFrame:
    """100 users rate 4 to 20 of 160 items; LensKit's own fixture reads MovieLens from a folder of its checkout."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(1, 101):
        items = rng.choice(160, size=rng.integers(4, 21), replace=False) + 1
        rows += [
            (user, item, float(rng.integers(1, 6)), 1_000_000 + 1000 * len(rows) + number) for number, item in enumerate(items)
        ]
    rows += [(1, item, 3.0, 2_000_000 + item) for item in set(range(1, 161)) - {row[1] for row in rows}]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return frame.drop_duplicates(["user_id", "item_id"]).assign(timestamp=lambda one: pd.to_datetime(one["timestamp"], unit="s"))


@pytest.fixture
def ml_100k(ml_ratings: pd.DataFrame) -> pd.DataFrame:
    """Return the same for the tests of accuracy, which skip where no value is expected."""
    return ml_ratings


@pytest.fixture(scope="session")
def ml_ds(ml_ratings: pd.DataFrame) -> Dataset:
    """Return the same as a data set."""
    return from_interactions_df(ml_ratings)


def test_the_pipelines_lists_are_ours(ml_ds: Dataset) -> None:
    """LensKit's top-n pipeline leaves out what a user has, and then gives the lists of `recommend`."""
    pipeline = topn_pipeline(CLLM4RecScorer(), n=10)
    pipeline.train(ml_ds)
    scorer = pipeline.component("scorer")
    for user in ml_ds.users.ids()[:20].tolist():
        theirs = [str(item) for item in recommend(pipeline, user, n=10).ids().tolist()]
        history = [str(item) for item in scorer.histories[user]]
        ours = scorer.model.recommend(histories=[history], k=10).to_pandas()["item"].tolist()
        assert theirs == ours
