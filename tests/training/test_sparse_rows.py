"""Steps that read and write only the rows they name: by hand, against dense steps, and within a stage."""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.cllm4rec import objectives
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.cllm4rec.pretraining import pretrain
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.losses import multinomial_nll
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.training import sparse_rows, trainer
from modeling_cllm4rec.training.sparse_rows import (
    CombinedOptimizer,
    RowwiseAdagrad,
    average_over_processes,
    clip_gradients,
    held_back,
    sparse_tables,
)
from modeling_cllm4rec.training.weight_average import WeightAverage

MakeFinetune = Callable[..., FinetuneArguments]
MakePretrain = Callable[..., PretrainArguments]


def table(values: list[list[float]]) -> torch.nn.Embedding:
    return torch.nn.Embedding(len(values), len(values[0]), sparse=True, _weight=torch.tensor(values))


def test_two_steps_by_hand() -> None:
    """Row 1 gets (3, 4) from two uses, mean square 12.5; then (0, 5), mean square 12.5 again, sum 25."""
    rows = table([[1.0, 1.0], [10.0, 10.0], [5.0, 5.0]])
    optimizer = RowwiseAdagrad([rows.weight], lr=0.5, eps=0.0)
    for ids, gradients in (([1, 1], [[1.0, 4.0], [2.0, 0.0]]), ([1], [[0.0, 5.0]])):
        optimizer.zero_grad()
        (rows(torch.tensor(ids)) * torch.tensor(gradients)).sum().backward()
        average_over_processes([rows.weight])
        optimizer.step()
    first = [10 - 0.5 * 3 / 12.5**0.5, 10 - 0.5 * 4 / 12.5**0.5]
    assert rows.weight[1].tolist() == pytest.approx([first[0], first[1] - 0.5 * 5 / 5])
    assert rows.weight[[0, 2]].tolist() == [[1.0, 1.0], [5.0, 5.0]]
    assert optimizer.state[rows.weight]["sum"].tolist() == [0.0, 25.0, 0.0]


def test_a_row_with_a_gradient_of_zero_stays() -> None:
    """Padding is read as row 0 with weight 0: no division by zero, no step."""
    rows = table([[1.0], [2.0]])
    (rows(torch.tensor([0, 1])) * torch.tensor([[0.0], [3.0]])).sum().backward()
    average_over_processes([rows.weight])
    RowwiseAdagrad([rows.weight], lr=0.5).step()
    assert rows.weight.tolist() == [[1.0], [1.5]]


@given(st.integers(0, 1000), st.floats(0.01, 10))
def test_clipping_is_that_of_dense_gradients(seed: int, max_norm: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids, weights = torch.randint(7, (12,), generator=generator), torch.randn(12, 3, generator=generator)
    sparse, dense = (torch.nn.Embedding(7, 3, sparse=kind) for kind in (True, False))
    other = [torch.nn.Parameter(torch.zeros(4)) for _ in range(2)]
    for rows, more in zip((sparse, dense), other, strict=True):
        ((rows(ids) * weights).sum() + (more * torch.arange(4)).sum()).backward()
    average_over_processes([sparse.weight])
    norm = clip_gradients([sparse.weight, other[0], torch.nn.Parameter(torch.zeros(1))], max_norm)
    expected = torch.nn.utils.clip_grad_norm_([dense.weight, other[1]], max_norm)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)  # type: ignore[union-attr]
    torch.testing.assert_close(other[0].grad, other[1].grad)


def test_two_optimizers_share_schedule_and_state() -> None:
    rows, weight = table([[1.0, 2.0]]), torch.nn.Parameter(torch.ones(2))

    def make() -> CombinedOptimizer:
        return CombinedOptimizer([RowwiseAdagrad([rows.weight], lr=0.5), torch.optim.AdamW([weight], lr=0.1)])

    def step(optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (rows(torch.tensor([0])).sum() + weight.sum()).backward()
        average_over_processes([rows.weight])
        optimizer.step()

    optimizer = make()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: 1 / (1 + number))
    step(optimizer)
    schedule.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.25, 0.05]
    state, before = copy.deepcopy(optimizer.state_dict()), (rows.weight.tolist(), weight.tolist())
    step(optimizer)
    after = (rows.weight.tolist(), weight.tolist())
    with torch.no_grad():
        rows.weight.copy_(torch.tensor(before[0]))
        weight.copy_(torch.tensor(before[1]))
    again = make()
    again.load_state_dict(state)
    step(again)
    assert (rows.weight.tolist(), weight.tolist()) == after


def test_what_a_wrapper_does_not_see() -> None:
    model = torch.nn.ModuleDict({"rows": table([[1.0]]), "others": torch.nn.Embedding(2, 1)})
    (rows,) = sparse_tables(model)
    assert rows is model["rows"].weight
    with pytest.raises(KeyError), held_back([rows]):
        assert [one.requires_grad for one in model.parameters()] == [False, True]
        raise KeyError
    assert all(one.requires_grad for one in model.parameters())
    assert sparse_tables(model.requires_grad_(False)) == []


def test_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, whose collectives are played: this one names rows 2 and 0, the other row 2 alone."""
    other = {"rows": torch.tensor([2]), "values": torch.tensor([[8.0]])}

    def gather_counts(into: torch.Tensor, mine: torch.Tensor) -> None:
        into.copy_(torch.tensor([int(mine), len(other["rows"])]))

    def gather(into: list[torch.Tensor], mine: torch.Tensor) -> None:
        theirs = other["values" if mine.dim() == 2 else "rows"]
        into[0].copy_(mine)
        into[1].zero_()[: len(theirs)] = theirs

    monkeypatch.setattr(sparse_rows, "process_count", lambda: 2)
    monkeypatch.setattr(sparse_rows.distributed, "all_gather_into_tensor", gather_counts)
    monkeypatch.setattr(sparse_rows.distributed, "all_gather", gather)
    rows = table([[0.0], [0.0], [0.0]])
    (rows(torch.tensor([2, 0])) * torch.tensor([[4.0], [6.0]])).sum().backward()
    average_over_processes([rows.weight])
    gradient: Any = rows.weight.grad
    assert gradient.is_coalesced() and gradient.to_dense().tolist() == [[3.0], [0.0], [6.0]]
    rows.weight.grad = None  # a table that only the other process reads
    average_over_processes([rows.weight])
    assert rows.weight.grad.to_dense().tolist() == [[0.0], [0.0], [4.0]]  # type: ignore[attr-defined]
    other.update(rows=torch.empty(0, dtype=torch.long), values=torch.empty(0, 1))
    rows.weight.grad = None
    average_over_processes([rows.weight])
    assert rows.weight.grad is None


@given(st.integers(0, 1000))
def test_a_late_average_is_that_of_each_step(seed: int) -> None:
    """Rows are averaged when they move or when the average is read, also after a checkpoint and a validation."""
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.nn.Embedding(6, 2, sparse=sparse) for sparse in (True, False)]
    with torch.no_grad():
        tables[1].weight.copy_(tables[0].weight)
    lazy, plain = (WeightAverage({"rows": rows.weight}, 0.9, sparse_tables(rows) if rows.sparse else ()) for rows in tables)
    optimizers = [torch.optim.SGD([rows.weight], lr=0.5) for rows in tables]
    for step in range(1, 13):
        ids = torch.randint(6, (2,), generator=generator)
        for rows, optimizer, average in zip(tables, optimizers, (lazy, plain), strict=True):
            optimizer.zero_grad()
            rows(ids).square().sum().backward()
            average_over_processes([rows.weight] if rows.sparse else [])
            average.before_step()
            optimizer.step()
            average.update(step)
        if step == 5:
            saved = {name: tensor.clone() for name, tensor in lazy.tensors().items()}
            lazy = WeightAverage({"rows": tables[0].weight}, 0.9, [tables[0].weight])
            lazy.restore(saved)
        if step in (8, 12):
            with lazy.in_place(), plain.in_place():
                torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-5, atol=1e-6)
    lazy.apply()
    plain.apply()
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-5, atol=1e-6)


def test_sampled_items_and_sparse_rows_reach_the_validation_of_the_exact_loss() -> None:
    """300 items whose true rows are known: 30 sampled items a step come within 0.02 nats of the exact loss on new draws."""
    generator = torch.Generator().manual_seed(0)
    true, states = torch.randn(300, 4, generator=generator), torch.randn(64, 4, generator=generator)
    shares = (states @ true.t()).softmax(-1)
    validation = torch.multinomial(shares, 200, replacement=True, generator=generator)
    found = {}
    for item_loss in ("exact", "sampled"):
        rows, draws = table([[0.0] * 4] * 300), torch.Generator().manual_seed(1)
        sparse = rows.sparse = item_loss == "sampled"
        optimizer: torch.optim.Optimizer = (
            RowwiseAdagrad([rows.weight], lr=0.3) if sparse else torch.optim.AdamW([rows.weight], lr=0.03, weight_decay=0.0)
        )
        for _ in range(300):
            targets = torch.multinomial(shares, 4, replacement=True, generator=draws)
            options: dict[str, Any] = {"item_loss": item_loss, "num_samples": 30, "generator": draws}
            optimizer.zero_grad()
            multinomial_nll(states, rows, targets, **options).mean().backward()
            average_over_processes([rows.weight] if sparse else [])
            optimizer.step()
        found[item_loss] = float(multinomial_nll(states, rows.weight.detach(), validation).mean()) / 200
    best = float(multinomial_nll(states, true, validation).mean()) / 200
    untrained = math.log(300)
    assert found["exact"] < best + 0.1 * (untrained - best)
    assert found["sampled"] == pytest.approx(found["exact"], abs=0.02), (best, found)


# ---- within a stage ----


def test_a_step_moves_only_the_rows_that_it_names(pretrain_arguments: MakePretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two documents and three sampled items of 40: no table has a dense gradient, and the other rows keep their bits."""
    monkeypatch.setattr(objectives, "multinomial_nll", functools.partial(multinomial_nll, num_samples=3))
    step, moved = RowwiseAdagrad.step, []

    def watched(self: RowwiseAdagrad, closure: Any = None) -> None:
        tables = [one for group in self.param_groups for one in group["params"]]
        before = [one.detach().clone() for one in tables]
        named = [set() if one.grad is None else set(one.grad.indices()[0].tolist()) for one in tables]
        step(self)
        for one, old, rows in zip(tables, before, named, strict=True):
            changed = set((one != old).any(1).nonzero()[:, 0].tolist())
            assert changed <= rows
            moved.append((len(changed), len(rows), len(one)))

    monkeypatch.setattr(RowwiseAdagrad, "step", watched)
    arguments = pretrain_arguments(
        item_loss="sampled", id_optim="rowwise_adagrad", per_device_train_batch_size=2, stop_after_steps=200, warmup_epochs=0
    )
    model, _ = pretrain(arguments)
    assert any(changed and rows < size / 2 for changed, rows, size in moved)
    assert not any(one.sparse for one in model.modules() if isinstance(one, torch.nn.Embedding))  # dense again for later users


def test_when_rows_are_sparse(finetune_arguments: MakeFinetune) -> None:
    assert not finetune_arguments(item_loss="sampled").sparse_rows
    assert finetune_arguments(item_loss="sampled", id_optim="rowwise_adagrad").sparse_rows
    assert not any(finetune_arguments(item_loss=one).sparse_rows for one in ("auto", "exact", "chunked"))
    for one in ("auto", "exact", "chunked"):
        with pytest.raises(InputError, match=f"id_optim is 'rowwise_adagrad', but item_loss '{one}' has a gradient for all rows"):
            finetune_arguments(item_loss=one, id_optim="rowwise_adagrad")


def test_gradients_without_clipping(finetune_arguments: MakeFinetune) -> None:
    _, progress = finetune(
        finetune_arguments(item_loss="sampled", id_optim="rowwise_adagrad", max_grad_norm=0.0, num_train_epochs=1)
    )
    assert progress.finished


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_tuned_backbone_has_an_optimizer_of_its_own(
    tune: str, finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CombinedOptimizer] = []
    create = trainer.RecommenderTrainer.create_optimizer

    def noted(self: trainer.RecommenderTrainer, model: Any = None) -> Any:
        made.append(create(self, model))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(trainer.RecommenderTrainer, "create_optimizer", noted)
    finetune(
        finetune_arguments(item_loss="sampled", id_optim="rowwise_adagrad", tune=tune, num_train_epochs=1, average_decay=0.9)
    )
    assert [type(part) for part in made[0].parts] == [RowwiseAdagrad, torch.optim.AdamW]


def test_the_choice_of_the_item_loss_is_logged(
    pretrain_arguments: MakePretrain, data: RecommendationData, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO):
        pretrain(pretrain_arguments(stop_after_steps=1))
    assert "item_loss auto: exact, for up to " in caplog.text and f"states x {data.num_items} items" in caplog.text
    caplog.clear()
    monkeypatch.setattr("modeling_cllm4rec.core.losses.EXACT_LOGITS", 100)
    with caplog.at_level(logging.INFO):
        pretrain(pretrain_arguments(stop_after_steps=1, overwrite=True))
    assert "item_loss auto: chunked, for up to " in caplog.text
