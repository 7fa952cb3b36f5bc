"""A tiny LC-Rec model over any backbone: random weights, 12 items of awkward ids, an index of two levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.tokenization.tokenization_lcrec import add_semantic_id_tokens

USERS = ["ann", "user 1", "🎸"]
ITEMS = [f"item {number}" for number in range(10)] + ["<a_0>", "ä"]
HISTORIES = [[0, 3, 5], [11], [2, 3, 4, 5, 6, 7]]
LEVELS, CODES, WIDTH = 2, 5, 6


def item_codes() -> np.ndarray:
    """12 of the 25 indices, in no order."""
    numbers = np.random.default_rng(0).permutation(CODES**LEVELS)[: len(ITEMS)]
    return np.stack([numbers // CODES, numbers % CODES], axis=1).astype(np.int32)


def new_lcrec(backbone: Path, codes: int = CODES, **changes: Any) -> tuple[LCRecForRecommendation, PreTrainedTokenizerBase]:
    """Model and tokenizer; `codes` are the tokens of a level."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)

    def words(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompts = {
        "recommendation_prompts": [[words("Someone chose:"), "items"], [words("Go on:"), "items"]],
        "query_prompts": {
            "alone": [[words("Looking for"), "query", words("?")]],
            "history": [[words("After"), "items", words("looking for"), "query", words("?")]],
        },
        "separator": words(","),
    }
    first = add_semantic_id_tokens(tokenizer, LEVELS, codes)
    torch.manual_seed(0)
    indexer = RQVAEModel(RQVAEConfig(input_dim=WIDTH, hidden_dims=(8,), latent_dim=4, num_levels=LEVELS, codebook_size=CODES))
    indptr = np.cumsum([0, *map(len, HISTORIES)])
    arguments: dict[str, Any] = {
        "semantic_ids": SemanticIds(item_codes(), CODES),
        "first_index_token": first,
        "catalogue": Catalogue(pa.table({"item_id": ITEMS, "title": [f"title {number}" for number in range(12)]})),
        "users": KnownUsers(USERS, indptr, np.concatenate(HISTORIES).astype(np.int32)),
        "indexer": indexer,
        "search_beams": 5,
    }
    model = LCRecForRecommendation.from_backbone(backbone, **{**arguments, **prompts, **changes})
    return model.eval(), tokenizer
