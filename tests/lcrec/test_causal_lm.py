"""LC-Rec as a language model of transformers: the Auto class, `generate`, pipelines, peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lcrec_models import new_lcrec
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, Trainer, TrainingArguments, pipeline

from modeling_cllm4rec.lcrec.constrained_decoding import TrieLogitsProcessor
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForCausalLM


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = new_lcrec(tiny_backbones[request.param])
    path = tmp_path_factory.mktemp(request.param) / "lcrec"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_auto_class_gives_the_same_weights_and_logits(folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is LCRecForCausalLM and model.can_generate()
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(model(ids).logits, model.backbone(ids).logits)
    assert (
        json.loads((folder / "config.json").read_text())["auto_map"]["AutoModelForCausalLM"] == "modeling_lcrec.LCRecForCausalLM"
    )


def test_generate_equals_that_of_the_backbone(folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids, mask = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 5]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    for settings in ({}, {"num_beams": 3}):
        both = [one.generate(ids, attention_mask=mask, max_new_tokens=5, **settings) for one in (model, model.backbone)]
        assert torch.equal(*both)


def test_constrained_it_writes_the_items_that_recommend_finds(folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    (prompt,) = model.build_prompts(None, [model.users.history(0)])
    processor = TrieLogitsProcessor(model.trie, model.config.first_index_token, len(prompt))
    written = model.generate(
        torch.from_numpy(prompt)[None],
        logits_processor=LogitsProcessorList([processor]),
        max_new_tokens=2,
        num_beams=4,
        num_return_sequences=4,
    )
    codes = written[:, len(prompt) :] - model.config.first_index_token - torch.arange(2) * model.config.codebook_size
    items = [model.semantic_ids.codes.tolist().index(row) for row in codes.tolist()]
    found = model.recommend(users=[model.users.ids.ids_of([0])[0]], k=4, num_beams=5, exclude_seen=False)
    assert model.catalogue.ids.ids_of(items[:1]) == [found.to_pylist()[0]["item"]]


def test_a_pipeline_shows_semantic_ids_unless_they_are_left_out_as_special(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    writer = pipeline("text-generation", model=AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer)
    ((text,),) = (writer("<a_1><b_2>", max_new_tokens=1, skip_special_tokens=False),)
    assert text["generated_text"].startswith("<a_1><b_2>")
    ids = tokenizer("<a_1><b_2>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "" and tokenizer.decode(ids) == "<a_1><b_2>"


def test_peft_trains_it_as_a_causal_language_model(folder: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    layers = ["c_attn"] if "gpt2" in str(folder) else ["q_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=layers))
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "attention_mask": [1] * 4}] * 4
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, learning_rate=0.1, use_cpu=True, report_to="none", save_strategy="no"
    )
    Trainer(adapted, arguments, train_dataset=rows).train()
    ids = torch.tensor([[5, 6, 7]])
    adapted.eval().save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    torch.testing.assert_close(again(input_ids=ids).logits, adapted(input_ids=ids).logits)
    assert not torch.allclose(adapted(input_ids=ids).logits, AutoModelForCausalLM.from_pretrained(folder)(ids).logits)
    assert torch.equal(
        adapted.generate(input_ids=ids, max_new_tokens=3), adapted.merge_and_unload().generate(ids, max_new_tokens=3)
    )
