"""Uniform semantic mapping: which items it moves, where to, and that groups of any size and number are spread alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modeling_cllm4rec.lcrec import uniform_mapping
from modeling_cllm4rec.lcrec.semantic_ids import assign_unique_codes, nearest_codes, residuals, shared_codes, sinkhorn
from modeling_cllm4rec.lcrec.uniform_mapping import spread_conflicts, spread_last_level

LINE = np.array([[[0.0]] * 4, [[-3.0], [-1.0], [1.0], [3.0]]])
"""One prefix whose last codes are at -3, -1, 1 and 3."""


def clustered(items: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return latents, codebooks of 3 x 16 codes and the nearest codes, of which many are shared."""
    random = np.random.default_rng(seed)
    codebooks = random.normal(size=(3, 16, 4)) * np.array([1.0, 0.4, 0.2])[:, None, None]
    latents = codebooks[0][random.integers(0, 6, items)] + 0.3 * random.normal(size=(items, 4))
    return latents, codebooks, nearest_codes(latents, codebooks)


def test_two_items_by_hand() -> None:
    """The nearest code of both is that at 1. Those at -3 and -1 go to the lower item and those at 1 and 3 to the upper one."""
    latents = np.array([[0.5], [1.5]])
    plain = nearest_codes(latents, LINE)
    assert plain[:, 1].tolist() == [2, 2]
    assert spread_conflicts(latents, LINE, plain, 0.003)[:, 1].tolist() == [1, 2]


def test_items_without_a_conflict_stay() -> None:
    latents, codebooks, plain = clustered()
    spread = spread_conflicts(latents, codebooks, plain, 0.003)
    alone = np.setdiff1d(np.arange(len(plain)), shared_codes(plain))
    assert 50 < len(alone) < 350
    # A later round may move an item that another one was moved to: of those without a conflict at first, few.
    assert (spread[alone] != plain[alone]).any(axis=1).mean() < 0.5
    assert np.array_equal(spread[:, :2], plain[:, :2])
    assert len(shared_codes(spread)) < len(shared_codes(plain)) / 2
    first_round = spread_conflicts(latents, codebooks, plain, 0.003, rounds=1)
    assert np.array_equal(first_round[alone], plain[alone])


def test_each_group_is_spread_as_if_it_were_alone() -> None:
    """One round equals a loop over groups with Sinkhorn-Knopp, the greatest share, and of equal shares the nearest code."""
    latents, codebooks, plain = clustered()
    expected = plain.copy()
    for row in np.unique(plain, axis=0):
        group = np.flatnonzero((plain == row).all(axis=1))
        if len(group) > 1:
            rest = residuals(latents[group], codebooks, plain[group], 2)
            distances = ((rest[:, None] - codebooks[2][None]) ** 2).sum(-1)
            shares = sinkhorn(torch.from_numpy(distances), 0.003).numpy()
            least = (0.9 if len(group) < 16 else 1) * shares.max(1, keepdims=True)
            expected[group, 2] = np.where(shares >= least, distances, np.inf).argmin(1)
    assert np.array_equal(spread_conflicts(latents, codebooks, plain, 0.003, rounds=1), expected)


def test_assignment_alone_is_nearest_and_conflicts_move_fewer_items_than_all() -> None:
    """How far the unique codes are from the items, and how many items without a conflict a mapping moves."""
    latents, codebooks, plain = clustered()
    alone = np.setdiff1d(np.arange(len(plain)), shared_codes(plain))
    mapped = {
        "none": plain,
        "conflicts": spread_conflicts(latents, codebooks, plain, 0.003),
        "all": spread_last_level(latents, codebooks, plain, 0.003),
    }
    unique = {name: assign_unique_codes(latents, codebooks, codes) for name, codes in mapped.items()}
    distance = {name: np.linalg.norm(residuals(latents, codebooks, codes, 3), axis=1).mean() for name, codes in unique.items()}
    assert distance["none"] < min(distance["conflicts"], distance["all"])
    moved = {name: int((codes[alone] != plain[alone]).any(axis=1).sum()) for name, codes in mapped.items()}
    assert moved["none"] == 0 and moved["conflicts"] < moved["all"]


def test_equal_items_stay_together_and_end_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(distances: torch.Tensor, epsilon: float) -> torch.Tensor:
        calls.append(distances.shape)
        return sinkhorn(distances, epsilon)

    monkeypatch.setattr(uniform_mapping, "sinkhorn", counted)
    latents = np.full((3, 1), 0.9)
    spread = spread_conflicts(latents, LINE, nearest_codes(latents, LINE), 0.003)
    assert len(np.unique(spread, axis=0)) == 1 and len(calls) <= 2
    assert len(np.unique(assign_unique_codes(latents, LINE, spread), axis=0)) == 3


def test_nothing_to_do() -> None:
    latents = np.array([[-3.0], [3.0]])
    plain = nearest_codes(latents, LINE)
    assert np.array_equal(spread_conflicts(latents, LINE, plain, 0.003), plain)
    both = np.array([[0.5], [1.5]])
    assert np.array_equal(spread_conflicts(both, LINE, nearest_codes(both, LINE), 0.0), nearest_codes(both, LINE))
    assert spread_conflicts(latents[:0], LINE, plain[:0], 0.003).shape == (0, 2)


@pytest.mark.parametrize("at_once", [2, 7, 64])
def test_batches_of_groups_change_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, codebooks, plain = clustered(items=200)
    groups = np.unique(plain, axis=0, return_counts=True)[1]
    whole = spread_conflicts(latents, codebooks, plain, 0.003)
    monkeypatch.setattr(uniform_mapping, "ITEMS_AT_ONCE", max(at_once, int(groups.max())))
    assert np.array_equal(spread_conflicts(latents, codebooks, plain, 0.003), whole)


def test_a_large_group_is_spread_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = np.random.default_rng(0).normal(size=(400, 1)) * 0.1 + 1
    monkeypatch.setattr(uniform_mapping, "ITEMS_AT_ONCE", 100)
    plain = nearest_codes(latents, LINE)
    spread = spread_conflicts(latents, LINE, plain, 0.003, rounds=1)
    assert np.bincount(spread[:, 1], minlength=4) == pytest.approx(100, abs=10)


def test_the_last_level_is_spread_evenly_also_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest codes of 400 items are 0; in one part or in parts of 100 each code gets its share."""
    latents = np.random.default_rng(0).normal(size=(400, 1))
    codebooks = np.array([[[0.0]] * 4, [[0.0], [50.0], [60.0], [70.0]]])
    plain = nearest_codes(latents, codebooks)
    assert set(plain[:, 1].tolist()) == {0} and spread_last_level(latents, codebooks, plain, 0.0) is plain
    for size in (65_536, 100):
        monkeypatch.setattr(uniform_mapping, "ITEMS_AT_ONCE", size)
        spread = spread_last_level(latents, codebooks, plain, 0.003, seed=3)
        assert np.array_equal(spread, spread_last_level(latents, codebooks, plain, 0.003, seed=3))
        assert np.array_equal(spread[:, 0], plain[:, 0]) and not plain[:, 1].any()
        assert np.bincount(spread[:, 1], minlength=4) == pytest.approx(100, abs=10)
