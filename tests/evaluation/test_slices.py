"""Slices of the true items: bins, and relations to the history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.released_files import read_lcrec_files
from modeling_cllm4rec.evaluation.ranking import histories_from_lists
from modeling_cllm4rec.evaluation.slices import (
    APART,
    COLD,
    RELATION,
    SLICES,
    TOGETHER,
    TRANSITION,
    kept_items,
    popularity_bins,
    quarter_bins,
    relation_marks,
    slice_targets,
)

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


TRAIN = [[0, 1, 2], [3, 1], [4, 5]]


def test_relations_by_hand() -> None:
    """The last item is 1: 2 came after it, 0 and 3 were together with it, 4 and 5 never were; 1 did not come after 3's user."""
    given, truth = histories_from_lists([[5, 1], [1], [], [6]]), histories_from_lists([[0, 2, 4], [3, 5], [1], [0]])
    marks = relation_marks(truth, given, histories_from_lists(TRAIN), 7, ordered=True)
    assert marks.tolist() == [1, 0, 1, 1, 2, 2, 2], "item 4 was together with 5, an earlier item of the history"
    unordered = relation_marks(truth, given, histories_from_lists(TRAIN), 7, ordered=False)
    assert unordered.tolist() == [1, 1, 1, 1, 2, 2, 2]


histories = st.lists(st.lists(st.integers(0, 7), max_size=5, unique=True), min_size=1, max_size=8)


@given(train=histories, rows=histories, ordered=st.booleans())
def test_relations_equal_loops(train: list[list[int]], rows: list[list[int]], ordered: bool) -> None:
    truth = [[item for item in range(8) if item not in row][:3] for row in rows]
    wanted = []
    for row, true in zip(rows, truth, strict=True):
        for item in true:
            follows = ordered and row and any((row[-1], item) in zip(one, one[1:], strict=False) for one in train)
            together = any(item in one and set(row) & set(one) for one in train)
            wanted.append(0 if follows else 1 if together else 2)
    parts = (histories_from_lists(truth), histories_from_lists(rows), histories_from_lists(train))
    assert relation_marks(*parts, 8, ordered=ordered).tolist() == wanted


def test_relations_over_batches_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    train, rows, truth = (
        histories_from_lists([generator.permutation(30)[: generator.integers(1, 6)].tolist() for _ in range(25)])
        for _ in range(3)
    )
    whole = relation_marks(truth, rows, train, 30, ordered=True)
    assert set(whole) == {0, 1, 2}
    monkeypatch.setattr("modeling_cllm4rec.evaluation.slices.USERS_AT_ONCE", 4)
    assert relation_marks(truth, rows, train, 30, ordered=True).tolist() == whole.tolist()


@given(train=histories, rows=histories)
def test_each_true_item_is_in_one_part_of_each_slice(train: list[list[int]], rows: list[list[int]]) -> None:
    truth = histories_from_lists([[item for item in range(8) if item not in row] for row in rows])
    found = list(slice_targets(truth, histories_from_lists(rows), histories_from_lists(train), 8, ordered=True))
    for name in SLICES:
        assert sum(marks.astype(int) for other, _, marks in found if other == name).tolist() == [1] * len(truth.items)
    labels = [label for name, label, _ in found if name == RELATION]
    assert labels == [label for label in (TRANSITION, TOGETHER, APART) if label in labels]


def test_kept_items_keep_their_users() -> None:
    truth = histories_from_lists([[4, 5], [], [6]])
    kept = kept_items(truth, np.array([True, False, False]))
    assert kept.indptr.tolist() == [0, 1, 1, 1] and kept.items.tolist() == [4]


SCIENTIFIC = Path(__file__).parents[2].parent / "shared" / "data" / "lcrec-scientific"


@pytest.mark.slow
@pytest.mark.skipif(not SCIENTIFIC.is_dir(), reason=f"needs the data in {SCIENTIFIC}")
def test_shares_of_scientific(tmp_path: Path) -> None:
    """9.7% of the test items continue a transition, 33.5% were otherwise together with the history: counted with other code."""
    tables = read_lcrec_files(SCIENTIFIC)
    data = prepare_tables(tables.interactions, tables.items, None, tmp_path / "data", split="leave-one-out", order="rows")
    given = data.histories("train", "validation")
    marks = relation_marks(data.histories("test"), given, data.histories("train"), data.num_items, ordered=True)
    assert np.bincount(marks) / len(marks) == pytest.approx(np.array([0.097, 0.335, 0.568]), abs=1e-3)
