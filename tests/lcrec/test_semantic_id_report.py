"""Numbers of an index, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.semantic_id_report import as_markdown, save_report, semantic_id_report
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds


@pytest.fixture
def indexer() -> RQVAEModel:
    """No encoder, one dimension: 0, 10, and then 0, 1."""
    model = RQVAEModel(RQVAEConfig(1, (), 1, num_levels=2, codebook_size=2))
    with torch.no_grad():
        model.codebooks.copy_(torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]]))
    return model


EMBEDDINGS = np.array([[0.5], [0.0], [11.0]], dtype=np.float32)
NEAREST = np.array([[0, 0], [0, 0], [1, 1]])
CODES = np.array([[0, 1], [0, 0], [1, 1]])


def test_of_codes_alone() -> None:
    report = semantic_id_report(SemanticIds(np.array([[0, 0], [0, 1], [0, 2], [1, 0]]), codebook_size=4))
    assert (report["items"], report["num_levels"], report["codebook_size"]) == (4, 2, 4)
    assert report["collisions"] == {"index": 0}
    assert report["used_codes"] == [2, 3]
    assert report["entropy_bits"] == [0.811, 1.5]  # shares 3/4 and 1/4; 1/2, 1/4 and 1/4
    assert report["prefixes"] == [2, 4]
    assert report["code_counts"] == [[3, 1, 0, 0], [2, 1, 1, 0]]
    assert "displacement" not in report


def test_of_an_indexer(indexer: RQVAEModel) -> None:
    report = semantic_id_report(SemanticIds(CODES, 2), EMBEDDINGS, indexer, {"nearest": NEAREST})
    assert report["collisions"] == {"nearest": 2, "index": 0}
    assert report["moved_items"] == {"nearest": 1}
    assert report["displacement"] == pytest.approx({"nearest": 0.5 / 3, "index": 0.5 / 3})
    assert report["reconstruction_error"] == pytest.approx(0.25 / 3)
    assert report["variance"] == pytest.approx(float(EMBEDDINGS.var()))


def test_as_tables(indexer: RQVAEModel, tmp_path: Path) -> None:
    report = semantic_id_report(SemanticIds(CODES, 2), EMBEDDINGS, indexer, {"nearest": NEAREST})
    text = as_markdown(report)
    assert text.startswith("# Semantic IDs of 3 items, 2 levels of 2 codes\n")
    for row in ("| nearest | 2 |", "| index | 0 |", "| 1 | 2 of 2 | 0.918 | 2 |", "| nearest | 0.1667 | 1 |"):
        assert row in text.splitlines()
    save_report(tmp_path, report)
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == text
