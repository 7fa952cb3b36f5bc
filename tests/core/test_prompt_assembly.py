"""Prompts as token ids: what is kept when the context is short, and padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.core.prompt_assembly import build_input_ids, pad_right

SEGMENTS = [[1, 2], "user", [3], "items", [4, 5]]


def test_pieces_keep_their_order():
    assert build_input_ids(SEGMENTS, user=10, items=[20, 21]).tolist() == [1, 2, 10, 3, 20, 21, 4, 5]
    assert build_input_ids(["user", [7], "item"], user=10, item=30).tolist() == [10, 7, 30]
    assert build_input_ids(SEGMENTS, user=10).tolist() == [1, 2, 10, 3, 4, 5]  # an empty history
    assert build_input_ids([]).tolist() == []
    assert build_input_ids(SEGMENTS, user=10, items=np.array([20], np.int32)).dtype == np.int64


def test_the_last_items_and_the_closing_words_stay():
    items = list(range(20, 40))
    assert build_input_ids(SEGMENTS, user=10, items=items, max_length=8).tolist() == [1, 2, 10, 3, 38, 39, 4, 5]
    assert build_input_ids(SEGMENTS, user=10, items=items, max_length=7).tolist() == [1, 2, 10, 3, 39, 4, 5]


@given(st.lists(st.integers(100, 200), max_size=30), st.integers(7, 50))
def test_a_cut_prompt_is_the_prompt_of_the_last_items(items, max_length):
    fitted = build_input_ids(SEGMENTS, user=10, items=items, max_length=max_length)
    assert len(fitted) == min(max_length, 6 + len(items))
    assert fitted.tolist() == build_input_ids(SEGMENTS, user=10, items=items[-(max_length - 6) :]).tolist()


def test_no_room_for_any_item():
    with pytest.raises(ValueError, match="own words take 6 tokens and the context holds 6: no item of the history fits"):
        build_input_ids(SEGMENTS, user=10, items=[20], max_length=6)


@pytest.mark.parametrize(("segments", "name"), [(["user"], "user"), ([[1], "item"], "item"), (["brand"], "brand")])
def test_a_placeholder_without_its_token(segments, name):
    with pytest.raises(ValueError, match=f"the prompt has the placeholder '{name}', but its token is missing; pass {name}="):
        build_input_ids(segments)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5), st.integers(-1, 3))
def test_pad_right_equals_padding_row_by_row(rows, value):
    longest = max((len(row) for row in rows), default=0)
    padded = pad_right([np.array(row, dtype=np.int64) for row in rows], value)
    assert padded.shape == (len(rows), longest)
    assert padded.tolist() == [row + [value] * (longest - len(row)) for row in rows]
