"""The moving average of the weights: values by hand, and what the model holds when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.training import checkpoints
from modeling_cllm4rec.training.weight_average import WeightAverage


def test_values_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([0.0, 8.0]))
    average = WeightAverage({"weight": weight}, decay=0.75)
    weight.data.copy_(torch.tensor([11.0, 8.0]))
    average.update(step=1)  # early: min(0.75, 2 / 11), the average moves by 9 / 11
    assert torch.allclose(average.tensors()["average.weight"], torch.tensor([9.0, 8.0]))
    weight.data.copy_(torch.tensor([13.0, 0.0]))
    average.update(step=1000)  # late: the average moves by 1 / 4
    assert torch.allclose(average.tensors()["average.weight"], torch.tensor([10.0, 6.0]))


def test_model_holds_the_average_within_the_block_only_and_after_an_error_too() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    average = WeightAverage({"weight": weight}, decay=0.5)
    weight.data.fill_(4.0)
    average.update(step=100)
    with pytest.raises(KeyError), average.in_place():
        assert weight.tolist() == [2.0, 2.0]
        raise KeyError
    assert weight.tolist() == [4.0, 4.0]
    average.apply()
    assert weight.tolist() == [2.0, 2.0]


def test_the_saved_model_is_the_validated_average(finetune_arguments: Callable[..., FinetuneArguments], tmp_path: Path) -> None:
    plain, _ = finetune(finetune_arguments(output=str(tmp_path / "plain"), num_train_epochs=1))
    arguments = finetune_arguments(output=str(tmp_path / "average"), num_train_epochs=1, average_decay=0.9)
    averaged, progress = finetune(arguments)
    tensors, state = checkpoints.read(arguments.run_folder / "checkpoints" / "finetune" / f"step-{progress.step:08d}")
    name = "item_collaborative.weight"
    assert torch.equal(averaged.item_collaborative.weight, tensors["average." + name])
    assert torch.equal(plain.item_collaborative.weight, tensors["model." + name])  # training itself is the same
    assert not torch.equal(tensors["average." + name], tensors["model." + name])
    assert progress.best == state["progress"]["best"]
