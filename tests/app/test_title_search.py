"""Search in titles: what is found, in which order, and against plain Python."""

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_cllm4rec.app.title_search import TitleSearch
from modeling_cllm4rec.core.catalogue import Catalogue

TITLES = ["Crème brûlée", "Ice cream, large", "Creamy soup", "Face cream", None, "Soap"]


@pytest.fixture(scope="module")
def search() -> TitleSearch:
    return TitleSearch(Catalogue(pa.table({"item_id": ["a1", "b2", "c3", "d4", "e5", "cream"], "title": TITLES})))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("cream", [5, 2, 3, 1]),  # its id; starts with it; holds it as a word, the shorter first
        ("CREME  brulee", [0]),
        ("ream", [3, 2, 1]),  # the middle of words
        ("cream large", [1]),
        ("E5", [4]),
        ("zzz", []),
        ("", []),
        (" ?! ", []),
        ("(", []),
    ],
)
def test_what_is_found_and_in_which_order(search, query, expected):
    found = search.find(query)
    assert found.items.tolist() == expected
    assert found.total == len(expected)


def test_limit_and_total(search):
    found = search.find("cream", 2)
    assert found.items.tolist() == [5, 2]
    assert found.total == 4
    with pytest.raises(ValueError, match="limit is 0; it must be 1 or more"):
        search.find("cream", 0)


def test_known_words(search):
    assert search.knows_a_word("qqq soup")
    assert not search.knows_a_word("qqq xyzzy")
    assert not search.knows_a_word("?")


def test_integer_ids_and_no_titles():
    search = TitleSearch(Catalogue([7, 70, 12]))
    assert search.find("7").items.tolist() == [0, 1]
    assert search.find("12").items.tolist() == [2]


@settings(max_examples=40)
@given(
    st.lists(st.text("abc ", min_size=1, max_size=8), min_size=1, max_size=20),
    st.text("abc ", max_size=4),
)
def test_equals_plain_python(titles, query):
    search = TitleSearch(Catalogue(pa.table({"item_id": [f"#{row}" for row in range(len(titles))], "title": titles})))
    words = query.split()
    expected = [row for row, title in enumerate(titles) if words and all(word in title for word in words)]
    assert search.all_with(query).tolist() == expected
    assert sorted(search.find(query, 100).items.tolist()) == expected


def test_a_hundred_thousand_items_are_quick():
    words = np.array(["soap", "cream", "organic", "lavender", "ounce", "bottle", "pack", "with", "brush", "kit"])
    rows = np.random.default_rng(0).choice(words, (100_000, 12))
    search = TitleSearch(Catalogue(pa.table({"item_id": np.arange(100_000), "title": [" ".join(row) for row in rows]})))
    started = time.perf_counter()
    found = search.find("organic soap", 8)
    assert time.perf_counter() - started < 2  # about 0.2 s; the rest is for a busy machine
    assert len(found.items) == 8 < found.total
