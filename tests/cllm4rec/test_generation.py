"""What the content LM writes: greedy by default, with ID tokens in the prompt, with and without a cache, padded or not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForCausalLM, CLLM4RecForRecommendation, CLLM4RecModel

PROMPT = "<user_1> says of <item_3>:"
LONGER = "<user_3> says of this one, which is a gift, <item_11>:"
gpt2_only = pytest.mark.parametrize("backbone", ["gpt2"], indirect=True)


@pytest.fixture
def prompt(tokenizer) -> torch.Tensor:
    return tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")["input_ids"]


@torch.no_grad()
def by_hand(model: CLLM4RecForCausalLM, ids: torch.Tensor, words: int) -> torch.Tensor:
    """Append the likeliest word again and again, each time reading the whole text."""
    for _ in range(words):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


def test_greedy_words_with_and_without_a_cache(writer, prompt):
    expected = by_hand(writer, prompt, 8)
    with torch.no_grad():
        logits = writer(expected).logits[0, prompt.shape[1] - 1 : -1]
    for use_cache in (True, False):
        settings = {"max_new_tokens": 8, "eos_token_id": None, "use_cache": use_cache}
        output = writer.generate(prompt, **settings, return_dict_in_generate=True, output_logits=True)
        assert torch.equal(output.sequences, expected)
        torch.testing.assert_close(torch.cat(output.logits), logits, rtol=1e-4, atol=1e-4)


def test_padded_prompts_are_continued_as_alone(writer, tokenizer):
    settings = {"max_new_tokens": 8, "eos_token_id": None}
    padded = tokenizer([PROMPT, LONGER], padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    width = padded["input_ids"].shape[1]
    for use_cache in (True, False):
        together = writer.generate(**padded, **settings, use_cache=use_cache)
        for row, text in enumerate([PROMPT, LONGER]):
            alone = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            expected = by_hand(writer, alone, 8)[0, alone.shape[1] :]
            assert together[row, width:].tolist() == expected.tolist()


def test_what_the_tokenizer_gives_can_be_passed_on(writer, tokenizer):
    encoded = tokenizer(PROMPT, return_tensors="pt")
    written = writer.generate(**encoded, max_new_tokens=4)
    assert written.shape[1] <= encoded["input_ids"].shape[1] + 4
    assert torch.equal(written[:, : encoded["input_ids"].shape[1]], encoded["input_ids"])
    assert "<user_1> says of <item_3>" in tokenizer.decode(written[0])


@gpt2_only
def test_several_texts_for_a_prompt(writer, tokenizer, prompt):
    prompts = torch.cat([prompt, prompt.flip(1)])
    settings = {"max_new_tokens": 5, "eos_token_id": None}
    torch.manual_seed(0)
    sampled = writer.generate(prompts, **settings, do_sample=True, num_return_sequences=3)
    assert sampled.shape == (6, prompt.shape[1] + 5)
    assert torch.equal(sampled[:, : prompt.shape[1]], prompts.repeat_interleave(3, 0))
    beams = writer.generate(prompts, **settings, num_beams=4, num_return_sequences=2)
    assert torch.equal(beams[:, : prompt.shape[1]], prompts.repeat_interleave(2, 0))
    output = writer.generate(prompts, **settings, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(output.sequences, writer.generate(prompts, **settings))
    assert len(output.scores) == 5
    assert output.scores[0].shape == (2, writer.config.vocab_size)


@pytest.mark.parametrize("backbone", ["llama"], indirect=True)
def test_a_text_ends_with_its_end_token(writer, prompt):
    words = by_hand(writer, prompt, 12)[0, prompt.shape[1] :].tolist()
    end = next(word for word in words if words.index(word) > 0)
    written = writer.generate(prompt, max_new_tokens=12, eos_token_id=end)[0, prompt.shape[1] :].tolist()
    assert written == words[: words.index(end) + 1]


@gpt2_only
def test_repeated_calls_write_the_same(writer, prompt):
    torch.manual_seed(0)
    first = writer.generate(prompt, max_new_tokens=10)
    torch.manual_seed(1)
    assert torch.equal(writer.generate(prompt, max_new_tokens=10), first)


@gpt2_only
@pytest.mark.parametrize(("length", "new"), [(8, 121), (128, None), (200, 5)])
def test_a_text_longer_than_the_context(writer, length, new):
    with pytest.raises(ValueError, match=f"the prompt takes {length} of the 128 tokens of the context, max_new_tokens is {new}"):
        writer.generate(torch.full((1, length), 7), max_new_tokens=new)


@gpt2_only
def test_a_text_that_fills_the_context(writer):
    assert writer.generate(torch.full((1, 120), 7), max_new_tokens=8, eos_token_id=None).shape == (1, 128)


# ---- generation_config ----


@pytest.fixture
def sampling_backbone(tiny_backbones, tmp_path) -> Path:
    folder = tmp_path / "backbone"
    shutil.copytree(tiny_backbones["gpt2"], folder)
    own = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 5,
        "repetition_penalty": 1.3,
        "bos_token_id": 0,
        "eos_token_id": [0, 3],
    }
    GenerationConfig(**own).save_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.do_sample  # the backbone itself samples
    return folder


@pytest.mark.parametrize("class_", [CLLM4RecModel, CLLM4RecForRecommendation, CLLM4RecForCausalLM])
def test_sampling_of_the_backbone_is_switched_off(class_, sampling_backbone, tmp_path):
    model = class_.from_backbone(sampling_backbone, num_users=2, num_items=3, initializer_range=0.5)
    model.save_pretrained(tmp_path / "one")
    class_.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for folder in (tmp_path / "one", tmp_path / "two"):
        stored = json.loads((folder / "generation_config.json").read_text())
        assert stored["do_sample"] is False
        assert (stored["bos_token_id"], stored["eos_token_id"], stored["pad_token_id"]) == (0, [0, 3], 0)
        assert not {"temperature", "top_k", "repetition_penalty"} & {key for key, value in stored.items() if value}
        loaded = CLLM4RecForCausalLM.from_pretrained(folder)
        assert loaded.generation_config.do_sample is False
    ids = torch.tensor([[7, 401, 9, 404]])
    expected = by_hand(loaded, ids, 10)
    for seed in range(3):
        torch.manual_seed(seed)
        assert torch.equal(loaded.generate(ids, max_new_tokens=10, eos_token_id=None), expected)


@gpt2_only
def test_what_a_user_sets_is_kept_whichever_class_saves(saved, tmp_path):
    model = CLLM4RecForCausalLM.from_pretrained(saved)
    model.generation_config.max_new_tokens = 33
    for number, class_ in enumerate([CLLM4RecForRecommendation, CLLM4RecModel, CLLM4RecForCausalLM]):
        model.save_pretrained(tmp_path / str(number))
        model = class_.from_pretrained(tmp_path / str(number))
    assert model.generation_config.max_new_tokens == 33
    assert model.generation_config.do_sample is False


def test_texts_end_and_pad_with_tokens_of_the_backbone(backbone, writer, tokenizer):
    own, ours = AutoTokenizer.from_pretrained(backbone), writer.generation_config
    end = own.sep_token_id if own.eos_token_id is None else own.eos_token_id
    assert end is not None
    assert ours.eos_token_id == end
    assert ours.pad_token_id == (end if own.pad_token_id is None else own.pad_token_id)
    assert ours.pad_token_id == tokenizer.pad_token_id


def test_a_backbone_without_tokenizer_and_end(tiny_backbones, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_backbones["gpt2"], eos_token_id=None, bos_token_id=None)
    model.generation_config = GenerationConfig()
    model.save_pretrained(tmp_path)
    writer = CLLM4RecForCausalLM.from_backbone(tmp_path, num_users=1, num_items=1)
    assert writer.generation_config.eos_token_id is None
    assert writer.generate(torch.tensor([[1, 400, 401]]), max_new_tokens=5).shape == (1, 8)
