"""LC-Rec's catalogue: items that are added and removed without training."""

from __future__ import annotations

import sys

import lcrec_models
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from lcrec_models import CODES, ITEMS, LEVELS, WIDTH

from modeling_cllm4rec.core.catalogue import Catalogue
from modeling_cllm4rec.corpora.item_embeddings import embed_items
from modeling_cllm4rec.lcrec.catalogue_changes import ENCODES_TEXTS, with_codes
from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel


@pytest.fixture
def gpt2(tiny_backbones) -> LCRecForRecommendation:
    return lcrec_models.new_lcrec(tiny_backbones["gpt2"])[0]


def wide_indexer() -> RQVAEModel:
    """Make an indexer of the width of the tiny backbones, the same each time."""
    torch.manual_seed(0)
    return RQVAEModel(RQVAEConfig(input_dim=32, hidden_dims=(8,), latent_dim=4, num_levels=LEVELS, codebook_size=CODES))


def test_new_items_get_free_indices_and_can_be_recommended(gpt2, tmp_path):
    old = gpt2.semantic_ids.codes.copy()
    new = pa.table({"item_id": ["n 1", "n 2"], "title": ["new 1", "new 2"]})
    gpt2.add_items(new, np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float32))
    assert np.array_equal(gpt2.semantic_ids.codes[:12], old)
    assert len(np.unique(gpt2.semantic_ids.codes, axis=0)) == 14 == gpt2.num_items
    found = gpt2.recommend(users=["ann"], k=11, num_beams=14).to_pandas()["item"]
    assert {"n 1", "n 2"} <= set(found)
    gpt2.save_pretrained(tmp_path)
    assert (
        LCRecForRecommendation.from_pretrained(tmp_path).recommend(users=["ann"], k=11, num_beams=14).to_pandas()["item"].tolist()
        == found.tolist()
    )


def test_texts_alone_are_encoded_as_the_index_was(tiny_backbones):
    encoder = {"encoder": "gpt2", "fields": ["title"], "pooling": "separate", "max_text_tokens": 9}
    new = [{"item_id": "n 1", "title": "a lamp"}, {"item_id": "n 2", "title": "green tea"}]
    grown = []
    for form in (new, pd.DataFrame(new), pa.Table.from_pylist(new)):
        model, _ = lcrec_models.new_lcrec(tiny_backbones["gpt2"], item_encoder=encoder, indexer=wide_indexer())
        model.add_items(form, encoder=str(tiny_backbones["gpt2"]))
        grown.append(model.semantic_ids.codes)
    vectors = embed_items(pa.Table.from_pylist(new), encoder=str(tiny_backbones["gpt2"]), fields=["title"])
    model, _ = lcrec_models.new_lcrec(tiny_backbones["gpt2"], indexer=wide_indexer())
    model.add_items(new, vectors)
    assert all(np.array_equal(codes, model.semantic_ids.codes) for codes in grown) and model.num_items == 14
    model.add_items([], vectors)
    assert model.num_items == 14


def test_texts_alone_that_cannot_be_encoded(tiny_backbones, monkeypatch):
    model, _ = lcrec_models.new_lcrec(tiny_backbones["gpt2"])
    new = [{"item_id": "n 1", "title": "a lamp"}]
    with pytest.raises(ValueError, match=r"does not say how texts become embeddings .*; give embeddings=, or index"):
        model.add_items(new)
    model.config.item_encoder = {"encoder": "some-encoder", "fields": ["title"]}
    with pytest.raises(FileNotFoundError, match=r"(?s)'some-encoder', could not be read .*; give encoder= its folder or"):
        model.add_items(new)
    with pytest.raises(ValueError, match=r"shape \(1, 32\); 1 items need \(1, 6\); encoder is not that of the index"):
        model.add_items(new, encoder=str(tiny_backbones["gpt2"]))
    monkeypatch.setitem(sys.modules, ENCODES_TEXTS, None)
    with pytest.raises(ImportError, match="pip install . in its repository, or give embeddings= made by .*'some-encoder'"):
        model.add_items(new)
    assert model.num_items == 12


def test_removed_items_are_gone_everywhere(gpt2):
    gpt2.remove_items(["item 3", "ä"])
    assert gpt2.num_items == 10
    assert gpt2.users.history(0).tolist() == [0, 4]  # of items 0, 3, 5: 3 left, 5 moved up
    assert gpt2.users.history(1).tolist() == []
    found = gpt2.recommend(histories=[["item 0"]], k=9, num_beams=10).to_pandas()["item"]
    assert set(found) == set(ITEMS) - {"item 0", "item 3", "ä"}


def test_refusals(gpt2):
    new = pa.table({"item_id": ["n 1"], "title": ["new"]})
    with pytest.raises(ValueError, match="embeddings hold NaN or infinite values"):
        gpt2.add_items(new, np.full((1, WIDTH), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"embeddings have shape \(1, 3\); 1 items need \(1, 6\)"):
        gpt2.add_items(new, np.zeros((1, 3), np.float32))
    for items, message in [
        (pa.table({"item_id": ["item 3"], "title": ["again"]}), "1 of the new item_id are known already:"),
        (pa.table({"item_id": ["n 1", "n 1"]}), r"item_id names some ids twice: \['n 1'\]"),
        (pa.table({"item_id": [7]}), "item_id: the model's ids are strings, the new ones integers; convert them first"),
        ([{"item_id": 7, "title": "new"}], "item_id: the model's ids are strings, the new ones integers"),
        (pa.table({"id": ["n 1"]}), r"items has no column 'item_id', only \['id'\]"),
        (["a lamp"], "items holds 'a lamp'; give a table, or a list with a dict .* for each item"),
        ([{"item_id": "n 1", "title": 3}], "items: column 'title' has type int64, in the catalogue string"),
    ]:
        with pytest.raises(ValueError, match=message):
            gpt2.add_items(items, np.zeros((1, WIDTH), np.float32))
    with pytest.raises(ValueError, match="nothing would be left to recommend"):
        gpt2.remove_items(ITEMS)
    with pytest.raises(ValueError, match=r"1 unknown item_id: \['nobody'\]"):
        gpt2.remove_items(["nobody"])
    gpt2.indexer = None
    with pytest.raises(ValueError, match="saved without its indexer"):
        gpt2.add_items(new, np.zeros((1, WIDTH), np.float32))
    assert gpt2.num_items == 12


def test_new_codes_replace_the_old_ones_and_what_was_made_of_them(gpt2):
    trie, turned = gpt2.trie, gpt2.semantic_ids.codes[::-1]
    gpt2.set_catalogue(with_codes(gpt2.catalogue, turned))
    assert gpt2.catalogue.table.column_names.count("codes") == 1
    assert np.array_equal(gpt2.semantic_ids.codes, turned) and gpt2.trie is not trie
    with pytest.raises(ValueError, match="no column 'codes': it is not that of an LC-Rec model"):
        gpt2.set_catalogue(Catalogue(ITEMS))
