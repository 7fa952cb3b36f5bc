"""Text vectors of items for baselines and for the start of item rows: TF-IDF or any encoder, of texts or training reviews."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.whitening import whitening
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import ITEM_TEXTS, item_texts

if TYPE_CHECKING:
    from modeling_cllm4rec.corpora.item_embeddings import Pooling

logger = logging.getLogger(__name__)

TFIDF = "tfidf"
"""The encoder that counts words; it needs no model."""
REVIEW = "review"
"""The field that holds the training reviews of an item, one after the other."""
SVD_DIMENSIONS = 256
"""Dimensions to which text vectors are reduced before they are whitened."""

TextVectors: TypeAlias = Any
"""(J, d) float32, row j of item_index j: a NumPy array or a `scipy.sparse.csr_array`, which has no types."""


def text_vectors(
    data: RecommendationData,
    *,
    encoder: str = TFIDF,
    fields: Sequence[str] | None = None,
    pooling: Pooling = "separate",
    max_text_tokens: int | None = None,
    cache: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> TextVectors:
    """Return a vector of each item's text, of length 1; zeros for an item without text.

    Args:
        data: the data folder.
        encoder: `"tfidf"`, see `tfidf_vectors`, or an encoder of `item_embeddings.embed_items`.
        fields: text columns of the items, and `"review"` for their training reviews. None takes those of `title`, `brand`,
            `categories` and `description` that the data has, and the training reviews if it has none of them.
        pooling, max_text_tokens, cache, device, progress: of other encoders than `"tfidf"`, see
            `item_embeddings.item_embeddings`.

    Returns:
        (J, d), sparse for `"tfidf"`.

    Raises:
        InputError: there is no such field, no item has a text, or a setting of another encoder is given with `"tfidf"`.
        MissingPackageError: the encoder needs a package that is not installed.
    """
    data = with_review_texts(data)
    fields = _default_fields(data) if fields is None else fields
    texts = item_texts(data.items, fields, on_missing_text="empty")
    missing = sum(not any(parts) for parts in zip(*texts.values(), strict=True))
    if missing == data.num_items:
        raise InputError(f"no item has a text in {', '.join(fields)}; choose other fields, or a baseline that reads no texts")
    logger.info("texts of items: %s; %d of %d items have none", ", ".join(fields), missing, data.num_items)
    if encoder == TFIDF:
        given = {"pooling": pooling != "separate", "max_text_tokens": max_text_tokens, "cache": cache}
        if unread := [name for name, value in given.items() if value]:
            raise InputError(f"{unread[0]} has no effect on the encoder 'tfidf'; remove it, or name another encoder")
        return tfidf_vectors([" ".join(filter(None, parts)) for parts in zip(*texts.values(), strict=True)])
    from modeling_cllm4rec.corpora.item_embeddings import item_embeddings  # imports transformers

    vectors = item_embeddings(
        data,
        encoder=encoder,
        fields=fields,
        pooling=pooling,
        on_missing_text="empty",
        max_text_tokens=max_text_tokens,
        cache=cache,
        device=device,
        progress=progress,
    )
    return unit_rows(vectors)


def tfidf_vectors(
    texts: Sequence[str], *, min_items: int = 2, max_share: float = 0.3, stop_words: str | None = "english"
) -> sparse.csr_array:
    """Return TF-IDF vectors of texts: (1 + ln count) times (1 + ln((1 + J) / (1 + items with the word))), of length 1.

    Args:
        texts: the texts of the J items, empty for an item without text.
        min_items: words in fewer texts are left out.
        max_share: words in a larger share of the texts are left out.
        stop_words: `"english"` leaves out its commonest words, None leaves out none.

    Returns:
        (J, words) float32; zeros where no word is left.

    Raises:
        InputError: no word is left in any text.

    >>> tfidf_vectors(["red lamp", "red pot", "", "a"], max_share=0.5).toarray().tolist()
    [[1.0], [1.0], [0.0], [0.0]]
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

    vectorizer = TfidfVectorizer(min_df=min_items, max_df=max_share, sublinear_tf=True, stop_words=stop_words, dtype=np.float32)
    try:
        return sparse.csr_array(vectorizer.fit_transform(texts))
    except ValueError as error:
        if "vocabulary" not in str(error) and "no terms remain" not in str(error) and "max_df" not in str(error):
            raise
        raise InputError(
            f"the texts of {len(texts)} items share no word that is in {min_items} or more of them and in at most "
            f"{max_share:.0%}; choose other fields or another encoder"
        ) from error


def whitened_rows(vectors: TextVectors, size: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return vectors reduced to `size` uncorrelated dimensions of mean 0 and variance 1.

    The vectors are reduced to `SVD_DIMENSIONS` by a truncated singular value decomposition, and whitened.

    Args:
        vectors: (J, d); rows of zeros are items without text, which do not count.
        size: number of dimensions, K.
        seed: of the decomposition.

    Returns:
        (J, K); zeros for items without text, and in dimensions beyond those that the vectors have.

    >>> rows = whitened_rows(np.array([[1, 0], [-1, 0], [0, 0], [0, 3], [0, -3]], dtype=np.float32), 2)
    >>> (rows**2).round().tolist()
    [[0.0, 2.0], [0.0, 2.0], [0.0, 0.0], [2.0, 0.0], [2.0, 0.0]]
    """
    known = np.flatnonzero(_has_text(vectors))
    given = vectors[known]
    if given.shape[1] > SVD_DIMENSIONS:
        from sklearn.decomposition import TruncatedSVD  # slow to import

        reducer = TruncatedSVD(min(SVD_DIMENSIONS, len(known)), random_state=seed)
        given = reducer.fit_transform(given)
    dense = np.asarray(given.toarray() if sparse.issparse(given) else given, dtype=np.float64)
    mean, matrix = whitening(dense, size)
    rows = np.zeros((vectors.shape[0], size), dtype=np.float32)
    rows[known] = (dense - mean) @ matrix
    return rows


def with_review_texts(data: RecommendationData) -> RecommendationData:
    """Return the data with a column `review` of the items: their training reviews, joined by blanks in the order of the users.

    Raises:
        InputError: the items have a column of this name.
    """
    reviews = data.reviews()
    if not reviews.num_rows:
        return data
    if REVIEW in data.items.column_names:
        raise InputError(
            f"the items have a column {REVIEW!r}, which is the name for their training reviews; rename it, and prepare again"
        )
    written: list[list[str]] = [[] for _ in range(data.num_items)]
    for item, review in zip(reviews["item_index"].to_pylist(), reviews[REVIEW].to_pylist(), strict=True):
        written[item].append(review)
    column = pa.array([" ".join(parts) for parts in written], pa.large_string())
    return dataclasses.replace(data, items=data.items.append_column(REVIEW, column))


def unit_rows(vectors: TextVectors) -> TextVectors:
    """Return rows of length 1, sparse where they were sparse; rows of zeros stay.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    if sparse.issparse(vectors):
        norms = sparse.linalg.norm(vectors, axis=1)
        scales = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        return sparse.csr_array(sparse.diags_array(scales) @ vectors).astype(np.float32)
    rows = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _default_fields(data: RecommendationData) -> tuple[str, ...]:
    """Return the text columns that the data has, or its reviews.

    Raises:
        InputError: it has neither.
    """
    columns = data.items.column_names
    found = tuple(field for field in ITEM_TEXTS if field in columns) or tuple(field for field in (REVIEW,) if field in columns)
    if not found:
        raise InputError(
            f"the items have no text: none of {', '.join(ITEM_TEXTS)} is a column, and there are no reviews; name other fields, "
            "or choose a baseline that reads no texts"
        )
    return found


def _has_text(vectors: TextVectors) -> npt.NDArray[np.bool_]:
    if isinstance(vectors, np.ndarray):
        return np.asarray(vectors.any(axis=1))
    return np.diff(vectors.indptr) > 0
