"""A CLLM4Rec and an LC-Rec model over one catalogue of 15 items, in memory; random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from lcrec_models import new_lcrec

from modeling_cllm4rec.app.answers import ShownModel, ShownModels
from modeling_cllm4rec.cllm4rec.content_writer import ContentWriter
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

ITEMS = [f"B{number}" for number in range(13)] + ['<i>"x"</i>', "🎸"]
AWKWARD = ["Crème brûlée", "<img src=x onerror=alert(1)> ${1+1} {{value}}", None]
TITLES = [*(f"Lavender soap {number}" for number in range(12)), *AWKWARD]
USERS = ["ann", "user 1", "🎸"]
HISTORIES = [[0, 3, 5], [11], [2, 3, 4]]
CODES = np.stack(np.divmod(np.arange(15), 5), axis=1).astype(np.int32)


def catalogue() -> Catalogue:
    return Catalogue(pa.table({"item_id": ITEMS, "title": TITLES}))


def users() -> KnownUsers:
    return KnownUsers(USERS, np.cumsum([0, *map(len, HISTORIES)]), np.concatenate(HISTORIES).astype(np.int32))


@pytest.fixture(scope="session")
def cllm4rec(tiny_backbones) -> ShownModel:
    backbone = tiny_backbones["gpt2"]
    model = CLLM4RecForRecommendation.from_backbone(backbone, users=users(), catalogue=catalogue(), initializer_range=0.5)
    tokenizer = CLLM4RecTokenizer.from_backbone(
        backbone, num_users=len(USERS), num_items=len(ITEMS), id_offset=model.config.id_offset
    )
    model.config.recommendation_prompts = recommendation_segments(Prompts(), tokenizer)
    return ShownModel("beauty", model.eval(), ContentWriter(model, tokenizer))


@pytest.fixture(scope="session")
def lcrec(tiny_backbones) -> ShownModel:
    model, tokenizer = new_lcrec(
        tiny_backbones["gpt2"],
        semantic_ids=SemanticIds(CODES, 5),
        catalogue=catalogue(),
        users=users(),
        search_beams=10,
    )
    model.__dict__["tokenizer"] = tokenizer
    return ShownModel("beauty-lcrec", model)


@pytest.fixture(scope="session")
def models(cllm4rec, lcrec) -> ShownModels:
    return ShownModels([cllm4rec, lcrec])


@pytest.fixture(scope="session")
def saved(cllm4rec, tiny_backbones, tmp_path_factory) -> Path:
    """Return the CLLM4Rec model as a folder: read it, do not write into it."""
    folder = tmp_path_factory.mktemp("app") / "beauty"
    cllm4rec.model.save_pretrained(folder)
    cllm4rec.writer.tokenizer.save_pretrained(folder)
    return folder
