"""Batch plans: every document once, like lengths together, the same from the same seed; parts and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.corpora.batches import collate, micro_batch, plan_batches

LENGTHS = st.lists(st.integers(1, 300), max_size=700).map(np.array)


@given(lengths=LENGTHS, batch_size=st.integers(1, 40), seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
def test_a_plan_is_a_partition_into_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> None:
    batches = plan_batches(lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate([*batches, []]).astype(int).tolist()) == list(range(len(lengths)))
    sizes = [len(batch) for batch in batches]
    assert len(sizes) == -(-len(lengths) // batch_size)
    assert all(size == batch_size for size in sizes) or sizes.count(len(lengths) % batch_size) >= 1
    assert sum(size != batch_size for size in sizes) <= 1


@given(lengths=LENGTHS, seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_a_plan_follows_from_seed_and_epoch(lengths: np.ndarray, seed: int, epoch: int) -> None:
    first, again = (plan_batches(lengths, 4, seed, epoch) for _ in range(2))
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]


def test_epochs_and_seeds_differ() -> None:
    lengths = np.arange(1, 101)
    plans = {tuple(np.concatenate(plan_batches(lengths, 4, seed, epoch)).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(plans) == 9


def test_long_batches_are_not_all_at_one_end() -> None:
    """Batches of similar length are in random order: about half of the long ones are in each half of the epoch."""
    lengths = np.repeat([5, 50], 400)
    long = [lengths[batch].mean() > 25 for batch in plan_batches(lengths, 8, 0, 0)]
    assert 15 <= sum(long[:50]) <= 35


def test_little_padding_on_skewed_lengths() -> None:
    """Lengths as of reviews: half below 55 tokens, one in twelve above 170, the longest as long as the context."""
    lengths = np.clip(np.random.default_rng(0).lognormal(4, 0.8, 20_000), 1, 512).astype(int)

    def overhead(batches: list[np.ndarray]) -> float:
        return sum(lengths[batch].max() * len(batch) for batch in batches) / lengths.sum()

    assert overhead(plan_batches(lengths, 32, seed=0, epoch=0)) < 1.2
    assert overhead(np.split(np.random.default_rng(0).permutation(20_000), 625)) > 3  # without buckets


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_must_be_positive(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; it must be 1 or more"):
        plan_batches(np.ones(3), batch_size, 0, 0)


@given(documents=st.integers(0, 60), num_parts=st.integers(1, 12))
def test_micro_batches_are_a_partition_in_order(documents: int, num_parts: int) -> None:
    batch = np.arange(100, 100 + documents)
    shares = [micro_batch(batch, num_parts, part) for part in range(num_parts)]
    assert np.concatenate(shares).tolist() == batch.tolist()
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_collate_by_hand() -> None:
    batch = collate([np.array([7, 8, 9]), np.array([5])], [2, 1], [np.array([3]), np.array([0, 4])])
    assert batch.input_ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.targets is not None
    assert batch.targets.tolist() == [[3, -100], [0, 4]]
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.targets.dtype} == {torch.int64}


def test_collate_without_targets_and_on_a_device() -> None:
    batch = collate([np.array([7, 8])], np.array([1])).to(torch.device("meta"))
    assert batch.targets is None
    assert batch.input_ids.device.type == "meta"
    assert collate([np.array([7])], [1], [np.array([2])]).to(torch.device("meta")).targets.device.type == "meta"  # type: ignore[union-attr]
