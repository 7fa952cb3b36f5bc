"""A saved model of the small world, for commands that recommend to many users."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer


@pytest.fixture(scope="module")
def model(tiny_backbones: dict[str, Path], data: RecommendationData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model of the small world: 60 users with their training histories, 40 items."""
    folder: Path = tmp_path_factory.mktemp("bulk") / "model"
    histories = data.histories("train")
    model = CLLM4RecForRecommendation.from_backbone(
        tiny_backbones["gpt2"],
        users=KnownUsers(data.users["user_id"], histories.indptr, histories.items),
        catalogue=Catalogue(pa.table({"item_id": data.items["item_id"]})),
        initializer_range=0.5,
    )
    tokenizer = CLLM4RecTokenizer.from_backbone(
        tiny_backbones["gpt2"], num_users=data.num_users, num_items=data.num_items, id_offset=model.config.id_offset
    )
    model.config.recommendation_prompts = recommendation_segments(Prompts(), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
