"""What trains and what does not, LoRA in and out, and the fingerprint of what stays frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.parameters import choose_trainable
from modeling_cllm4rec.training.parameters import merge_lora, parameter_groups, start_fingerprint, trainable, tune_backbone

TABLES = {"user_collaborative.weight", "item_collaborative.weight", "user_content.weight", "item_content.weight"}
COLLABORATIVE = {"user_collaborative.weight", "item_collaborative.weight"}


@pytest.fixture
def model(tiny_backbone: Path) -> CLLM4RecForRecommendation:
    return CLLM4RecForRecommendation.from_backbone(tiny_backbone, users=["ann", "ben"], catalogue=["p", "q", "r"])


@pytest.fixture
def arguments() -> Callable[[str], FinetuneArguments]:
    return lambda tune: FinetuneArguments(data="d", output="o", tune=tune, learning_rate=0.5, backbone_learning_rate=0.25)  # type: ignore[arg-type]


def test_frozen(model: CLLM4RecForRecommendation, arguments: Callable[[str], FinetuneArguments]) -> None:
    assert choose_trainable(model, arguments("frozen")) is None
    assert trainable(model).keys() == TABLES
    choose_trainable(model, arguments("frozen"), texts=False)
    assert trainable(model).keys() == COLLABORATIVE


def test_full(model: CLLM4RecForRecommendation, arguments: Callable[[str], FinetuneArguments]) -> None:
    names = {name for name, _ in model.named_parameters()}
    assert choose_trainable(model, arguments("full")) is None
    assert trainable(model).keys() == names


def test_without_texts_nothing_trains_that_texts_alone_would_train(
    model: CLLM4RecForRecommendation, arguments: Callable[[str], FinetuneArguments]
) -> None:
    """The content tables and an output layer for words of its own; GPT-2's is its table of words, which prompts are read with."""
    names = {name for name, _ in model.named_parameters()}
    choose_trainable(model, arguments("full"), texts=False)
    assert trainable(model).keys() == names - (TABLES - COLLABORATIVE) - {"backbone.lm_head.weight"}
    assert model.get_input_embeddings().weight.requires_grad


def test_lora(model: CLLM4RecForRecommendation, arguments: Callable[[str], FinetuneArguments]) -> None:
    assert choose_trainable(model, arguments("lora")) is not None
    names = trainable(model).keys()
    assert names > TABLES
    assert all(".lora_" in name for name in names - TABLES)
    assert not any("lm_head" in name for name in names)
    assert {module.p for name, module in model.named_modules() if "lora_dropout" in name and hasattr(module, "p")} <= {0.0}


@pytest.mark.parametrize("tiny_backbone", ["llama"], indirect=True)
def test_lora_with_the_settings_of_the_released_lcrec(model: CLLM4RecForRecommendation) -> None:
    settings = {"tune": "lora", "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.05}
    tune_backbone(model, FinetuneArguments(data="d", output="o", **settings))
    adapted = {name.split(".lora_A")[0].rpartition(".")[2]: value for name, value in model.named_parameters() if "lora_A" in name}
    assert adapted.keys() == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {len(matrix) for matrix in adapted.values()} == {8}
    assert {module.p for name, module in model.named_modules() if "lora_dropout" in name and hasattr(module, "p")} == {0.05}


@pytest.mark.parametrize("tiny_backbone", ["gpt2", "llama", "qwen2"], indirect=True)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_dropout_is_set_everywhere_in_the_backbone(share: float, model: CLLM4RecForRecommendation) -> None:
    tune_backbone(model, FinetuneArguments(data="d", output="o", dropout=share))
    ids = torch.arange(12)[None]
    model.train()
    first, second = (model.backbone(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second) == (share == 0)
    if share:
        model.eval()
        assert torch.equal(model.backbone(input_ids=ids).logits, model.backbone(input_ids=ids).logits)


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_attention_is_another_way_to_the_same_states(tune: str, model: CLLM4RecForRecommendation) -> None:
    ids = torch.tensor([[5, 9, 7, 2], [3, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = model.eval()(input_ids=ids, attention_mask=mask).logits
    tune_backbone(model, FinetuneArguments(data="d", output="o", tune=tune, attn_implementation="eager"))  # type: ignore[arg-type]
    assert model.backbone.config.get_text_config()._attn_implementation == "eager"
    torch.testing.assert_close(model.eval()(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-5)
    later = ids.clone()
    later[0, -1] = 11  # the last token changes nothing before it
    before = model.hidden_states(ids, mask, "content")[0, :3]
    torch.testing.assert_close(model.hidden_states(later, mask, "content")[0, :3], before)


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_learning_rates_and_weight_decay(
    tune: str, model: CLLM4RecForRecommendation, arguments: Callable[[str], FinetuneArguments]
) -> None:
    choose_trainable(model, arguments(tune))
    groups = parameter_groups(model, arguments(tune))
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.0), (0.25, 0.01)][: len(groups)]
    assert len(groups) == (1 if tune == "frozen" else 2)
    assert len(groups[0]["params"]) == 4
    grouped = [id(one) for group in groups for one in group["params"]]
    assert sorted(grouped) == sorted(id(one) for one in trainable(model).values())


@torch.no_grad()
def logits(model: CLLM4RecForRecommendation) -> torch.Tensor:
    ids = torch.tensor([[3, 4, model.config.id_offset, model.config.id_offset + 3]])
    return model.eval()(ids, torch.ones_like(ids)).logits


def test_merged_lora_computes_the_same_and_reloads(
    model: CLLM4RecForRecommendation, arguments: Callable[[str], FinetuneArguments], tmp_path: Path
) -> None:
    before = logits(model)
    names = [name for name, _ in model.named_parameters()]
    adapted = choose_trainable(model, arguments("lora"))
    assert torch.equal(logits(model), before)  # the second LoRA matrix starts at zero
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    moved = logits(model)
    assert (moved - before).abs().max() > 1e-3
    merge_lora(adapted)
    assert [name for name, _ in model.named_parameters()] == names
    torch.testing.assert_close(logits(model), moved, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(CLLM4RecForRecommendation.from_pretrained(tmp_path)), logits(model))


def test_lora_starts_from_the_seed_alone(tiny_backbones: dict[str, Path], arguments: Callable[[str], FinetuneArguments]) -> None:
    starts = []
    for ambient in (1, 2):
        model = CLLM4RecForRecommendation.from_backbone(tiny_backbones["gpt2"], users=["ann"], catalogue=["p"])
        torch.manual_seed(ambient)
        choose_trainable(model, arguments("lora"))
        starts.append({name: one for name, one in trainable(model).items() if ".lora_" in name})
        assert torch.initial_seed() == ambient
    assert all(torch.equal(one, starts[1][name]) for name, one in starts[0].items())


def test_fingerprint_is_of_all_weights(model: CLLM4RecForRecommendation) -> None:
    start = start_fingerprint(model)
    assert start_fingerprint(model) == start
    for parameter in (model.item_content.weight, next(model.backbone.parameters())):
        before = parameter.data.clone()
        with torch.no_grad():
            parameter[0, 0] += 1
        assert start_fingerprint(model) != start
        parameter.data = before
    assert start_fingerprint(model) == start


def test_fingerprint_of_16_bit_weights(tiny_backbones: dict[str, Path], arguments: Callable[[str], FinetuneArguments]) -> None:
    model = CLLM4RecForRecommendation.from_backbone(tiny_backbones["gpt2"], num_users=1, num_items=2, dtype=torch.bfloat16)
    choose_trainable(model, arguments("frozen"))
    assert len(start_fingerprint(model)) == 64
