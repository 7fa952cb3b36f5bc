"""ID tables sharded by rows: on two processes the steps of one, half of the rows on each, and an ordinary folder at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import assert_halves, assert_same_run, launch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from modeling_cllm4rec.cllm4rec import modeling_cllm4rec
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.pretraining import pretrain
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.losses import multinomial_nll
from modeling_cllm4rec.training import row_sharding
from modeling_cllm4rec.training.row_sharding import RowShardedEmbedding, shard_rows
from modeling_cllm4rec.training.sparse_rows import RowwiseAdagrad, average_over_processes, clip_gradients

MakePretrain = Callable[..., PretrainArguments]
MakeFinetune = Callable[..., FinetuneArguments]
Read = Callable[[Path | str], dict[str, torch.Tensor]]

BY_ROWS: dict[str, Any] = {"item_loss": "sampled", "id_optim": "rowwise_adagrad", "dropout": 0.0, "learning_rate": 0.05}


def halved(arguments: Any, output: Path, **changes: Any) -> Any:
    """Return arguments of one of two processes: half the batch, sharded weights, all ID tables sharded by rows."""
    size = arguments.per_device_train_batch_size // 2
    values = {"output": str(output), "per_device_train_batch_size": size, "fsdp": True, "shard_tables_above": 0.0}
    return dataclasses.replace(arguments, **{**values, **changes})


def test_two_processes_leave_weights_without_a_gradient(
    pretrain_arguments: MakePretrain,
    finetune_arguments: MakeFinetune,
    tiny_backbones: dict[str, Path],
    tmp_path: Path,
    read_weights: Read,
) -> None:
    """Finetuning has no gradient for an output layer of words of its own: it must not be waited for."""
    first = pretrain_arguments(backbone=str(tiny_backbones["gpt2-untied"]), output=str(tmp_path / "start"), num_train_epochs=0)
    pretrain(first)
    shared = {"start": str(tmp_path / "start" / "pretrained"), "lambda_c": 0.0, "tune": "full", "dropout": 0.0}
    one = finetune_arguments(**shared, output=str(tmp_path / "one"), num_train_epochs=1)
    finetune(one)
    two = halved(one, tmp_path / "two", fsdp=False)
    seen = launch([("finetune", two)], tmp_path / "seen")
    assert all(run["finished"] for (run,) in seen)
    assert_same_weights(read_weights(one.output), read_weights(two.output))


def assert_same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=2e-5)


# ---- two processes ----


def test_two_processes_share_the_tables_or_hold_them_whole(
    finetune_arguments: MakeFinetune, tmp_path: Path, read_weights: Read
) -> None:
    """Validation and weights of one process, with a frozen backbone: above the limit half of the rows, below it all of them."""
    one = finetune_arguments(**BY_ROWS, output=str(tmp_path / "one"), num_train_epochs=1)
    _, progress = finetune(one)
    (alone,) = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in progress.history]
    runs = [halved(one, tmp_path / "rows"), halved(one, tmp_path / "whole", shard_tables_above=1.0)]
    shared = launch([("finetune", run) for run in runs], tmp_path / "shared")
    for by_rows, whole in shared:
        for seen in (by_rows, whole):
            assert seen["finished"] and seen["history"] == [pytest.approx(alone, rel=1e-4)]
        assert_halves(by_rows)
        assert whole["held"]["moments"][0] == whole["held"]["moments"][1] == by_rows["held"]["moments"][1]
    for run in runs:
        assert_same_weights(read_weights(one.output), read_weights(run.output))
    model = CLLM4RecForRecommendation.from_pretrained(runs[0].output)
    assert type(model) is CLLM4RecForRecommendation and type(model.item_collaborative) is nn.Embedding


@pytest.mark.slow
def test_all_stages_equal_one_process(
    pretrain_arguments: MakePretrain,
    finetune_arguments: MakeFinetune,
    still_backbone: Path,
    tmp_path: Path,
    read_weights: Read,
) -> None:
    """L and C steps, a moving average, a backbone that is tuned and clipped together with the rows, accumulation, LoRA."""
    first = pretrain_arguments(
        **BY_ROWS,
        backbone=str(still_backbone),
        output=str(tmp_path / "first"),
        per_device_train_batch_size=16,
        warmup_epochs=0,
        content_share=0.1,
        average_decay=0.9,
        tune="full",
        max_grad_norm=0.3,
        lambda_l=0.1,
    )
    second = finetune_arguments(
        **BY_ROWS,
        start=str(tmp_path / "first" / "pretrained"),
        output=str(tmp_path / "second"),
        tune="lora",
        content_every=2,
        max_grad_norm=0.3,
        average_decay=0.9,
    )
    (alone,) = launch([("pretrain", first), ("finetune", second)], tmp_path / "alone", 1)
    accumulated = halved(second, tmp_path / "second-two", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    runs = [("pretrain", halved(first, tmp_path / "first-two")), ("finetune", accumulated)]
    shared = launch(runs, tmp_path / "shared")
    for number, seen in enumerate(alone):
        assert_same_run(seen, shared[0][number], shared[1][number])
        assert_halves(shared[0][number], shared[1][number])
    for ours, theirs in (("first/pretrained", "first-two/pretrained"), ("second", "second-two")):
        assert_same_weights(read_weights(tmp_path / ours), read_weights(tmp_path / theirs))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_on_another_number_of_processes(
    before: int, after: int, finetune_arguments: MakeFinetune, tmp_path: Path, read_weights: Read
) -> None:
    def arguments(processes: int, **changes: Any) -> FinetuneArguments:
        one = finetune_arguments(**BY_ROWS, average_decay=0.9, **changes)
        return one if processes == 1 else halved(one, Path(one.output))

    whole = arguments(1, output=str(tmp_path / "whole"))
    (alone,) = launch([("finetune", whole)], tmp_path / "one", 1)
    launch([("finetune", arguments(before, stop_after_steps=6))], tmp_path / "before", before)
    shared = launch([("finetune", arguments(after, resume=True))], tmp_path / "after", after)
    assert len(shared[0][0]["nll"]) == len(alone[0]["nll"]) - 6
    assert_same_run(alone[0], *(seen[0] for seen in shared))
    assert_same_weights(read_weights(whole.output), read_weights(tmp_path / "run"))


# ---- a lookup ----


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """Join a process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_a_sharded_table_is_an_embedding(alone: DeviceMesh) -> None:
    """Rows, gradients and a step of a table of this process alone, against those of a plain one."""
    values, ids = torch.arange(10.0).reshape(5, 2), torch.tensor([[4, 0], [4, 4]])
    factors = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    tables = [nn.Embedding(5, 2, sparse=True, _weight=values.clone()) for _ in range(2)]
    shard_rows(tables[0], alone, torch.device("cpu"))
    assert type(tables[0]) is RowShardedEmbedding and isinstance(tables[0].weight, DTensor)
    for table in tables:
        optimizer = RowwiseAdagrad([table.weight], lr=0.5)
        (table(ids) * factors).sum().backward()
        average_over_processes([table.weight])
        assert clip_gradients([table.weight], 20.0) == pytest.approx((13**2 + 16**2 + 3**2 + 4**2) ** 0.5)
        optimizer.step()
    ours, theirs = (table.weight.grad for table in tables)
    assert ours.is_sparse and torch.equal(ours.to_dense(), theirs.to_dense())
    assert torch.equal(tables[0].weight.full_tensor(), tables[1].weight)
    assert torch.equal(tables[0].weight.full_tensor()[1:4], values[1:4])


def test_a_sampled_loss_never_reads_the_whole_table(alone: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 rows at most the 20 sampled ones, and then the few positives, are on the way."""
    sizes, exchange = list[int](), row_sharding.exchange

    def watched(values: torch.Tensor, going: list[int], coming: list[int]) -> torch.Tensor:
        sizes.append(len(values))
        return exchange(values, going, coming)

    monkeypatch.setattr(row_sharding, "exchange", watched)
    table = nn.Embedding(1000, 3, sparse=True)
    plain = table.weight.detach().clone()
    shard_rows(table, alone, torch.device("cpu"))
    hidden, targets = torch.randn(4, 3), torch.tensor([[1, 2], [2, -100], [999, 5], [7, 1]])
    draws: list[Any] = [{"num_samples": 20, "generator": torch.Generator().manual_seed(0)} for _ in range(2)]
    found = multinomial_nll(hidden, table, targets, item_loss="sampled", **draws[0])
    torch.testing.assert_close(found, multinomial_nll(hidden, plain, targets, item_loss="sampled", **draws[1]))
    assert max(sizes) == 20 and sum(sizes) == 2 * (20 + 6 + 6)  # ids there and rows back; positives, and -100 read as row 0


def test_the_whole_catalogue_is_scored_in_pieces(
    alone: DeviceMesh, tiny_backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CLLM4RecForRecommendation.from_backbone(tiny_backbones["gpt2"], num_users=2, num_items=11)
    hidden = torch.randn(3, model.config.hidden_size)
    expected = model.item_logits(hidden)
    shard_rows(model.item_collaborative, alone, torch.device("cpu"))
    monkeypatch.setattr(modeling_cllm4rec, "SHARED_ROWS", 4)
    with torch.no_grad():
        torch.testing.assert_close(model.item_logits(hidden), expected)


def test_a_limit_below_zero_is_refused(finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(InputError, match="shard_tables_above is -1.0; it must be 0 or more"):
        finetune_arguments(shard_tables_above=-1.0)
