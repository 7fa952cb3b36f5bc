"""Baselines of search: items ranked by their texts for a query in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import DESCRIPTION, ITEM_TEXTS, TITLE, clean_text, item_texts
from modeling_cllm4rec.corpora.text_vectors import REVIEW, unit_rows, with_review_texts
from modeling_cllm4rec.evaluation.two_towers import TwoTowers

FloatArray = npt.NDArray[np.float32]
WriteQueries = Callable[[Sequence[str], Sequence[str]], list[str]]
"""(reviews, brands of their items) -> a query for each review, empty for a review that says nothing; see `systems.System`."""
ENCODED_TOKENS = 120
"""Tokens of a text that an encoder reads at most: nearly all encoders read so many, and all-MiniLM-L6-v2 was trained on 128."""


class QueryScorer(Protocol):
    """A baseline of search: it scores all J items for queries."""

    num_items: int

    def score_queries(self, queries: Sequence[str]) -> FloatArray:
        """Return (n, J) float32 scores, higher is better."""
        ...


class BM25:
    """Okapi BM25 (Robertson and Zaragoza, 2009) with the weights of words that Lucene uses, which are never negative.

    The score of a text is the sum, over the words w of the query, of
    `idf(w) * n (k1 + 1) / (n + k1 (1 - b + b * length / mean length))`, where n counts w in the text, and
    `idf(w) = ln(1 + (J - J_w + .5) / (J_w + .5))`, J_w texts have w. A word that a query repeats counts as often. Lengths are in
    words without English stop words. Words are not stemmed.

    Args:
        texts: the texts of the J items.
        k1: how soon a repeated word stops to count more.
        b: how much long texts are discounted, 0 to 1.

    Raises:
        InputError: `k1` or `b` is out of its range, or there is no word in any text.

    >>> BM25(["red lamp", "red red pot"], b=0).score_queries(["red"]).astype(float).round(4).tolist()  # ln 1.2; 4.4 / 3.2 of it
    [[0.1823, 0.2507]]
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        if not k1 >= 0:
            raise InputError(f"k1 is {k1}; it must be 0 or more")
        if not 0 <= b <= 1:
            raise InputError(f"b is {b}; it must be from 0 to 1")
        from sklearn.feature_extraction.text import CountVectorizer  # slow to import

        self.num_items = len(texts)
        self._words = CountVectorizer(stop_words="english")
        counts = _fitted(self._words, texts)
        texts_with = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log(1 + (len(texts) - texts_with + 0.5) / (texts_with + 0.5))
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        discounts = np.repeat(k1 * (1 - b + b * lengths / lengths.mean()), np.diff(counts.indptr))
        weights = idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + discounts)
        self._weights = sparse.csr_array((weights, counts.indices, counts.indptr), shape=counts.shape)

    def score_queries(self, queries: Sequence[str]) -> FloatArray:
        """Return (n, J) float32 scores, 0 where no word of the query is in the text."""
        counts = sparse.csr_array(self._words.transform(queries))
        return np.asarray((counts @ self._weights.T).toarray(), dtype=np.float32)


class TfidfCosine:
    """The cosine between TF-IDF vectors, (1 + ln count) * (1 + ln((1 + J) / (1 + texts with the word))), without stop words.

    Args:
        texts: the texts of the J items.

    Raises:
        InputError: there is no word in any text.

    >>> TfidfCosine(["red lamp", "blue lamp"]).score_queries(["lamp", "tea"]).astype(float).round(4).tolist()
    [[0.5797, 0.5797], [0.0, 0.0]]
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

        self.num_items = len(texts)
        self._words = TfidfVectorizer(sublinear_tf=True, stop_words="english", dtype=np.float32)
        self._vectors = _fitted(self._words, texts)

    def score_queries(self, queries: Sequence[str]) -> FloatArray:
        """Return (n, J) float32 cosines."""
        vectors = sparse.csr_array(self._words.transform(queries))
        return np.asarray((vectors @ self._vectors.T).toarray(), dtype=np.float32)


class EncoderCosine:
    """The cosine between the embeddings of query and item text by a text encoder, zero for an item without a text.

    Args:
        data: the data folder.
        encoder: see `item_embeddings.embed_items`; texts are cut after `ENCODED_TOKENS` tokens.
        fields: text columns of the items, whose embeddings are averaged.

    Raises:
        InputError, MissingFileError, MissingPackageError: as `item_embeddings.embed_items`.
    """

    def __init__(self, data: RecommendationData, encoder: str, fields: Sequence[str]) -> None:
        self.num_items = data.num_items
        self._encoder = encoder
        self._vectors = self._encode(data.items, fields)

    def score_queries(self, queries: Sequence[str]) -> FloatArray:
        """Return (n, J) float32 cosines."""
        table = pa.table({"item_id": np.arange(len(queries)), "query": list(queries)})
        return np.asarray(self._encode(table, ["query"]) @ self._vectors.T, dtype=np.float32)

    def _encode(self, table: pa.Table, fields: Sequence[str]) -> FloatArray:
        from modeling_cllm4rec.corpora.item_embeddings import embed_items  # imports transformers

        settings: dict[str, Any] = {"on_missing_text": "empty", "max_text_tokens": ENCODED_TOKENS, "progress": False}
        vectors: FloatArray = unit_rows(embed_items(table, encoder=self._encoder, fields=fields, **settings))
        return vectors


class MostPopular:
    """The number of users of an item in training, whatever the query says: what an answer is worth that does not read it.

    Args:
        data: the data folder.
    """

    def __init__(self, data: RecommendationData) -> None:
        self.num_items = data.num_items
        self._users = np.bincount(data.histories("train").items, minlength=data.num_items).astype(np.float32)

    def score_queries(self, queries: Sequence[str]) -> FloatArray:
        """Return (n, J) float32 numbers of users."""
        return np.tile(self._users, (len(queries), 1))


def _two_towers(data: RecommendationData, write: WriteQueries, seed: int) -> TwoTowers:
    """Train on the queries that are made of training reviews as those of the evaluation are of held-out ones."""
    reviews = data.reviews()
    items = reviews["item_index"].to_numpy().astype(np.int64)
    brands = _joined(data, ["brand"]) if "brand" in data.items.column_names else [""] * data.num_items
    queries = write(reviews["review"].to_pylist(), [brands[item] for item in items.tolist()])
    written = [row for row, query in enumerate(queries) if query]
    return TwoTowers(_joined(data, ITEM_TEXTS), [queries[row] for row in written], items[written], seed=seed)


MakeScorer = Callable[[RecommendationData, WriteQueries, int], QueryScorer]
SEARCH_BASELINES: dict[str, MakeScorer] = {
    "popularity": lambda data, write, seed: MostPopular(data),
    "bm25": lambda data, write, seed: BM25(_joined(data, ITEM_TEXTS)),
    "bm25-reviews": lambda data, write, seed: BM25(_joined(with_review_texts(data), (*ITEM_TEXTS, REVIEW))),
    "tfidf": lambda data, write, seed: TfidfCosine(_joined(data, ITEM_TEXTS)),
    "tfidf-reviews": lambda data, write, seed: TfidfCosine(_joined(with_review_texts(data), (*ITEM_TEXTS, REVIEW))),
    "dssm": _two_towers,
    "encoder": lambda data, write, seed: EncoderCosine(data, "minilm", _present(data, (TITLE, DESCRIPTION))),
}
"""Name -> how it is made of a data folder. Those with reviews also read the training reviews of an item as its text; `dssm` is
trained on queries that are made of them."""
ENCODER = "encoder:"
"""Before the name or folder of another encoder than the packaged one."""


def search_baseline(name: str, data: RecommendationData, write: WriteQueries, seed: int = 0) -> QueryScorer:
    """Return a baseline of search over the items of a data folder.

    Args:
        name: one of `SEARCH_BASELINES`, or `encoder:NAME` with an encoder of `item_embeddings.embed_items`.
        data: the data folder; of its interactions only those of training are read.
        write: makes queries of reviews, for a baseline that is trained.
        seed: start of the random numbers of such a training.

    Raises:
        InputError: there is no such baseline (the nearest are named), or the items have no texts.
        MissingFileError, MissingPackageError: there is no such encoder, or it needs a package that is not installed.

    Example:
        >>> search_baseline("bm25", data, queries_of_reviews).score_queries(["a bright lamp"]).shape  # doctest: +SKIP
        (1, 148)
    """
    if name.startswith(ENCODER):
        return EncoderCosine(data, name.removeprefix(ENCODER), _present(data, (TITLE, DESCRIPTION)))
    if name not in SEARCH_BASELINES:
        hint = nearest(name, SEARCH_BASELINES, "choose one of them")
        raise InputError(f"no baseline of search {name!r}: there are {', '.join(SEARCH_BASELINES)} and {ENCODER}NAME; {hint}")
    return SEARCH_BASELINES[name](data, write, seed)


def _joined(data: RecommendationData, fields: Sequence[str]) -> list[str]:
    """Return one text of each item."""
    texts = item_texts(data.items, _present(data, fields), on_missing_text="empty")
    return [" ".join(filter(None, parts)) for parts in zip(*texts.values(), strict=True)]


def _present(data: RecommendationData, fields: Sequence[str]) -> list[str]:
    """Return the fields that the items have.

    Raises:
        InputError: they have none.
    """
    found = [field for field in fields if field in data.items.column_names]
    if not found:
        raise InputError(f"the items of {data.folder} have no texts to search in: none of {', '.join(fields)} is a column")
    return found


def _fitted(vectorizer: Any, texts: Sequence[str]) -> sparse.csr_array:
    """Return the matrix of texts and words, after the vectorizer has learned the words.

    Raises:
        InputError: there are none.
    """
    try:
        return sparse.csr_array(vectorizer.fit_transform(map(clean_text, texts)))
    except ValueError as error:
        if "vocabulary" not in str(error):
            raise
        raise InputError(f"the texts of {len(texts)} items have no word to search for; name another baseline") from error


__all__ = ["BM25", "SEARCH_BASELINES", "EncoderCosine", "MostPopular", "QueryScorer", "TfidfCosine", "search_baseline"]
