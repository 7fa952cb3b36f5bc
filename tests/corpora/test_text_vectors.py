"""Text vectors of items."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from modeling_cllm4rec.corpora.text_vectors import text_vectors, tfidf_vectors, whitened_rows, with_review_texts

TEXTS = ["red red lamp", "red pot", "the lamp", "", "blue pot"]


def test_tfidf_by_hand():
    """Of lamp, pot and red each is in two of five texts; blue is in one and the is a stop word."""
    vectors = tfidf_vectors(TEXTS, max_share=0.5)
    idf = 1 + np.log(6 / 3)
    first = np.array([idf, 0, (1 + np.log(2)) * idf])
    wanted = [first / np.linalg.norm(first), [0, 2**-0.5, 2**-0.5], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert vectors.dtype == np.float32
    assert vectors.toarray() == pytest.approx(np.array(wanted), abs=1e-6)


def test_no_shared_word():
    with pytest.raises(ValueError, match="the texts of 2 items share no word that is in 2 or more of them"):
        tfidf_vectors(["red", "blue"])


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("dimensions", [12, 300], ids=["few", "many"])
def test_whitened_rows_are_uncorrelated(kind, dimensions):
    generator = np.random.default_rng(0)
    vectors = (generator.random((80, dimensions)) * generator.random(dimensions) ** 3).astype(np.float32)
    vectors[::5] = 0
    rows = whitened_rows(kind(vectors), 8)
    known = rows[vectors.any(axis=1)]
    assert rows.shape == (80, 8) and rows.dtype == np.float32
    assert (rows[::5] == 0).all()
    assert known.mean(axis=0) == pytest.approx(np.zeros(8), abs=1e-5)
    assert known.T @ known / len(known) == pytest.approx(np.eye(8), abs=1e-4)


def test_dimensions_beyond_the_rank_are_zero():
    rows = whitened_rows(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]), 3)
    assert rows[:, 1:].tolist() == [[0.0, 0.0]] * 3
    assert np.abs(rows[:, 0]) == pytest.approx(np.array([1.5**0.5, 0, 1.5**0.5]), abs=1e-6)


def test_reviews_of_training_pairs_are_joined(data):
    joined = with_review_texts(data).items["review"].to_pylist()
    reviews = data.reviews().to_pylist()
    item = reviews[0]["item_index"]
    assert joined[item] == " ".join(row["review"] for row in reviews if row["item_index"] == item)
    taken = dataclasses.replace(data, items=data.items.append_column("review", data.items["item_id"]))
    with pytest.raises(ValueError, match="the items have a column 'review', which is the name for their training reviews"):
        with_review_texts(taken)


def test_default_fields(data):
    columns = data.items.column_names
    assert {"title", "description"} <= set(columns)
    named = [field for field in ("title", "brand", "categories", "description") if field in columns]
    assert (text_vectors(data) != text_vectors(data, fields=named)).nnz == 0


def test_refuses_data_without_texts(data):
    bare = dataclasses.replace(data, items=data.items.select(["item_id"]))
    silent = dataclasses.replace(bare, interactions=bare.interactions.drop_columns(["review"]))
    with pytest.raises(ValueError, match="the items have no text: none of title, brand, categories, description is a column"):
        text_vectors(silent)
    empty = pa.table({"item_id": data.items["item_id"], "title": pa.array([""] * data.num_items)})
    with pytest.raises(ValueError, match="no item has a text in title; choose other fields"):
        text_vectors(dataclasses.replace(data, items=empty))
