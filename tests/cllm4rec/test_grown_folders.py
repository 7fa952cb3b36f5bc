"""A model that grew and shrank, saved, loaded, written by and asked, over every backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForCausalLM, CLLM4RecForRecommendation
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

NEW = [{"item_id": "new 1", "title": "a title of something"}, {"item_id": "new 2", "title": "of item 3"}]


@pytest.mark.parametrize("backbone", ["gpt2", "gpt2-untied", "llama", "llama-tied", "qwen2"], indirect=True)
def test_a_grown_model_survives_its_folder(saved: Path, tmp_path: Path) -> None:
    model = CLLM4RecForRecommendation.from_pretrained(saved)
    model.add_items(NEW)
    model.add_users({"zoe": ["new 1", "item 3"]})
    model.remove_items(["item 0"])
    tokenizer = CLLM4RecTokenizer.from_pretrained(saved, num_users=model.config.num_users, num_items=model.config.num_items)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = CLLM4RecForRecommendation.from_pretrained(tmp_path)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded.id_parameters, model.id_parameters, strict=True))
    assert loaded.recommend(users=["zoe", "ann"], k=5).table.equals(model.recommend(users=["zoe", "ann"], k=5).table)
    again = CLLM4RecTokenizer.from_pretrained(tmp_path)
    config = loaded.config
    assert len(again) == config.total_tokens == config.id_offset + 5 + 13
    assert again.item_token_id(12) == config.total_tokens - 1
    writer = CLLM4RecForCausalLM.from_pretrained(tmp_path)
    assert writer.generate(torch.tensor([[again.user_token_id(4), again.item_token_id(12)]]), max_new_tokens=2).shape == (1, 4)
