"""One recommender over each backbone, saved once, and loaded as each of the three classes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import (
    CLLM4RecForCausalLM,
    CLLM4RecForRecommendation,
    CLLM4RecModel,
    CLLM4RecPreTrainedModel,
)
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

MINILM = Path(__file__).parents[2].parent / "shared" / "backbone" / "minilm-reviews-lm"
USERS = ["ann", "user 1", "🎸", "dora"]
ITEMS = [f"item {number}" for number in range(10)] + ["<item_0>", "ä"]
HISTORIES = [[0, 3, 5], [11], [2, 3, 4, 5, 6, 7], []]


@pytest.fixture(scope="session", params=["gpt2", "gpt2-untied", "llama", "llama-tied", "qwen2", "minilm"])
def backbone(request, tiny_backbones) -> Path:
    """Every backbone in turn; one of them by `parametrize("backbone", [...], indirect=True)`."""
    if request.param != "minilm":
        return tiny_backbones[request.param]
    if not MINILM.is_dir():
        pytest.skip(f"needs the MiniLM decoder in {MINILM}")
    return MINILM


@pytest.fixture(scope="session")
def saved(backbone, tmp_path_factory) -> Path:
    """Return a folder with model and tokenizer: read it, do not write into it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(new_model(backbone), backbone, folder)
    return folder


@pytest.fixture(scope="session")
def recommender(saved) -> CLLM4RecForRecommendation:
    """Read it, do not change it; likewise the others."""
    return CLLM4RecForRecommendation.from_pretrained(saved)


@pytest.fixture(scope="session")
def writer(saved) -> CLLM4RecForCausalLM:
    return CLLM4RecForCausalLM.from_pretrained(saved)


@pytest.fixture(scope="session")
def bare(saved) -> CLLM4RecModel:
    return CLLM4RecModel.from_pretrained(saved)


@pytest.fixture(scope="session")
def tokenizer(saved) -> CLLM4RecTokenizer:
    return CLLM4RecTokenizer.from_pretrained(saved)


def new_model(backbone: Path, **arguments) -> CLLM4RecForRecommendation:
    """Four users with histories, twelve items with titles; ID rows far enough apart to make a difference."""
    titles = [f"title of {name}" for name in ITEMS]
    arguments = {
        "users": KnownUsers(USERS, np.cumsum([0, *map(len, HISTORIES)]), np.concatenate(HISTORIES).astype(np.int32)),
        "catalogue": Catalogue(pa.table({"item_id": ITEMS, "title": titles})),
        "initializer_range": 0.5,
        **arguments,
    }
    return CLLM4RecForRecommendation.from_backbone(backbone, **arguments)


def save(model: CLLM4RecPreTrainedModel, backbone: Path, folder: Path) -> None:
    """Save the model with prompts and tokenizer, as pretraining does."""
    config = model.config
    tokenizer = CLLM4RecTokenizer.from_backbone(
        backbone, num_users=config.num_users, num_items=config.num_items, id_offset=config.id_offset
    )
    config.recommendation_prompts = recommendation_segments(Prompts(), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
