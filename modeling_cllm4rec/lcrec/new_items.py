"""New items for a trained LC-Rec: an embedding of their texts, and the nearest semantic ID that is free."""

from __future__ import annotations

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation


def add_items(
    model: LCRecForRecommendation,
    tokenizer: PreTrainedTokenizerBase,
    items: pa.Table,
    *,
    encoder: str | None = None,
    progress: bool = True,
) -> PreTrainedTokenizerBase:
    """Add items by their texts alone.

    Args:
        items: `item_id` and text columns.
        encoder: place of the encoder, where the model names one by its folder's name only.
        progress: show a bar while texts are encoded.

    Returns:
        The tokenizer, unchanged: the semantic ID tokens are there already.

    Raises:
        InputError: items that cannot be added, or a model that has no indexer or does
            not state how texts become embeddings.
        MissingFileError, MissingPackageError: see `LCRecForRecommendation.add_items`.
    """
    model.add_items(items, encoder=encoder, progress=progress)
    return tokenizer
