"""Frozen weights in 16 bits: the same products, and the weights come back."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from modeling_cllm4rec.training.precision import frozen_weights_in


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 11, bias=False))
    model.requires_grad_(False)
    model[3].weight = model[3].weight.requires_grad_(True)
    return model


def test_products_under_autocast_are_the_same_to_the_bit() -> None:
    model, words = small_model(), torch.arange(11)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(words)
        with frozen_weights_in(torch.bfloat16, model):
            assert [weight.dtype for weight in model.parameters()] == [
                torch.float32,
                torch.bfloat16,
                torch.float32,
                torch.float32,
                torch.float32,
                torch.float32,
            ]  # the one frozen matrix; biases, table, norm and what trains stay
            assert torch.equal(model(words), expected)


def test_weights_come_back_after_an_error_too() -> None:
    model = small_model()
    before = [weight.data for weight in model.parameters()]
    with pytest.raises(KeyError), frozen_weights_in(torch.bfloat16, model):
        raise KeyError
    for weight, data in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, data)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_weights_of_16_bits_are_held_once() -> None:
    """Weights that lose nothing in 16 bits have no second copy, and are the same afterwards."""
    model = small_model()
    matrix = model[1].weight
    matrix.data = matrix.data.to(torch.bfloat16).float()
    expected, storage = matrix.data.clone(), weakref.ref(matrix.data.untyped_storage())
    with frozen_weights_in(torch.bfloat16, model):
        assert matrix.dtype == torch.bfloat16
        assert storage() is None
    assert matrix.dtype == torch.float32 and torch.equal(matrix, expected)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_the_accelerator_holds_16_bits_alone() -> None:
    """The digits that 16 bits lose wait in main memory."""
    device = torch.accelerator.current_accelerator()
    model = nn.Sequential(nn.Linear(1024, 1024, bias=False)).requires_grad_(False).to(device)
    expected, before = model[0].weight.cpu(), torch.accelerator.memory_allocated()
    with frozen_weights_in(torch.bfloat16, model):
        assert torch.accelerator.memory_allocated() <= before // 2
    assert model[0].weight.device.type == device.type and torch.equal(model[0].weight.cpu(), expected)


def test_none_leaves_everything() -> None:
    model = small_model()
    with frozen_weights_in(None, model):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_tied_table_stays() -> None:
    table, head = nn.Embedding(11, 16), nn.Linear(16, 11, bias=False)
    head.weight = table.weight.requires_grad_(False)
    with frozen_weights_in(torch.bfloat16, nn.ModuleList([table, head])):
        assert head.weight.dtype == table.weight.dtype == torch.float32
