"""Item losses: values computed by hand, against plain torch, and as properties."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from modeling_cllm4rec.core.losses import (
    _occurrences,
    exact_or_chunked,
    first_occurrence,
    item_log_partition,
    multinomial_nll,
    sample_items,
    sampled_log_partition,
    squared_distances,
    word_nll,
)

BF16 = {"rtol": 5e-2, "atol": 5e-2}  # 8 bits of mantissa, sums of three targets
FLOAT = {"rtol": 1e-4, "atol": 2e-5}


def random_case(seed: int, rows: int = 4, width: int = 6, items: int = 11, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).to(dtype)
    table = torch.randn(items, width, generator=generator)
    targets = torch.stack([torch.randperm(items, generator=generator)[:3] for _ in range(rows)])
    targets[0, 1:] = -100
    targets[-1] = -100
    return hidden, table, targets


def plain_nll(hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-sum of log_softmax at the targets, one row after the other."""
    logits = (hidden @ table.to(hidden.dtype).t()).float().log_softmax(-1)
    return torch.stack([-logits[row][wanted[wanted >= 0]].sum() for row, wanted in enumerate(targets)])


def value_and_gradients(loss, hidden: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
    hidden, table = hidden.clone().requires_grad_(), table.clone().requires_grad_()
    value = loss(hidden, table)
    weights = torch.arange(1.0, len(value) + 1)  # each row's gradient counts differently
    return (value.detach(), *torch.autograd.grad((value * weights).sum(), (hidden, table)))


def test_by_hand():
    table = torch.tensor([[0.0], [math.log(2)], [math.log(5)]])  # logits of h = 1; softmax 1/8, 2/8, 5/8
    nll = multinomial_nll(torch.ones(3, 1), table, torch.tensor([[2, -100], [0, 1], [-100, -100]]))
    torch.testing.assert_close(nll, torch.tensor([math.log(8 / 5), math.log(8) + math.log(4), 0.0]))
    assert nll.dtype == torch.float32
    assert item_log_partition(torch.ones(1, 1), table).item() == pytest.approx(math.log(8))


@given(st.integers(0, 10_000), st.sampled_from(["exact", "chunked"]))
def test_a_weight_counts_its_target(seed, item_loss):
    hidden, table, targets = random_case(seed)
    weights = torch.rand(targets.shape, generator=torch.Generator().manual_seed(seed))
    nll = multinomial_nll(hidden, table, targets, item_loss=item_loss, chunk_size=4, weights=weights)
    alone = torch.stack([multinomial_nll(hidden, table, targets[:, [one]]) for one in range(targets.shape[1])], dim=1)
    torch.testing.assert_close(nll, (alone * weights).sum(-1), **FLOAT)


@given(st.integers(0, 10_000), st.integers(1, 14))
def test_exact_and_chunked_equal_plain_torch_in_value_and_gradients(seed, chunk_size):
    hidden, table, targets = random_case(seed)
    expected = value_and_gradients(lambda h, z: plain_nll(h, z, targets), hidden, table)
    exact = value_and_gradients(lambda h, z: multinomial_nll(h, z, targets), hidden, table)
    chunked = value_and_gradients(
        lambda h, z: multinomial_nll(h, z, targets, item_loss="chunked", chunk_size=chunk_size), hidden, table
    )
    for ours in (exact, chunked):
        for value, wanted in zip(ours, expected, strict=True):
            torch.testing.assert_close(value, wanted, **FLOAT)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 11, 100])
def test_partition_is_the_same_for_every_chunk_size(chunk_size):
    hidden, table, _ = random_case(1)
    expected = value_and_gradients(lambda h, z: torch.logsumexp(h @ z.t(), -1), hidden, table)
    ours = value_and_gradients(lambda h, z: item_log_partition(h, z, chunk_size), hidden, table)
    for value, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(value, wanted, **FLOAT)


@pytest.mark.parametrize("item_loss", ["exact", "chunked", "sampled"])
def test_16_bit_states_with_a_float_table(item_loss):
    hidden, table, targets = random_case(2, dtype=torch.bfloat16)
    expected = value_and_gradients(lambda h, z: plain_nll(h, z, targets), hidden.float(), table)
    value, grad_hidden, grad_table = value_and_gradients(
        lambda h, z: multinomial_nll(
            h, z, targets, item_loss=item_loss, chunk_size=4, num_samples=len(table), generator=torch.Generator()
        ),
        hidden,
        table,
    )
    assert (value.dtype, grad_hidden.dtype, grad_table.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    for ours, wanted in zip((value, grad_hidden.float(), grad_table), expected, strict=True):
        torch.testing.assert_close(ours, wanted, **BF16)


def test_chunked_equals_exact_under_16_bit_autocast():
    hidden, table, targets = random_case(3)
    with torch.autocast("cpu", torch.bfloat16):
        exact = value_and_gradients(lambda h, z: multinomial_nll(h, z, targets), hidden, table)
        chunked = value_and_gradients(
            lambda h, z: multinomial_nll(h, z, targets, item_loss="chunked", chunk_size=3), hidden, table
        )
    for value, wanted in zip(chunked, exact, strict=True):
        torch.testing.assert_close(value, wanted, **BF16)


def test_large_logits_do_not_overflow():
    table = torch.tensor([[400.0], [-400.0], [399.0]])
    for item_loss in ("exact", "chunked"):
        nll = multinomial_nll(torch.ones(1, 1), table, torch.tensor([[0]]), item_loss=item_loss, chunk_size=1)
        assert nll.item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-5)


def test_the_order_of_items_and_the_padding_of_targets_do_not_count():
    hidden, table, targets = random_case(4)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    moved = torch.where(targets >= 0, order.argsort()[targets.clamp(min=0)], -100)
    padded = F.pad(moved.flip(1), (2, 1), value=-100)
    torch.testing.assert_close(multinomial_nll(hidden, table, targets), multinomial_nll(hidden, table[order], padded))


@given(st.integers(0, 10_000))
def test_a_sample_of_all_items_is_exact(seed):
    hidden, table, targets = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    expected = value_and_gradients(lambda h, z: plain_nll(h, z, targets), hidden, table)
    for num_samples in (len(table), 10 * len(table)):  # more than there are: all
        sampled = value_and_gradients(
            lambda h, z, number=num_samples: multinomial_nll(
                h, z, targets, item_loss="sampled", num_samples=number, generator=generator
            ),
            hidden,
            table,
        )
        for value, wanted in zip(sampled, expected, strict=True):
            torch.testing.assert_close(value, wanted, **FLOAT)


def test_the_sampled_partition_is_unbiased():
    hidden, table, targets = random_case(5)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([sampled_log_partition(hidden, table, targets, 4, generator).exp() for _ in range(6000)])
    exact = item_log_partition(hidden, table).exp()
    error = draws.std(0) / math.sqrt(len(draws))
    assert (((draws.mean(0) - exact).abs()) < 4.5 * error).all()
    assert (error > 0).all()  # the estimates differ: it is a sample


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_sampled_items_are_distinct(num_items, num_samples, seed):
    num_samples = min(num_samples, num_items)
    drawn = sample_items(num_items, num_samples, torch.Generator().manual_seed(seed))
    assert len(set(drawn.tolist())) == len(drawn) == num_samples
    assert 0 <= drawn.min() and drawn.max() < num_items
    assert torch.equal(drawn, sample_items(num_items, num_samples, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("num_items", [5, 7], ids=["permuted", "drawn until distinct"])
def test_each_set_of_items_is_as_likely_as_another(num_items):
    generator, draws = torch.Generator().manual_seed(0), 6000
    found = Counter(tuple(sorted(sample_items(num_items, 3, generator).tolist())) for _ in range(draws))
    sets = math.comb(num_items, 3)
    expected = draws / sets
    chi_squared = sum((found[one] - expected) ** 2 / expected for one in combinations(range(num_items), 3))
    assert len(found) == sets and chi_squared < sets - 1 + 4 * math.sqrt(2 * (sets - 1))


def test_sampling_does_not_depend_on_the_size_of_the_catalogue():
    """A permutation of 10^15 items would take 8 PB."""
    drawn = sample_items(10**15, 4096, torch.Generator().manual_seed(0))
    assert drawn.unique().numel() == 4096 and drawn.double().mean() / 1e15 == pytest.approx(0.5, abs=0.03)


@given(st.integers(0, 1000))
def test_a_sparse_gradient_is_that_of_the_dense_one(seed):
    hidden, table, targets = random_case(seed)

    def gradients(sparse):
        states, rows = hidden.clone().requires_grad_(), torch.nn.Embedding(*table.shape, sparse=sparse, _weight=table.clone())
        generator = torch.Generator().manual_seed(seed)
        loss = multinomial_nll(states, rows, targets, item_loss="sampled", num_samples=3, generator=generator)
        return torch.autograd.grad(loss.sum(), [states, rows.weight])

    (hidden_dense, dense), (hidden_sparse, sparse) = gradients(False), gradients(True)
    assert sparse.is_sparse and torch.equal(hidden_dense, hidden_sparse)
    torch.testing.assert_close(sparse.to_dense(), dense)
    named = set(targets[targets >= 0].tolist()) | set(sample_items(len(table), 3, torch.Generator().manual_seed(seed)).tolist())
    assert set(sparse.coalesce().indices()[0].tolist()) <= named | {0}  # padding is read as row 0, with weight 0


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(0, 4))
def test_positives_are_found_in_the_sample(seed, size, count):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(12, generator=generator)[:size]
    positives = torch.randint(12, (3, count), generator=generator).masked_fill(
        torch.rand(3, count, generator=generator) < 0.3, -100
    )
    expected = [[bool(item in row) for item in sample.tolist()] for row in positives.tolist()]
    assert _occurrences(sample, positives).tolist() == expected


def test_few_logits_are_exact_and_many_in_chunks():
    assert exact_or_chunked(2**10, 2**15) == "exact"
    assert exact_or_chunked(2**10, 2**15 + 1) == "chunked"


def test_a_positive_that_is_named_twice_counts_once():
    """Held-out items are often soft targets of the teacher as well: the row then names them twice."""
    hidden, table = torch.randn(2, 3), torch.randn(9, 3)
    once = torch.tensor([[4, 7, -100, -100], [1, 2, 3, -100]])
    twice = torch.tensor([[4, 7, 4, 7], [1, 2, 3, 1]])
    values = [sampled_log_partition(hidden, table, positives, 5, torch.Generator().manual_seed(0)) for positives in (once, twice)]
    torch.testing.assert_close(values[0], values[1])
    exact = sampled_log_partition(hidden, table, twice, 9, torch.Generator().manual_seed(0))
    torch.testing.assert_close(exact, item_log_partition(hidden, table))


def test_the_sampled_loss_needs_the_positives_only_once():
    table = torch.zeros(3, 2)  # every item weighs exp(0) = 1
    positives = torch.tensor([[0, 1]])
    for seed in range(10):
        log_partition = sampled_log_partition(torch.ones(1, 2), table, positives, 3, torch.Generator().manual_seed(seed))
        assert log_partition.exp().item() == pytest.approx(3)


def test_sampling_obeys_its_generator():
    hidden, table, targets = random_case(6)
    first, second, other = (
        multinomial_nll(hidden, table, targets, item_loss="sampled", num_samples=3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_errors_name_what_is_allowed():
    hidden, table, targets = random_case(7)
    generator = torch.Generator()
    with pytest.raises(ValueError, match="item_loss is 'softmax'; allowed are 'exact', 'chunked', 'sampled'"):
        multinomial_nll(hidden, table, targets, item_loss="softmax")
    with pytest.raises(ValueError, match="'sampled' draws items at random: give a generator"):
        multinomial_nll(hidden, table, targets, item_loss="sampled")
    with pytest.raises(ValueError, match="table.sparse is True, but item_loss 'chunked' reads all rows; use item_loss='sampled'"):
        multinomial_nll(hidden, torch.nn.Embedding(*table.shape, sparse=True), targets, item_loss="chunked")
    with pytest.raises(ValueError, match="chunk_size is 0; it must be 1 or more"):
        multinomial_nll(hidden, table, targets, item_loss="chunked", chunk_size=0)
    for number in (0, 12):
        with pytest.raises(ValueError, match=f"num_samples is {number}; it must lie between 1 and the catalogue's 11"):
            sampled_log_partition(hidden, table, targets, number, generator)


@given(st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=4))
def test_first_occurrence_equals_a_walk_through_the_row(rows):
    expected = [[token not in row[:place] for place, token in enumerate(row)] for row in rows]
    assert first_occurrence(torch.tensor(rows)).tolist() == expected


def embedding(rows: list[list[float]]) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.tensor(rows), freeze=False)


def test_squared_distances_by_hand():
    trained, fixed = embedding([[1.0, 2.0], [0.0, 3.0]]), embedding([[0.0, 0.0], [2.0, 3.0]])
    indices = torch.tensor([[0, 1, 0], [1, 77, -5]])  # what does not count may be any number
    given_ = torch.tensor([[True, True, False], [True, False, False]])
    distances = squared_distances(indices, given_, trained, fixed)
    assert distances.tolist() == [1 + 4 + 4, 4]
    assert squared_distances(indices, given_, trained).tolist() == [1 + 4 + 9, 9]
    distances.sum().backward()
    np.testing.assert_array_equal(trained.weight.grad, [[2.0, 4.0], [-8.0, 0.0]])  # 2 (z - fixed), row 1 twice
    assert fixed.weight.grad is None


def word_case(trains: bool) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a head of two layers as BERT's, states, and words."""
    generator = torch.Generator().manual_seed(3)
    head = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 13)).requires_grad_(trains)
    for weight in head.parameters():
        weight.data.copy_(torch.randn(weight.shape, generator=generator))
    hidden = torch.randn(9, 6, generator=generator)
    return head, hidden, torch.randint(0, 13, (9,), generator=generator)


@pytest.mark.parametrize("chunk_size", [1, 4, 9, 100])
def test_word_nll_of_a_frozen_head_equals_plain_torch_in_value_and_gradient(chunk_size):
    head, hidden, words = word_case(trains=False)
    expected, ours = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    weights = torch.arange(1.0, 10.0)
    plain = F.cross_entropy(head(expected), words, reduction="none")
    nll = word_nll(head, ours, words, chunk_size)
    torch.testing.assert_close(nll, plain, **FLOAT)
    (plain * weights).sum().backward()
    (nll * weights).sum().backward()
    torch.testing.assert_close(ours.grad, expected.grad, **FLOAT)
    with torch.no_grad():
        assert torch.equal(word_nll(head, hidden, words, chunk_size), nll)


def test_word_nll_of_a_head_that_trains_has_its_gradient():
    head, hidden, words = word_case(trains=True)
    word_nll(head, hidden, words, chunk_size=2).sum().backward()
    found = [weight.grad.clone() for weight in head.parameters()]
    head.zero_grad()
    F.cross_entropy(head(hidden), words, reduction="sum").backward()
    for gradient, weight in zip(found, head.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad, **FLOAT)


def test_word_nll_in_bf16_stays_close_and_leaves_the_head_alone():
    head, hidden, words = word_case(trains=False)
    before = [weight.clone() for weight in head.parameters()]
    ours = hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        nll = word_nll(head, ours, words, chunk_size=4)
    nll.sum().backward()
    assert nll.dtype == torch.float32 and ours.grad.dtype == torch.float32
    torch.testing.assert_close(nll, F.cross_entropy(head(hidden), words, reduction="none"), **BF16)
    assert all(torch.equal(weight, old) for weight, old in zip(head.parameters(), before, strict=True))


def test_word_nll_of_no_words():
    head, hidden, words = word_case(trains=False)
    assert word_nll(head, hidden[:0].requires_grad_(), words[:0]).shape == (0,)


def test_word_nll_of_a_word_whose_share_is_too_small_for_a_number():
    head = nn.Linear(1, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[0.0], [150.0], [1.0]]))
    nll = word_nll(head, torch.ones(3, 1), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(nll, torch.tensor([150.0, 0.0, 149.0]))
