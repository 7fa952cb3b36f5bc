"""Rows of different lengths in one array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.prompt_assembly import build_batch_ids, build_input_ids
from modeling_cllm4rec.core.ragged import RaggedRows, joined_spans, span_positions

LISTS = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6)
WORDS = st.lists(st.integers(100, 109), min_size=1, max_size=3)
TEMPLATES = st.lists(st.lists(WORDS | st.sampled_from(["user", "items"]), min_size=1, max_size=5), min_size=1, max_size=3)


@given(rows=LISTS)
def test_rows_are_a_sequence_of_arrays(rows: list[list[int]]) -> None:
    ragged = RaggedRows.of([np.array(row, dtype=np.int32) for row in rows])
    assert [row.tolist() for row in ragged] == rows
    assert [ragged[number].tolist() for number in range(-len(rows), len(rows))] == 2 * rows
    assert [row.tolist() for row in ragged[1:3]] == rows[1:3]
    assert ragged.lengths.tolist() == list(map(len, rows))
    assert ragged.values.dtype == np.int64
    assert RaggedRows.of(ragged) is ragged
    width = max(map(len, rows), default=0)
    assert ragged.padded(-1).tolist() == [row + [-1] * (width - len(row)) for row in rows]
    with pytest.raises(IndexError):
        ragged[len(rows)]


@given(spans=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), max_size=8))
def test_spans_are_joined_in_their_order(spans: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    expected = [position for start, length in spans for position in range(start, start + length)]
    assert span_positions(starts, lengths).tolist() == expected
    (row,) = joined_spans(np.arange(100, 130), starts[None], lengths[None])
    assert row.tolist() == [100 + position for position in expected]


@given(templates=TEMPLATES, data=st.data())
def test_a_batch_is_its_prompts_built_one_by_one(templates: list[list[object]], data: st.DataObject) -> None:
    rows = data.draw(LISTS.filter(bool))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(templates) - 1), min_size=len(rows), max_size=len(rows))))
    users = 200 + np.arange(len(rows))
    limit = data.draw(st.none() | st.integers(1, 30))
    arguments = [(templates[number], int(user), row) for number, user, row in zip(chosen, users, rows, strict=True)]
    together = {"users": users, "items": RaggedRows.of(map(np.array, rows)), "max_length": limit}
    try:
        expected = [build_input_ids(one, user=user, items=row, max_length=limit).tolist() for one, user, row in arguments]
    except InputError:
        with pytest.raises(InputError, match="the prompt's own words take .* tokens and the context holds"):
            build_batch_ids(templates, chosen, **together)  # type: ignore[arg-type]
        return
    assert [row.tolist() for row in build_batch_ids(templates, chosen, **together)] == expected  # type: ignore[arg-type]


def test_a_batch_has_no_other_placeholders() -> None:
    with pytest.raises(InputError, match="the prompt has the placeholder 'item'; in a batch there are 'user' and 'items'"):
        build_batch_ids([["item"]], np.array([0]), users=np.array([0]), items=RaggedRows.of([np.array([1])]))
