"""Indices without texts: always unique, the same again, and what the clusters of co-occurrence are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.ranking import histories_from_lists
from modeling_cllm4rec.lcrec.arguments import IndexArguments
from modeling_cllm4rec.lcrec.index_methods import (
    co_occurrence_graph,
    co_occurrence_semantic_ids,
    random_codes,
    vanilla_semantic_ids,
    with_co_occurrence,
)
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds, shared_codes


def blocks(sizes: list[int], users: int = 40, seed: int = 0) -> Histories:
    """Return histories of users who chose three items of one block each; blocks are numbered in order."""
    generator = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes])
    rows = []
    for user in range(users * len(sizes)):
        block = user % len(sizes)
        rows.append((starts[block] + generator.choice(sizes[block], 3, replace=False)).tolist())
    return histories_from_lists(rows)


def test_the_graph_counts_users() -> None:
    histories = histories_from_lists([[0, 1, 1], [1, 0, 3], [2], []])
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = 2
    expected[0, 3] = expected[3, 0] = expected[1, 3] = expected[3, 1] = 1
    assert np.array_equal(co_occurrence_graph(histories, 5).toarray(), expected)


@pytest.mark.parametrize(("size", "levels"), [(2, 5), (3, 4), (4, 3)])
def test_disjoint_blocks_have_no_first_code_in_common(size: int, levels: int) -> None:
    codes = co_occurrence_semantic_ids(blocks([10, 10]), 20, levels, size).codes
    assert not set(codes[:10, 0]) & set(codes[10:, 0])


def test_as_many_blocks_as_codes_are_the_clusters() -> None:
    codes = co_occurrence_semantic_ids(blocks([6, 6, 6, 6]), 24, num_levels=2, codebook_size=6).codes
    small = co_occurrence_semantic_ids(blocks([4, 4, 4, 4]), 16, num_levels=4, codebook_size=4).codes
    assert codes.shape == (24, 2)
    assert small.shape == (16, 2), "two levels are enough, the other two would be 0 everywhere"
    assert [len(set(small[start : start + 4, 0])) for start in range(0, 16, 4)] == [1, 1, 1, 1]
    assert small[:, 1].tolist() == [0, 1, 2, 3] * 4


def test_few_items_are_one_leaf() -> None:
    assert co_occurrence_semantic_ids(blocks([5]), 5, num_levels=3, codebook_size=8).codes.tolist() == [[0], [1], [2], [3], [4]]


def test_a_large_graph_has_the_clusters_of_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse eigenvectors against dense ones: the blocks are the same."""
    histories = blocks([8, 8, 8])
    monkeypatch.setattr("modeling_cllm4rec.lcrec.index_methods.DENSE_UP_TO", 10)
    codes = co_occurrence_semantic_ids(histories, 24, num_levels=4, codebook_size=3).codes
    assert [len(set(codes[start : start + 8, 0])) for start in range(0, 24, 8)] == [1, 1, 1]
    assert len(set(codes[::8, 0])) == 3


@settings(max_examples=60)
@given(st.data())
def test_always_unique_and_the_same_again(draw: st.DataObject) -> None:
    size, levels = draw.draw(st.integers(1, 5)), draw.draw(st.integers(1, 4))
    items = draw.draw(st.integers(1, min(size**levels, 60)))
    history = st.lists(st.integers(0, items - 1), max_size=6)
    histories = histories_from_lists(draw.draw(st.lists(history, min_size=1, max_size=12)))
    if not co_occurrence_graph(histories, items).nnz:
        with pytest.raises(ValueError, match="training histories has two different items"):
            co_occurrence_semantic_ids(histories, items, levels, size)
        return
    index = co_occurrence_semantic_ids(histories, items, levels, size, seed=3)
    assert index.num_items == items and index.num_levels <= levels and index.codebook_size == size
    assert len(shared_codes(index.codes)) == 0
    assert np.array_equal(index.codes, co_occurrence_semantic_ids(histories, items, levels, size, seed=3).codes)


def test_a_full_tree_is_filled() -> None:
    """As many items as indices: no cluster has more room than it needs."""
    codes = co_occurrence_semantic_ids(blocks([20, 7]), 27, num_levels=3, codebook_size=3).codes
    assert sorted(map(tuple, codes.tolist())) == list(np.ndindex(3, 3, 3))


def test_vanilla_is_one_token_for_each_item() -> None:
    index = vanilla_semantic_ids(300)
    assert (index.num_items, index.num_levels, index.codebook_size) == (300, 1, 300)
    assert index.semantic_id_text(299) == "<a_299>"


@pytest.mark.parametrize(("levels", "size", "items"), [(2, 4, 16), (3, 7, 40), (11, 256, 500)])
def test_random_codes_differ(levels: int, size: int, items: int) -> None:
    codes = random_codes(items, levels, size, seed=0)
    assert codes.shape == (items, levels) and codes.min() >= 0 and codes.max() < size
    assert len(shared_codes(codes)) == 0
    assert np.array_equal(codes, random_codes(items, levels, size, seed=0))


def test_texts_and_co_occurrence_share_the_distance() -> None:
    """Two blocks of items, all texts alike but the last one's: products within a block, across, and of a lonely item, by hand."""
    texts = np.eye(3, dtype=np.float32)[[0, 1, 0, 1, 2]]
    vectors = with_co_occurrence(texts, histories_from_lists([[0, 1], [2, 3]]), share=0.25, width=2)
    centred = texts - texts.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    together = vectors @ vectors.T - 0.75 * centred @ centred.T
    chosen = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    assert together == pytest.approx(0.25 * chosen, abs=1e-6)


def test_an_index_of_texts_and_co_occurrence(data: RecommendationData, tmp_path: Path) -> None:
    texts = np.random.default_rng(0).normal(size=(data.num_items, 6)).astype(np.float32)
    settings = {"data": str(data.folder), "method": "rk-means", "num_levels": 3, "codebook_size": 8}
    plain, _ = index_items(IndexArguments(**settings, output=str(tmp_path / "plain")), texts)
    both, _ = index_items(IndexArguments(**settings, output=str(tmp_path / "both"), co_occurrence=0.5), texts)
    again, _ = index_items(IndexArguments(**settings, output=str(tmp_path / "again"), co_occurrence=0.5), texts)
    assert plain is not None and both is not None and again is not None
    assert np.array_equal(both.codes, again.codes) and not np.array_equal(both.codes, plain.codes)
    assert (tmp_path / "plain" / "rqvae").exists() and not (tmp_path / "both" / "rqvae").exists()
    assert "item_encoder" not in json.loads((tmp_path / "both" / "index.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"co_occurrence": 1.0}, "co_occurrence is 1.0; it must be 0 or more and below 1"),
        ({"co_occurrence": -0.1}, "co_occurrence is -0.1; it must be 0 or more and below 1"),
        ({"repair": True}, "repair is set and method is 'rqvae', whose codes are all different; it belongs to 'given'"),
        ({"uniform_mapping": "some"}, "uniform_mapping is 'some'; allowed are 'conflicts', 'all', 'none'"),
        ({"co_occurrence": 0.5, "method": "vanilla"}, "co_occurrence is 0.5, but method 'vanilla' quantizes no vectors"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IndexArguments(data="d", output="o", **changes)


@pytest.mark.parametrize("method", ["random", "vanilla", "co-occurrence"])
def test_an_index_folder_without_texts(data: RecommendationData, tmp_path: Path, method: str) -> None:
    arguments: dict[str, Any] = {"data": str(data.folder), "method": method, "num_levels": 4, "codebook_size": 6}
    index, progress = index_items(IndexArguments(**arguments, output=str(tmp_path / "index")))
    assert index is not None and progress.finished
    loaded, ids = SemanticIds.load(tmp_path / "index" / "index.parquet")
    assert np.array_equal(loaded.codes, index.codes) and ids.fingerprint == IdMap(data.items["item_id"], "item_id").fingerprint
    assert not (tmp_path / "index" / "rqvae").exists() and not (tmp_path / "index" / "embeddings.parquet").exists()
    record = json.loads((tmp_path / "index" / "index.json").read_text())
    assert record["report"]["num_levels"] == index.num_levels and "item_encoder" not in record
    assert "a reconstruction error do not apply" in (tmp_path / "index" / "report.md").read_text()
    again, _ = index_items(IndexArguments(**arguments, output=str(tmp_path / "again")))
    assert again is not None and np.array_equal(again.codes, index.codes)


def test_only_training_histories_are_looked_at(data: RecommendationData, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"data": str(data.folder), "method": "co-occurrence", "codebook_size": 6}
    index, _ = index_items(IndexArguments(**arguments, output=str(tmp_path / "index")))
    expected = co_occurrence_semantic_ids(data.histories("train"), data.num_items, 4, 6, seed=42)
    assert index is not None and np.array_equal(index.codes, expected.codes)


class TestBadInput:
    def test_nothing_occurs_together(self) -> None:
        with pytest.raises(ValueError, match="none of 2 training histories has two different items; use method 'random'"):
            co_occurrence_semantic_ids(histories_from_lists([[1, 1], [0]]), 3, 2, 2)

    def test_too_many_items(self) -> None:
        with pytest.raises(ValueError, match=r"20 items are more than the 16 semantic IDs of 2 levels of 4 codes; raise"):
            co_occurrence_semantic_ids(blocks([10, 10]), 20, 2, 4)

    def test_resume_on_other_interactions(self, data: RecommendationData, tmp_path: Path) -> None:
        arguments: dict[str, Any] = {"data": str(data.folder), "output": str(tmp_path / "index"), "codebook_size": 6}
        index_items(IndexArguments(**arguments, method="co-occurrence"))
        record = json.loads((tmp_path / "index" / "run.json").read_text())
        record["codes_sha256"] = "of other interactions"
        (tmp_path / "index" / "run.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match=r"had other arguments \(then, now\): \{'codes_sha256'"):
            index_items(IndexArguments(**arguments, method="co-occurrence", resume=True))
