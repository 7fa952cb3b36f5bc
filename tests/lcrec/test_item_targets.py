"""Items that documents predict, and a teacher's shares of them: by hand, the chain rule, and the places in documents."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.baselines.ease import EASERecommender
from modeling_cllm4rec.baselines.soft_targets import Teacher
from modeling_cllm4rec.lcrec.item_targets import item_targets, level_shares, padded_histories
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds


def test_shares_by_hand() -> None:
    codes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]])
    items, probs = np.array([[3, 0, 2, -100], [2, -100, -100, -100]]), np.array([[0.5, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0]])
    shares = level_shares(codes, items, probs, np.array([1, 0]), 2)
    np.testing.assert_allclose(shares[0], [[0.8, 0.2], [0.375, 0.625], [0.0, 1.0]])  # below (0, 1): item 3 alone
    np.testing.assert_allclose(shares[1], [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])  # the teacher has nothing below (0,)


@given(st.integers(0, 10_000))
def test_the_product_of_levels_is_the_share_of_the_item(seed: int) -> None:
    random = np.random.default_rng(seed)
    levels, size = random.integers(1, 4), random.integers(2, 5)
    codes = np.stack(np.unravel_index(random.permutation(size**levels), (size,) * levels), axis=1)
    probs = random.dirichlet(np.ones(len(codes)))[None]
    true = random.integers(len(codes), size=1)
    shares = level_shares(codes, np.arange(len(codes))[None], probs, true, size)
    along = shares[0, np.arange(levels), codes[true[0]]]
    np.testing.assert_allclose(along.prod(), probs[0, true[0]], rtol=1e-4)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-5)


def test_the_places_of_predicted_items_and_the_histories_before_them() -> None:
    semantic_ids = SemanticIds(np.array([[0, 1], [1, 0], [1, 1]]), 2)
    weights = np.array([[0, 1, 3], [1, 0, 0], [0, 2, 0]], dtype=np.float32)
    first = 10  # tokens 10, 11 are the codes of the first level, 12, 13 those of the second
    row = np.array([1, 10, 13, 2, 11, 12, 2, 11, 13])  # items 0, 1, 2
    counted = np.isin(np.arange(9), [4, 5, 7, 8])
    alone = np.array([3, 11, 12])  # an item without one before it
    found = item_targets(semantic_ids, [alone, row], [np.ones(3, bool), counted], first)
    assert found.places.tolist() == [[1, 4], [1, 7]] and found.items.tolist() == [1, 2]
    assert [history.tolist() for history in found.histories] == [[0], [0, 1]]
    assert padded_histories(found.histories).tolist() == [[0, -100], [0, 1]]
    # After item 0: items 1 and 2 in the ratio 1 : 3. After items 0 and 1: item 2 alone.
    teacher = Teacher(EASERecommender(weights))
    shares = level_shares(semantic_ids.codes, *teacher.soft_targets(found.histories), found.items, 2)
    np.testing.assert_allclose(shares, [[[0, 1], [0.25, 0.75]], [[0, 1], [0, 1]]])
    nothing = item_targets(semantic_ids, [alone], [np.ones(3, bool)], first)
    assert nothing.places.shape == (0, 2) and padded_histories(nothing.histories).shape == (0, 1)
    assert level_shares(semantic_ids.codes, *teacher.soft_targets([]), nothing.items, 2).shape == (0, 2, 2)
