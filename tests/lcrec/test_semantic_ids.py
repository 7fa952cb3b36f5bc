"""Indices: unique for any input, as near as there is room, and Sinkhorn's balance."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.lcrec import semantic_ids
from modeling_cllm4rec.lcrec.semantic_ids import (
    SemanticIds,
    assign_unique_codes,
    codes_with_room,
    nearest_codes,
    nearest_free_codes,
    residuals,
    row_numbers,
    shared_codes,
    sinkhorn,
    squared_distances_to,
)
from modeling_cllm4rec.tokenization.tokenization_lcrec import semantic_id_token


def plain_sinkhorn(distances: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Straight from the definition, every round in the log domain."""
    middle, half = (distances.max() + distances.min()) / 2, (distances.max() - distances.min()) / 2
    log_q = -(distances - middle) / half / epsilon
    for _ in range(iterations):
        log_q -= np.logaddexp.reduce(log_q, axis=0, keepdims=True) + np.log(log_q.shape[1] / log_q.shape[0])
        log_q -= np.logaddexp.reduce(log_q, axis=1, keepdims=True)
    return np.exp(log_q)


@st.composite
def worlds(draw):
    """Latents (many rows alike), codebooks, and wishes that may collide."""
    levels, size = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    items = draw(st.integers(1, size**levels))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    latents = generator.normal(size=(items, 2))
    twins = generator.integers(0, items, items)
    latents = latents[np.where(generator.random(items) < draw(st.sampled_from([0.0, 0.5, 1.0])), twins, np.arange(items))]
    codebooks = generator.normal(size=(levels, size, 2))
    wishes = generator.integers(0, size, (items, levels)) if draw(st.booleans()) else None
    return latents, codebooks, wishes


@given(worlds())
def test_no_two_items_ever_share_an_index(world):
    latents, codebooks, wishes = world
    codes = assign_unique_codes(latents, codebooks, wishes)
    assert codes.shape == (len(latents), len(codebooks))
    assert codes.min() >= 0 and codes.max() < codebooks.shape[1]
    assert len(shared_codes(codes)) == 0
    assert np.array_equal(codes, assign_unique_codes(latents, codebooks, wishes))
    if wishes is not None and len(shared_codes(wishes)) == 0:
        assert np.array_equal(codes, wishes)  # who is in no conflict stays


def unique_codes_prefix_by_prefix(latents: np.ndarray, codebooks: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Assign codes likewise, but look at every prefix."""
    (levels, size, _), result = codebooks.shape, codes.astype(np.int32)
    for level in range(levels):
        for prefix in sorted({tuple(row) for row in result[:, :level].tolist()}):
            items = np.flatnonzero((result[:, :level] == prefix).all(axis=1))
            before = result[items, level].copy()
            result[items, level] = codes_with_room(latents, codebooks, result, items, level, size ** (levels - level - 1))
            moved = items[result[items, level] != before]
            if len(moved) and level + 1 < levels:
                rest = residuals(latents[moved], codebooks, result[moved], level + 1)
                result[moved, level + 1 :] = nearest_codes(rest, codebooks[level + 1 :])
    return result


@given(worlds())
def test_only_crowded_prefixes_have_to_be_looked_at(world):
    latents, codebooks, wishes = world
    wishes = nearest_codes(latents, codebooks) if wishes is None else wishes
    expected = unique_codes_prefix_by_prefix(latents, codebooks, wishes)
    assert np.array_equal(assign_unique_codes(latents, codebooks, wishes), expected)


@given(worlds(), st.integers(1, 4))
def test_the_assignment_does_not_depend_on_the_pieces(world, at_once):
    latents, codebooks, wishes = world
    latents, codebooks = (4 * latents).round(), (4 * codebooks).round()  # sums of small integers have no rounding
    whole = assign_unique_codes(latents, codebooks, wishes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic_ids, "ITEMS_AT_ONCE", at_once)
        assert np.array_equal(assign_unique_codes(latents, codebooks, wishes), whole)


@given(worlds(), st.integers(0, 4))
def test_new_items_take_the_nearest_code_with_room(world, count):
    """Counted again for every item, over all rows."""
    latents, codebooks, wishes = world
    rows = assign_unique_codes(latents, codebooks, wishes)
    levels, size, _ = codebooks.shape
    new = np.random.default_rng(1).normal(size=(min(count, size**levels - len(rows)), 2))
    found = nearest_free_codes(new, codebooks, rows)
    for latent, codes in zip(new, found, strict=True):
        rest, chosen = latent.copy(), []
        for level, vectors in enumerate(codebooks):
            below = rows[(rows[:, :level] == chosen).all(axis=1), level]
            full = np.bincount(below, minlength=size) >= size ** (levels - level - 1)
            chosen.append(int(np.where(full, np.inf, squared_distances_to(rest[None], vectors)[0]).argmin()))
            rest -= vectors[chosen[-1]]
        assert codes.tolist() == chosen
        rows = np.concatenate([rows, codes[None]])


@given(worlds(), st.integers(0, 3))
def test_new_items_never_take_what_is_taken(world, count):
    latents, codebooks, wishes = world
    taken = assign_unique_codes(latents, codebooks, wishes)
    count = min(count, codebooks.shape[1] ** len(codebooks) - len(taken))
    new = nearest_free_codes(np.random.default_rng(0).normal(size=(count, 2)), codebooks, taken)
    assert len(shared_codes(np.concatenate([taken, new]))) == 0


@given(st.integers(0, 30), st.integers(1, 4), st.sampled_from([1, 2, 3, 2**31 - 1]), st.integers(0, 100))
def test_shared_codes_are_those_that_occur_twice(items, levels, size, seed):
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, size, (items, levels)).astype(np.int32)
    codes = codes[generator.integers(0, items, items)] if items and seed % 2 else codes
    rows = [tuple(row) for row in codes.tolist()]
    assert shared_codes(codes).tolist() == [item for item, row in enumerate(rows) if rows.count(row) > 1]
    numbers = row_numbers(codes, size)
    order = sorted(range(items), key=rows.__getitem__)
    assert sorted(range(items), key=numbers.__getitem__) == order
    assert len(set(numbers.tolist())) == len(set(rows))


def test_twins_part_at_the_last_level_jointly_at_the_least_distance():
    codebooks = np.array([[[0.0], [10.0]], [[0.0], [1.0]]])
    latents = np.array([[0.9], [1.0], [10.0]])  # the first two ask for (0, 1)
    assert nearest_codes(latents, codebooks).tolist() == [[0, 1], [0, 1], [1, 0]]
    # .9 -> 0 costs .81 + 0, 1.0 -> 0 costs 1 + .01: the first moves
    assert assign_unique_codes(latents, codebooks).tolist() == [[0, 0], [0, 1], [1, 0]]


def test_a_group_larger_than_the_codebook_spills_to_the_next_prefix():
    codebooks = np.array([[[0.0], [1.0], [9.0]], [[0.0], [0.1], [0.2]]])
    latents = np.array([[0.0], [0.0], [0.0], [0.01]])  # all ask for prefix 0, which has room for three
    codes = assign_unique_codes(latents, codebooks)
    assert sorted(codes[:, 0].tolist()) == [0, 0, 0, 1]
    assert codes[3, 0] == 1  # the farthest one goes, to the nearest prefix with room


@given(st.integers(0, 1000))
def test_at_the_last_level_the_assignment_is_the_best_there_is(seed):
    generator = np.random.default_rng(seed)
    latents, codebooks = generator.normal(size=(4, 2)), generator.normal(size=(1, 4, 2))
    cost = squared_distances_to(latents, codebooks[0])
    codes = assign_unique_codes(latents, codebooks)[:, 0]
    if len(np.unique(nearest_codes(latents, codebooks))) < 4:
        best = min(cost[np.arange(4), list(order)].sum() for order in itertools.permutations(range(4)))
        assert cost[np.arange(4), codes].sum() == pytest.approx(best)


def test_distances_and_residuals_by_hand():
    np.testing.assert_allclose(squared_distances_to(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])), [[4.0, 1.0]])
    codebooks = np.array([[[1.0], [4.0]], [[-1.0], [0.5]]])
    assert nearest_codes(np.array([[4.6], [0.0]]), codebooks).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("shape", [(40, 5), (5, 40), (12, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sinkhorn_equals_its_definition(shape, dtype):
    distances = np.random.default_rng(1).random(shape)
    expected = plain_sinkhorn(distances, 0.003, 50)
    found = sinkhorn(torch.from_numpy(distances).to(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 if dtype == torch.float32 else 1e-9)


def test_sinkhorn_balances():
    plan = sinkhorn(torch.rand(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0.05, 500)
    torch.testing.assert_close(plan.sum(1), torch.ones(60, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 10.0, dtype=torch.float64))


def test_sinkhorn_with_sums_below_the_smallest_numbers():
    distances = torch.linspace(0, 1, 8)[None].repeat(64, 1) ** 4 * torch.linspace(0.9, 1, 64)[:, None]
    found = sinkhorn(distances, 0.0005, 50)
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found.numpy(), plain_sinkhorn(distances.double().numpy(), 0.0005, 50), atol=2e-3)


def test_all_alike_is_a_uniform_plan():
    torch.testing.assert_close(sinkhorn(torch.ones(4, 2)), torch.full((4, 2), 0.5))


def test_three_thousand_items_of_one_embedding():
    codes = assign_unique_codes(np.zeros((3000, 4)), np.random.default_rng(0).normal(size=(3, 16, 4)))
    assert len(shared_codes(codes)) == 0


class TestSemanticIds:
    def test_words(self):
        assert SemanticIds(np.array([[12, 3, 200, 7]]), 256).semantic_id_text(0) == "<a_12><b_3><c_200><d_7>"
        assert semantic_id_token(3, 7) == "<d_7>"
        with pytest.raises(ValueError, match="level is 26; a semantic ID has at most 26 levels"):
            semantic_id_token(26, 0)

    def test_round_trip(self, tmp_path):
        index = SemanticIds(np.array([[0, 1], [1, 0], [1, 1]]), 4)
        index.save(tmp_path / "index.parquet", IdMap(["x", "ä", "🎸"], "item_id"))
        loaded, ids = SemanticIds.load(tmp_path / "index.parquet")
        assert np.array_equal(loaded.codes, index.codes) and loaded.codebook_size == 4
        assert ids.ids_of([0, 1, 2]) == ["x", "ä", "🎸"]

    @pytest.mark.parametrize(
        ("codes", "message"),
        [
            ([[0, 1], [0, 1], [1, 1]], r"2 items share their codes with another, first items \[0, 1\]"),
            ([[0, 4]], "item 0 has code 4 at level 1, outside the codebook of 4 codes"),
            ([[-1, 0]], "item 0 has code -1 at level 0, outside the codebook"),
            ([0, 1], r"codes have shape \(2,\)"),
            ([[0.5]], "type float64; they must be integers"),
        ],
    )
    def test_refuses(self, codes, message):
        with pytest.raises(ValueError, match=message):
            SemanticIds(np.array(codes), 4)

    def test_a_file_whose_codes_collide_or_that_is_none(self, tmp_path):
        path = tmp_path / "index.parquet"
        table = pa.table({"item_id": ["a", "b"], "codes": [[0, 0], [0, 0]]})
        pq.write_table(table.replace_schema_metadata({"codebook_size": "4"}), path)
        with pytest.raises(ValueError, match="2 items share their codes"):
            SemanticIds.load(path)
        pq.write_table(table, path)
        with pytest.raises(ValueError, match="semantic IDs need item_id and codes, and the codebook's size"):
            SemanticIds.load(path)
        path.write_bytes(b"PAR1")
        with pytest.raises(ValueError, match="is no readable file of semantic IDs"):
            SemanticIds.load(path)
        with pytest.raises(ValueError, match="is no readable file of semantic IDs"):
            SemanticIds.load(tmp_path / "nowhere.parquet")

    @pytest.mark.parametrize("ragged", [[[1, 2], [3]], [[1, 2], None], [None, None]])
    def test_codes_of_different_lengths(self, ragged, tmp_path):
        table = pa.table({"item_id": ["p", "q"], "codes": pa.array(ragged, pa.list_(pa.int32()))})
        pq.write_table(table.replace_schema_metadata({"codebook_size": "4"}), tmp_path / "index.parquet")
        with pytest.raises(ValueError, match="codes: all items need codes of the same number of levels, but they have"):
            SemanticIds.load(tmp_path / "index.parquet")

    def test_ids_of_another_catalogue(self, tmp_path):
        with pytest.raises(ValueError, match="got 1 item ids for the semantic IDs of 2 items"):
            SemanticIds(np.array([[0], [1]]), 4).save(tmp_path / "x.parquet", IdMap(["a"], "item_id"))


def test_refusals():
    codebooks = np.zeros((2, 2, 1))
    with pytest.raises(ValueError, match=r"5 items are more than the 4 semantic IDs of 2 levels of 2 codes"):
        assign_unique_codes(np.zeros((5, 1)), codebooks)
    with pytest.raises(ValueError, match=r"1 items have NaN or infinite embeddings, first \[1\]"):
        assign_unique_codes(np.array([[0.0], [np.nan]]), codebooks)
    with pytest.raises(ValueError, match=r"codes have shape \(1, 3\); they must be \(1, 2\), one row an item, all in \[0, 2\)"):
        assign_unique_codes(np.zeros((1, 1)), codebooks, np.zeros((1, 3), dtype=int))
    with pytest.raises(ValueError, match=r"codes have shape \(1, 2\); they must be .* all in \[0, 2\)"):
        assign_unique_codes(np.zeros((1, 1)), codebooks, np.array([[0, 2]]))
    with pytest.raises(ValueError, match="5 items are more than the"):
        nearest_free_codes(np.zeros((1, 1)), codebooks, np.array(list(itertools.product(range(2), range(2)))))
    with pytest.raises(ValueError, match="epsilon is 0 and iterations 5; both must be above 0"):
        sinkhorn(torch.zeros(2, 2), 0, 5)


# ---- large catalogues in pieces ----


def test_pieces_follow_one_another(monkeypatch):
    monkeypatch.setattr(semantic_ids, "ITEMS_AT_ONCE", 3)
    assert [list(range(7))[part] for part in semantic_ids.pieces(7)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert semantic_ids.pieces(0) == [slice(0, 3)]
    codebooks = np.random.default_rng(1).normal(size=(2, 4, 3))
    latents = np.random.default_rng(0).normal(size=(20, 3))
    some = nearest_codes(latents, codebooks)
    monkeypatch.setattr(semantic_ids, "ITEMS_AT_ONCE", 100)
    assert np.array_equal(nearest_codes(latents, codebooks), some)
    assert nearest_codes(latents[:0], codebooks).shape == (0, 2)
