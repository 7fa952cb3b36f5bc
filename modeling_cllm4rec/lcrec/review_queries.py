"""A query of each review, by the rules that make the queries of training, for the evaluation of `search`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import DESCRIPTION, TITLE, clean_text
from modeling_cllm4rec.lcrec.intentions import extract_intentions, words_of


def queries_of_reviews(reviews: Sequence[str], brands: Sequence[str] = ()) -> list[str]:
    """Return a query of each review, made from its words alone.

    It is the sentence with the most distinctive words, else a request with these words. `intentions.extract_intentions` makes
    it of a catalogue in which each review is an item, so that no text of the reviewed item gets in.

    Args:
        reviews: n texts.
        brands: n brands of the reviewed items, which a query does not name; none by default.

    Returns:
        n queries, empty for a review without any content word other than the brand.

    Raises:
        InputError: another number of brands than of reviews.

    Example:
        >>> queries_of_reviews(["Great. The box is small, but the lamp is bright.", "Box", "A bright lamp for my desk", "So so."])
        ['The box is small, but the lamp is bright.', 'I need this: box.', 'A bright lamp for my desk', '']
    """
    if len(brands) not in (0, len(reviews)):
        raise InputError(f"brands has {len(brands)} texts for {len(reviews)} reviews; give one for each, or none")
    brands = brands or [""] * len(reviews)
    texts = [clean_text(review) for review in reviews]
    telling = [
        number
        for number, (text, brand) in enumerate(zip(texts, brands, strict=True))
        if set(words_of(text)) - set(words_of(clean_text(brand)))
    ]
    queries = [""] * len(reviews)
    if not telling:
        return queries
    said, made_by = ([column[number] for number in telling] for column in (texts, brands))
    items = pa.table({"item_id": telling, TITLE: said, DESCRIPTION: said, "brand": pa.array(made_by, pa.string())})
    rows = {"user_index": np.zeros(len(said), np.int32), "item_index": np.arange(len(said), dtype=np.int32)}
    catalogue = RecommendationData(
        users=pa.table({"user_id": [0]}),
        items=items,
        interactions=pa.table({**rows, "split": ["train"] * len(said)}),
        info={},
        folder=Path("reviews"),
    )
    for number, made in zip(telling, extract_intentions(catalogue).queries, strict=True):
        queries[number] = made[-1]
    return queries
