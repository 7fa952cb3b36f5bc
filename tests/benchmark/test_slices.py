"""Bins of items and of users."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.benchmark.slices import COLD, popularity_bins, quarter_bins

counts = st.lists(st.integers(0, 40), min_size=1, max_size=60).map(np.array)


@given(counts)
def test_each_value_is_in_exactly_one_bin(values: np.ndarray) -> None:
    for bins in (quarter_bins(values), popularity_bins(values)):
        inside = sum(((values >= part.low) & (values <= part.high)).astype(int) for part in bins)
        assert (inside == 1).all()
        assert len(bins) <= 5


@given(counts)
def test_cold_items_are_a_bin_of_their_own(values: np.ndarray) -> None:
    bins = popularity_bins(values)
    assert (bins[0].label == "0-4") == bool((values < COLD).any())
    assert all(part.low >= COLD for part in bins[bool((values < COLD).any()) :])


def test_no_values_no_bins() -> None:
    assert quarter_bins(np.array([], dtype=int)) == []
