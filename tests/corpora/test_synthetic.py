import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_cllm4rec.corpora.synthetic import QUALITIES, SyntheticDataset, make_synthetic_dataset


@pytest.fixture(scope="module")
def world() -> SyntheticDataset:
    return make_synthetic_dataset()


def matrices(world: SyntheticDataset) -> tuple[np.ndarray, np.ndarray]:
    """Train and test indicator matrices: each user's last interaction in the table is the test one."""
    users = {u: k for k, u in enumerate(world.users["user_id"].to_pylist())}
    items = {j: k for k, j in enumerate(world.items["item_id"].to_pylist())}
    train, last = np.zeros((len(users), len(items))), {}
    for user, item in zip(world.interactions["user_id"].to_pylist(), world.interactions["item_id"].to_pylist(), strict=True):
        train[users[user], items[item]] = 1
        last[users[user]] = items[item]
    test = np.zeros_like(train)
    for user, item in last.items():
        test[user, item], train[user, item] = 1, 0
    return train, test


def ndcg_at_10(scores: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """With one true item each, NDCG is 1 / log2(rank + 1), and 0 beyond rank 10."""
    scores = np.where(train > 0, -np.inf, scores)
    ranks = 1 + (scores > scores[test > 0][:, None]).sum(axis=1)
    return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean())


def test_columns_and_types(world):
    assert [str(f.type) for f in world.interactions.schema] == ["string", "string", "int64", "int64", "string"]
    assert world.interactions.column_names == ["user_id", "item_id", "rating", "timestamp", "review"]
    assert world.items.column_names == ["item_id", "title", "brand", "categories", "description"]
    assert str(world.items.schema.field("categories").type) == "list<item: string>"
    assert world.users.column_names == ["user_id", "biography"]
    assert (world.users.num_rows, world.items.num_rows) == (600, 240)


def test_same_seed_same_world_other_seed_another(world):
    again, other = make_synthetic_dataset(), make_synthetic_dataset(seed=1)
    assert all(a.equals(b) for a, b in zip(world, again, strict=True))
    assert not any(a.equals(b) for a, b in zip(world, other, strict=True))


def test_one_row_per_pair_in_order_of_time(world):
    pairs = list(zip(world.interactions["user_id"].to_pylist(), world.interactions["item_id"].to_pylist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    times = world.interactions["timestamp"].to_numpy()
    assert (np.diff(times) >= 0).all()


def test_numbers_of_interactions_and_ratings(world):
    counts = np.unique(world.interactions["user_id"].to_pylist(), return_counts=True)[1]
    assert (counts.min(), counts.max(), len(counts)) == (9, 17, 600)
    ratings = world.interactions["rating"].to_numpy()
    assert set(ratings) == {1, 2, 3, 4, 5}
    assert 0.7 < (ratings >= 4).mean() < 0.9


def test_ids_are_unique_and_of_awkward_shape(world):
    for ids in (world.users["user_id"].to_pylist(), world.items["item_id"].to_pylist()):
        assert len(set(ids)) == len(ids)
        for mark in (" ", "🦊", "Zoë/", "<", '"', "商"):
            assert any(mark in i for i in ids), mark
        assert any(i.startswith("00") for i in ids)
    assert any(i.startswith("item_") for i in world.items["item_id"].to_pylist())
    assert "user_8" in world.users["user_id"].to_pylist()
    assert world.users["user_id"].to_pylist().index("user_8") != 8


def test_words_follow_from_traits(world):
    titles = world.items["title"].to_pylist()
    assert len(set(titles)) == len(titles)
    assert all(any(quality in title for quality in QUALITIES) for title in titles)
    reviews = [review for review in world.interactions["review"].to_pylist() if review is not None]
    assert 0.85 < len(reviews) / world.interactions.num_rows < 0.95
    assert len(set(reviews)) > 0.9 * len(reviews)
    texts = [*reviews, *world.items["description"].to_pylist(), *filter(None, world.users["biography"].to_pylist())]
    assert not any("{" in text or "  " in text or text != text.strip() for text in texts)


def test_happy_reviews_come_with_high_ratings(world):
    rows = zip(world.interactions["rating"].to_pylist(), world.interactions["review"].to_pylist(), strict=True)
    wishes = {rating for rating, review in rows if review is not None and "I would not buy it again" in review}
    assert wishes == {1, 2}


def test_who_chose_what_predicts_what_comes_next(world):
    train, test = matrices(world)
    popularity = ndcg_at_10(np.tile(train.sum(axis=0), (len(train), 1)), train, test)
    gram = train.T @ train
    cosine = gram / (np.sqrt(np.outer(gram.diagonal(), gram.diagonal())) + 20)
    np.fill_diagonal(cosine, 0)
    assert ndcg_at_10(train @ cosine, train, test) > 5 * popularity


def test_without_taste_there_is_nothing_to_learn():
    world = make_synthetic_dataset(taste_strength=0.0, popularity_spread=0.0)
    train, test = matrices(world)
    gram = train.T @ train
    np.fill_diagonal(gram, 0)
    assert ndcg_at_10(train @ gram, train, test) < 0.04  # chance is 0.02


def test_popularity_is_moderately_skewed(world):
    counts = np.sort(np.unique(world.interactions["item_id"].to_pylist(), return_counts=True)[1])[::-1]
    assert 0.12 < counts[: len(counts) // 10].sum() / counts.sum() < 0.3


@settings(max_examples=15)
@given(users=st.integers(1, 20), extra_items=st.integers(0, 30), mean=st.integers(5, 9), seed=st.integers(0, 10**9))
def test_any_size(users, extra_items, mean, seed):
    world = make_synthetic_dataset(users, 2 * mean + extra_items, seed, mean)
    assert world.users.num_rows == users
    assert users * (mean - 4) <= world.interactions.num_rows <= users * (mean + 4)
    assert set(world.interactions["user_id"].to_pylist()) == set(world.users["user_id"].to_pylist())
    assert set(world.interactions["item_id"].to_pylist()) <= set(world.items["item_id"].to_pylist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 0}, "num_users is 0; it must be at least 1"),
        ({"num_items": 25}, "num_items is 25; with interactions_per_user=13 at least 26"),
        ({"interactions_per_user": 4}, "interactions_per_user is 4; it must be at least 5"),
        ({"seed": -1}, "seed is -1; it must be 0 or greater"),
        ({"taste_strength": -0.5}, "taste_strength is -0.5; it must be 0 or greater, and finite"),
        ({"popularity_spread": float("nan")}, "popularity_spread is nan; it must be 0 or greater, and finite"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_synthetic_dataset(**arguments)
