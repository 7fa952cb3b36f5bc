"""A finetuned-like CLLM4Rec model over any backbone, saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

NUM_USERS, NUM_ITEMS = 20, 40


@pytest.fixture(scope="session")
def make_model(tiny_backbones, tmp_path_factory) -> Callable[[str], Path]:
    """Name of a backbone -> folder of a model with 20 users (of 0 to 9 items each) and 40 items."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("to-export") / name
        lengths = np.arange(NUM_USERS) % 10
        items = np.random.default_rng(0).integers(NUM_ITEMS, size=lengths.sum()).astype(np.int32)
        model = CLLM4RecForRecommendation.from_backbone(
            tiny_backbones[name],
            users=KnownUsers([f"user {i}" for i in range(NUM_USERS)], np.concatenate([[0], lengths.cumsum()]), items),
            catalogue=Catalogue(
                pa.table({"item_id": range(1000, 1000 + NUM_ITEMS), "title": [f"title {j}" for j in range(NUM_ITEMS)]})
            ),
            initializer_range=0.5,
        )
        sizes = {"num_users": NUM_USERS, "num_items": NUM_ITEMS, "id_offset": model.config.id_offset}
        tokenizer = CLLM4RecTokenizer.from_backbone(tiny_backbones[name], **sizes)
        model.config.recommendation_prompts = recommendation_segments(Prompts(), tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def model_folder(make_model) -> Path:
    """Over GPT-2: read it, do not write into it."""
    return make_model("gpt2")


@pytest.fixture
def model(model_folder) -> CLLM4RecForRecommendation:
    return CLLM4RecForRecommendation.from_pretrained(model_folder)
