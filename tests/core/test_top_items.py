"""Exact top-k: against a full sort, with ties, infinities and every width of float."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modeling_cllm4rec.core import top_items as module
from modeling_cllm4rec.core.top_items import RunningTop, items_per_piece, top_candidates, top_items

FLOATS = st.floats(width=32, allow_nan=False)
FEW = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1e-45, 1.0, np.inf])  # many ties


def full_sort(scores: np.ndarray, k: int) -> tuple[list, list]:
    """Return indices by falling score, then rising index; -1 for items that are not candidates."""
    rows = [sorted(range(scores.shape[1]), key=lambda item, row=row: (-row[item], item))[:k] for row in scores]
    values = [[float(row[item]) for item in order] for row, order in zip(scores, rows, strict=True)]
    return [
        [-1 if value == -np.inf else item for item, value in zip(*pair, strict=True)] for pair in zip(rows, values, strict=True)
    ], values


@given(st.data(), arrays.array_shapes(min_dims=2, max_dims=2, max_side=12), st.sampled_from([FLOATS, FEW]))
def test_equals_a_full_sort(data, shape, elements):
    scores = data.draw(arrays.arrays(np.float32, shape, elements=elements))
    k = data.draw(st.integers(1, shape[1]))
    indices, values = top_items(torch.from_numpy(scores), k)
    assert (indices.tolist(), values.tolist()) == full_sort(scores, k)


def test_ties_that_cross_the_last_place():
    assert top_items(torch.tensor([[1.0, 3.0, 1.0, 1.0]]), 3)[0].tolist() == [[1, 0, 2]]
    assert top_items(torch.zeros(1, 1000), 5)[0].tolist() == [[0, 1, 2, 3, 4]]
    assert top_items(torch.tensor([[0.0, -0.0, 0.0]]), 3)[0].tolist() == [[0, 1, 2]]


def test_a_row_with_fewer_items_left_than_k():
    indices, values = top_items(torch.tensor([[float("-inf"), 2.0, float("-inf")]]), 2)
    assert indices.tolist() == [[1, -1]]
    assert values.tolist() == [[2.0, float("-inf")]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types(dtype):
    indices, values = top_items(torch.tensor([[0.5, 2.0, -1.0]], dtype=dtype), 3)
    assert indices.tolist() == [[1, 0, 2]]
    assert values.dtype == torch.float32


def test_scores_are_left_as_they_are():
    scores = torch.tensor([[-0.0, 1.0]])
    top_items(scores, 1)
    assert torch.signbit(scores[0, 0])


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k is {k}; it must lie between 1 and the number of items to choose from, 3"):
        top_items(torch.zeros(1, 3), k)


def test_nan_is_no_score():
    with pytest.raises(ValueError, match="scores hold NaN: the model's weights or inputs are broken"):
        top_items(torch.tensor([[0.0, float("nan")]]), 1)


@given(st.data(), arrays.array_shapes(min_dims=2, max_dims=2, max_side=12), st.sampled_from([FLOATS, FEW]))
def test_pieces_change_nothing(data, shape, elements):
    scores = data.draw(arrays.arrays(np.float32, shape, elements=elements))
    rows, items = shape
    some_items, chosen_items = (st.lists(st.integers(0, items - 1), unique=True, min_size=least) for least in (0, 1))
    seen = [np.array(data.draw(some_items), dtype=np.int64) for _ in range(rows)]
    candidates = data.draw(st.none() | chosen_items.map(lambda found: np.array(sorted(found))))
    k = data.draw(st.integers(1, items if candidates is None else len(candidates)))
    size = data.draw(st.integers(1, items))
    whole = top_candidates(torch.from_numpy(scores.copy()), seen, k, candidates)
    pieces = top_candidates(torch.from_numpy(scores.copy()).split(size, dim=1), seen, k, candidates)
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(one, other)
    # A second implementation: remove, sort, number again.
    for row, forbidden in zip(scores, seen, strict=True):
        row[forbidden] = -np.inf
    chosen = np.arange(items) if candidates is None else candidates
    indices, values = full_sort(scores[:, chosen], k)
    assert whole[0].tolist() == [[-1 if place < 0 else int(chosen[place]) for place in row] for row in indices]
    assert whole[1].tolist() == values


def test_a_piece_is_sorted_in_constant_memory(monkeypatch):
    assert [items_per_piece(rows) for rows in (0, 1, 256, 100_000)] == [1 << 22, 1 << 22, 16384, 1024]
    sizes = []
    add = RunningTop.add
    monkeypatch.setattr(RunningTop, "add", lambda self, scores: (sizes.append(scores.shape), add(self, scores))[1])
    monkeypatch.setattr(module, "SCORES_PER_PIECE", 0)
    assert top_items(torch.arange(3000.0)[None], 2)[0].tolist() == [[2999, 2998]]
    assert sizes == [(1, 1024), (1, 1024), (1, 952)]


def test_item_indices_beyond_31_bits_are_kept():
    best = RunningTop(1)
    best.num_items = (1 << 32) - 2
    best.add(torch.tensor([[1.0, 2.0]]))
    assert best.found()[0].tolist() == [[(1 << 32) - 1]]
