"""Prompts of item indices, by hand and against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.lcrec.prompts import items_that_fit, semantic_id_prompt, semantic_id_tokens

CODES = np.array([[0, 1], [2, 3], [1, 1]], dtype=np.int32)
FIRST, SIZE = 100, 4


def prompt(pieces: list[Any], codes: np.ndarray = CODES, separator: tuple[int, ...] = (9,), **more: Any) -> list[int]:
    return semantic_id_prompt(pieces, codes, list(separator), FIRST, SIZE, **more).tolist()


def test_index_tokens() -> None:
    assert semantic_id_tokens(CODES, FIRST, SIZE).tolist() == [[100, 105], [102, 107], [101, 105]]
    assert semantic_id_tokens(CODES, FIRST, SIZE).dtype == np.int64


def test_a_history_at_the_end_is_open_for_the_next_item() -> None:
    assert prompt([[1, 2], "items"]) == [1, 2, 100, 105, 9, 102, 107, 9, 101, 105, 9]
    assert prompt([[1], "items"], separator=(8, 9)) == [1, 100, 105, 8, 9, 102, 107, 8, 9, 101, 105, 8, 9]
    assert prompt(["items"], separator=()) == [100, 105, 102, 107, 101, 105]


def test_a_history_amid_words_is_closed() -> None:
    assert prompt([[1], "items", [2]]) == [1, 100, 105, 9, 102, 107, 9, 101, 105, 2]
    assert prompt([[1], "items", [2], "query", [3]], query=[50, 51]) == [1, 100, 105, 9, 102, 107, 9, 101, 105, 2, 50, 51, 3]
    assert prompt([[1], "query"], codes=CODES[:0], query=[50]) == [1, 50]


def test_the_oldest_items_go_first_and_whole() -> None:
    open_end = [prompt([[1, 2], "items"], max_length=length) for length in (5, 7, 8, 10, 11, 99)]
    assert [len(one) for one in open_end] == [5, 5, 8, 8, 11, 11]
    assert open_end[0] == [1, 2, 101, 105, 9]
    closed = [prompt([[1], "items", [2]], max_length=length) for length in (4, 6, 7, 9, 10)]
    assert closed[0] == closed[1] == [1, 101, 105, 2]
    assert [len(one) for one in closed] == [4, 4, 7, 7, 10]


@given(
    codes=st.lists(st.lists(st.integers(0, SIZE - 1), min_size=3, max_size=3), min_size=1, max_size=6),
    before=st.lists(st.integers(0, 50), max_size=3),
    after=st.lists(st.integers(0, 50), max_size=3),
    separator=st.lists(st.integers(60, 70), max_size=2),
    room=st.integers(0, 30),
)
def test_against_a_plain_loop(
    codes: list[list[int]], before: list[int], after: list[int], separator: list[int], room: int
) -> None:
    pieces: list[Any] = [*([before] if before else []), "items", *([after] if after else [])]

    def whole(items: list[list[int]]) -> list[int]:
        row = list(before)
        for place, item in enumerate(items):
            row += [FIRST + level * SIZE + code for level, code in enumerate(item)]
            if place + 1 < len(items) or not after:
                row += separator
        return row + after

    fitting = [whole(codes[-many:]) for many in range(len(codes), 0, -1) if len(whole(codes[-many:])) <= room]
    if fitting:
        assert prompt(pieces, np.array(codes), tuple(separator), max_length=room) == fitting[0]
    else:
        with pytest.raises(ValueError, match="so no item of the history fits"):
            prompt(pieces, np.array(codes), tuple(separator), max_length=room)


@given(room=st.integers(0, 60), levels=st.integers(1, 5), separator=st.integers(0, 3), closed=st.booleans())
def test_items_that_fit(room: int, levels: int, separator: int, closed: bool) -> None:
    def taken(items: int) -> int:
        return items * (levels + separator) - (0 if closed or not items else separator)

    fit = items_that_fit(room, levels, separator, closed)
    assert taken(fit) <= room < taken(fit + 1)
    assert items_that_fit(np.array([room]), levels, separator, closed).tolist() == [fit]


def test_what_is_missing_is_an_error() -> None:
    with pytest.raises(ValueError, match="the history is empty, and the prompt has a place for one"):
        prompt([[1], "items"], codes=CODES[:0])
    with pytest.raises(ValueError, match="the query has no words, and the prompt has a place for one"):
        prompt([[1], "query"])
    with pytest.raises(ValueError, match="the placeholder .title.; it must be .items. or .query."):
        prompt([[1], "title"])
    with pytest.raises(ValueError, match="the prompt takes 3 tokens and 2 fit; shorten the query"):
        prompt([[1], "query"], query=[5, 6], max_length=2)
