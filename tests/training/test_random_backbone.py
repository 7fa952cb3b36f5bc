"""`backbone_weights: random`, the paper's LLM-Scratch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from modeling_cllm4rec.cllm4rec.arguments import PretrainArguments
from modeling_cllm4rec.cllm4rec.pretraining import new_model
from modeling_cllm4rec.corpora.data_folder import RecommendationData


def test_weights_are_fresh_seeded_and_of_the_same_shape(
    data: RecommendationData, pretrain_arguments: Callable[..., PretrainArguments]
) -> None:
    arguments = {"init_ids": "random"}
    plain, fresh, same, other = (
        new_model(data, pretrain_arguments(**arguments, **changes))[0]
        for changes in (
            {},
            {"backbone_weights": "random"},
            {"backbone_weights": "random"},
            {"backbone_weights": "random", "seed": 7},
        )
    )
    ours, theirs = fresh.backbone.state_dict(), plain.backbone.state_dict()
    assert ours.keys() == theirs.keys()
    moved = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert any("wte" in name for name in moved) and any("attn" in name for name in moved)
    assert all(torch.equal(one, two) for one, two in zip(ours.values(), same.backbone.state_dict().values(), strict=True))
    assert not torch.equal(ours[moved[0]], other.backbone.state_dict()[moved[0]])
    assert torch.equal(fresh.item_collaborative.weight, plain.item_collaborative.weight)


def test_what_else_it_may_not_be(pretrain_arguments: Callable[..., PretrainArguments]) -> None:
    with pytest.raises(ValueError, match="backbone_weights is 'none'; allowed are 'pretrained', 'random'"):
        pretrain_arguments(backbone_weights="none")
