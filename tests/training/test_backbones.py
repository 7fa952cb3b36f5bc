"""A small language model of one's own, trained on training texts only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_utils

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer
from modeling_cllm4rec.training.backbones import END, train_backbone, training_texts

SHAPE = {"vocab_size": 400, "hidden_size": 16, "layers": 1, "heads": 2, "context_length": 64, "epochs": 1, "lr": 5e-3}


@pytest.fixture(scope="module")
def folder(data: RecommendationData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_backbone(data, tmp_path_factory.mktemp("own") / "backbone", **SHAPE)  # type: ignore[arg-type]


def test_texts_are_those_of_items_users_and_train_pairs(synthetic_dataset: SyntheticDataset, data: RecommendationData) -> None:
    texts = list(training_texts(data))
    items, users = data.items.to_pylist(), data.users.to_pylist()
    expected = [", ".join(row["categories"]) for row in items]
    expected += [row[name] for row in items for name in ("title", "brand", "description")]
    expected += [row["biography"] for row in users if row["biography"]]
    expected += data.reviews()["review"].to_pylist()
    assert sorted(texts) == sorted(expected)
    reviews = {(row["user_id"], row["item_id"]): row["review"] for row in synthetic_dataset.interactions.to_pylist()}
    held = [row for row in data.interactions.to_pylist() if row["split"] != "train"]
    secrets = {reviews[users[row["user_index"]]["user_id"], items[row["item_index"]]["item_id"]] for row in held}
    assert len(secrets) > 50
    assert not (secrets - set(data.reviews()["review"].to_pylist())) & set(texts)


def test_it_loads_and_has_learned(folder: Path, data: RecommendationData) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.config.n_positions, model.config.n_embd, model.config.n_layer) == (64, 16, 1)
    assert tokenizer.eos_token == tokenizer.pad_token == END
    assert model.config.vocab_size == len(tokenizer) <= 400
    ids = torch.tensor([tokenizer(data.reviews()["review"][0].as_py())["input_ids"][:64]])
    assert model.eval()(ids, labels=ids).loss.item() < np.log(len(tokenizer)) - 0.2


def test_it_carries_a_recommender(folder: Path) -> None:
    model = CLLM4RecForRecommendation.from_backbone(folder, num_users=2, num_items=3)
    tokenizer = CLLM4RecTokenizer.from_backbone(folder, num_users=2, num_items=3, id_offset=model.config.id_offset)
    ids = tokenizer("<user_1> chose: <item_0> <item_2>", return_tensors="pt")["input_ids"]
    assert model.eval()(ids).logits.shape == (1, 3)


def test_the_same_seed_trains_the_same_and_says_nothing_of_its_loss(
    folder: Path, data: RecommendationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning_once", lambda text, *rest: said.append(text))
    torch.manual_seed(123)
    again = train_backbone(data, tmp_path / "again", **SHAPE)  # type: ignore[arg-type]
    ours, theirs = (load_file(one / "model.safetensors") for one in (again, folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(one, theirs[name]) for name, one in ours.items())
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not [text for text in said if "loss_type" in text]


def test_data_without_texts(data: RecommendationData, tmp_path: Path) -> None:
    bare = dataclasses.replace(
        data,
        users=data.users.select(["user_id"]),
        items=data.items.select(["item_id"]),
        interactions=data.interactions.drop_columns(["review"]),
    )
    with pytest.raises(ValueError, match="has no texts to train a language model on; name a pretrained backbone instead"):
        train_backbone(bare, tmp_path / "none")
    assert not (tmp_path / "none").exists()
