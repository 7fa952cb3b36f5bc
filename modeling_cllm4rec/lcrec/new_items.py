"""New items for a trained LC-Rec: an embedding of their texts, and the nearest free semantic ID."""

from __future__ import annotations

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.prompts import check_index_tokens


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
        encoder: path of the encoder, if the model has its folder's name only.
        progress: show a bar while texts are encoded.

    Returns:
        The tokenizer, unchanged: it already has the tokens of all semantic IDs.

    Raises:
        InputError: items that cannot be added, a tokenizer of another model, or a model without an indexer or without the
            settings of its item embeddings.
        MissingFileError, MissingPackageError: see `LCRecForRecommendation.add_items`.
    """
    check_index_tokens(tokenizer.get_vocab(), *model.config.index_tokens)
    model.add_items(items, encoder=encoder, progress=progress)
    return tokenizer
