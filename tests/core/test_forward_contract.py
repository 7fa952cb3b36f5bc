"""Habits of transformers that every head keeps: losses under `Trainer`, outputs, labels, devices, compilation, modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from accelerate import cpu_offload
from datasets import Dataset
from lcrec_models import new_lcrec
from transformers import AutoModelForCausalLM, GenerationConfig, Trainer, TrainingArguments

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import (
    CLLM4RecForCausalLM,
    CLLM4RecForRecommendation,
    CLLM4RecModel,
)
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.language_model import next_word_loss

WORDS, USERS, ITEMS = 16, 3, 7
"""Sizes of the examples: word ids that every tiny backbone has, users, items."""
Make = Callable[[str], Any]


@pytest.fixture(params=["gpt2", "llama"])
def backbone(request: pytest.FixtureRequest, tiny_backbones: dict[str, Path]) -> Path:
    return tiny_backbones[request.param]


VECTORS = np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)


@pytest.fixture
def make(backbone: Path) -> Make:
    """Return a maker of models by the name of their head, in evaluation mode."""

    def made(head: str) -> Any:
        if head == "lcrec":
            return new_lcrec(backbone)[0]
        if head == "reader":
            return new_lcrec(backbone, item_head=True, item_inputs=True, embeddings=VECTORS)[0]
        if head == "plain":
            return AutoModelForCausalLM.from_pretrained(backbone)
        kind = {"items": CLLM4RecForRecommendation, "words": CLLM4RecForCausalLM, "model": CLLM4RecModel}[head]
        return kind.from_backbone(backbone, num_users=USERS, num_items=ITEMS, initializer_range=0.3)

    return made


def rows_of(head: str, count: int = 8) -> dict[str, list[Any]]:
    """Return inputs and labels of a head; texts have different numbers of labels."""
    random = np.random.default_rng(0)
    ids = random.integers(0, WORDS, (count, 6))
    labels = random.integers(0, ITEMS, (count, 2)) if head == "items" else ids.copy()
    for row in range(count if head != "items" else 0):
        labels[row, : 1 + row % 4] = -100
    return {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist(), "labels": labels.tolist()}


@pytest.mark.parametrize("backbone", ["llama"], indirect=True)
@pytest.mark.parametrize("head", ["plain", "items", "words", "lcrec"])
def test_accumulation_gives_the_same_step_under_trainer(make: Make, head: str, tmp_path: Path) -> None:
    """8 x 1 = 4 x 2 = 2 x 4: the same logged loss and the same weights after one step of SGD without clipping."""
    start = make(head)
    found = []
    for size, accumulated in ((8, 1), (4, 2), (2, 4)):
        model = copy.deepcopy(start)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=1,
        )
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer = Trainer(model, arguments, train_dataset=Dataset.from_dict(rows_of(head)))
        trainer.train()
        weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        found.append((trainer.state.log_history[0]["loss"], weights))
    for loss, weights in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-3)
        assert torch.allclose(weights, found[0][1], atol=1e-5)


@pytest.mark.parametrize("head", ["model", "items", "words", "lcrec"])
def test_outputs_in_every_form(make: Make, head: str) -> None:
    model = make(head)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 1]])
    extra = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = model(input_ids=ids, return_dict=True, **extra)
        parts = model(input_ids=ids, return_dict=False, **extra)
    assert isinstance(parts, tuple) and torch.equal(parts[0], whole[0])
    layers = model.config.get_text_config().num_hidden_layers
    assert len(whole.hidden_states) == layers + 1 and len(whole.attentions) == layers
    assert whole.hidden_states[0].shape[:2] == ids.shape and whole.attentions[0].shape[-2:] == (4, 4)


@pytest.mark.parametrize("head", ["model", "items", "words", "lcrec"])
def test_embeddings_in_place_of_ids(make: Make, head: str) -> None:
    model = make(head)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs_embeds=embeds)[0], model(input_ids=ids)[0])
    with pytest.raises(InputError, match="input_ids (and|or) inputs_embeds"):
        model()


@pytest.mark.parametrize("head", ["items", "words", "lcrec"])
def test_padding_on_either_side(make: Make, head: str) -> None:
    """Positions count the real tokens, so that the logits of the last token are those of the text alone."""
    model = make(head)
    alone = torch.tensor([[3, 4, 5]])
    left, right = torch.tensor([[0, 0, 3, 4, 5]]), torch.tensor([[3, 4, 5, 0, 0]])
    with torch.no_grad():
        wanted = model(input_ids=alone).logits
        at_left = model(input_ids=left, attention_mask=torch.tensor([[0, 0, 1, 1, 1]])).logits
        at_right = model(input_ids=right, attention_mask=torch.tensor([[1, 1, 1, 0, 0]])).logits
    if head != "items":
        wanted, at_left, at_right = wanted[:, -1], at_left[:, -1], at_right[:, 2]
    assert torch.allclose(at_left, wanted, atol=1e-5) and torch.allclose(at_right, wanted, atol=1e-5)


def test_one_label_a_row_and_labels_beyond_the_catalogue(make: Make) -> None:
    model = make("items")
    ids = torch.tensor([[3, 4], [5, 6]])
    with torch.no_grad():
        flat, square = (model(input_ids=ids, labels=torch.tensor(labels)).loss for labels in ([1, 2], [[1], [2]]))
    assert torch.equal(flat, square)
    with pytest.raises(ValueError, match="labels has the item index 7; item indices go from 0 to 6"):
        model(input_ids=ids, labels=torch.tensor([1, ITEMS]))
    with pytest.raises(ValueError, match=r"labels has the shape \(2, 1, 1\); it must be \(2,\) or \(2, items\)"):
        model(input_ids=ids, labels=torch.zeros(2, 1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels has the shape \(3,\)"):
        model(input_ids=ids, labels=torch.zeros(3, dtype=torch.long))


def test_id_tokens_among_word_labels_do_not_count(make: Make) -> None:
    """`DataCollatorForLanguageModeling` gives labels that equal the input, ID tokens included."""
    model = make("words")
    ids = torch.tensor([[3, model.config.id_offset, 4, model.config.id_offset + USERS + 2, 5]])
    ignored = ids.masked_fill(ids >= model.config.vocab_size, -100)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, labels=ids).loss, model(input_ids=ids, labels=ignored).loss)


@pytest.mark.parametrize("head", ["words", "lcrec"])
def test_loss_as_the_backbone_computes_it(make: Make, head: str) -> None:
    model = make(head)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 1]])
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    with torch.no_grad():
        own = model(input_ids=ids, labels=ids).loss
        assert torch.equal(own, model.backbone(input_ids=ids, labels=ids).loss)
        assert torch.allclose(model(input_ids=ids, shift_labels=shifted).loss, own)
        whole = model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(12)).loss
    assert torch.allclose(whole, own * 6 / 12)


def test_next_word_loss_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]))
    labels = torch.tensor([[0, 1, 2]])
    by_hand = -(np.log(0.25) + np.log(0.1)) / 2
    assert next_word_loss(logits, labels).item() == pytest.approx(by_hand)
    assert next_word_loss(logits, labels, num_items_in_batch=4).item() == pytest.approx(by_hand * 2 / 4)
    assert next_word_loss(logits, torch.tensor([[0, 1, 3]])).item() == pytest.approx(-np.log(0.25))
    assert next_word_loss(logits, None, torch.tensor([[1, 2, -100]])).item() == pytest.approx(by_hand)
    assert next_word_loss(logits, None) is None


@pytest.mark.parametrize("backbone", ["llama"], indirect=True)
@pytest.mark.parametrize("head", ["items", "words", "lcrec", "reader"])
def test_export_without_a_branch_on_data(make: Make, head: str) -> None:
    model = make(head)
    given = {"input_ids": torch.tensor([[3, 4, 5, 6]]), "attention_mask": torch.ones(1, 4, dtype=torch.long), "use_cache": False}
    with torch.no_grad():
        exported = torch.export.export(model, (), given, strict=False)
        assert torch.allclose(exported.module()(**given).logits, model(**given).logits, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["items", "words", "lcrec", "reader"])
def test_compiled_in_one_graph(make: Make, head: str) -> None:
    model = make(head)
    given = {"input_ids": torch.tensor([[3, 4, 5, 6]]), "attention_mask": torch.ones(1, 4, dtype=torch.long), "use_cache": False}
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        assert torch.allclose(compiled(**given).logits, model(**given).logits, atol=1e-5)


@pytest.mark.parametrize("head", ["items", "lcrec", "reader"])
def test_offloaded_weights_score(make: Make, head: str) -> None:
    model = make(head)
    prompts = [np.array([3, 4, 5]), np.array([6, 7])]
    if head == "reader":
        prompts = [np.concatenate([prompt, model.tokens_of(np.array([2]))[0]]) for prompt in prompts]
    wanted = model.catalogue_scores(prompts), model.score_prompts(prompts)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert torch.allclose(model.catalogue_scores(prompts).cpu(), wanted[0], atol=1e-6)
    assert torch.allclose(model.score_prompts(prompts).cpu(), wanted[1], atol=1e-6)


@pytest.mark.parametrize("head", ["items", "lcrec"])
def test_scoring_changes_no_mode(make: Make, head: str) -> None:
    model = make(head)
    assert not any(module.training for module in model.modules())
    model.train()
    model.backbone.eval()
    before = [module.training for module in model.modules()]
    model.score_prompts([np.array([3, 4, 5])])
    assert [module.training for module in model.modules()] == before


def test_prediction_of_trainer_is_the_scores(make: Make, tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True)
    predicted = Trainer(make("items"), arguments).predict(Dataset.from_dict(rows_of("items"))).predictions
    assert predicted.shape == (8, ITEMS)


def test_generate_takes_every_kind_of_prompt(make: Make) -> None:
    model, assistant = make("words"), make("plain")
    ids = torch.tensor([[3, 4, 5, 6]])
    wanted = model.generate(ids, max_new_tokens=4)
    for settings in ({"inputs": ids}, {"input_ids": ids}, {"input_ids": ids, "assistant_model": assistant}):
        assert torch.equal(model.generate(**settings, max_new_tokens=4), wanted)
    embeds = model.embed_tokens(ids, "content")
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=4), wanted[:, 4:])
    named = torch.tensor([[3, model.config.id_offset]])
    with pytest.raises(InputError, match="assistant_model: the prompts hold ID tokens"):
        model.generate(named, assistant_model=assistant, max_new_tokens=4)
    with pytest.raises(InputError, match="generate got 2 prompts"):
        model.generate(inputs=ids, input_ids=ids)
    model.generation_config.bos_token_id = None
    with pytest.raises(ValueError, match="bos_token_id"):
        model.generate(max_new_tokens=4)
    model.generation_config.bos_token_id = 3
    assert torch.equal(model.generate(max_new_tokens=4), model.generate(ids[:, :1], max_new_tokens=4))
    begun = model.generate(ids, max_new_tokens=2, return_dict_in_generate=True)
    cache = {"past_key_values": begun.past_key_values}
    assert torch.equal(model.generate(begun.sequences, max_new_tokens=2, **cache), wanted)
    assert torch.equal(model.generate(ids, max_new_tokens=4, assistant_model=make("words")), wanted)
    whole = model.generate(named, max_new_tokens=4)
    begun = model.generate(named, max_new_tokens=2, return_dict_in_generate=True)
    assert torch.equal(model.generate(begun.sequences, max_new_tokens=2, past_key_values=begun.past_key_values), whole)
    with pytest.raises(InputError, match="max_length is 100000: they do not fit together"):
        model.generate(ids, max_length=100_000)
    with pytest.raises(InputError, match="max_new_tokens is 300: they do not fit together"):
        model.generate(ids, generation_config=GenerationConfig(max_new_tokens=300))


def test_words_cannot_be_added_behind_the_ids(make: Make) -> None:
    for head in ("items", "words", "lcrec"):
        model = make(head)
        before = model.get_input_embeddings().weight.shape
        with pytest.raises(InputError, match="resize_token_embeddings: .*add words to the backbone first"):
            model.resize_token_embeddings(500)
        assert model.get_input_embeddings().weight.shape == before
        layer = torch.nn.Linear(model.config.hidden_size, 5)
        if model.get_output_embeddings() is not None:
            model.set_output_embeddings(layer)
            assert model.get_output_embeddings() is layer


@pytest.mark.parametrize("head", ["model", "items", "lcrec"])
def test_lora_for_feature_extraction(make: Make, head: str) -> None:
    model = make(head)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        wanted = model(input_ids=ids)[0]
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear"))
        assert torch.equal(adapted(input_ids=ids)[0], wanted)
