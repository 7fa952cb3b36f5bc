"""The scripts that measure steps and indexing over growing catalogues."""

from __future__ import annotations

from pathlib import Path

import index_growth
import numpy as np
import pytest
import step_growth


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_a_step_is_measured(kind: str) -> None:
    row = step_growth.measure(kind, num_items=300, width=8, repeats=1)
    assert row["seconds"] > 0 and row["above_model_bytes"] >= 0
    assert row["model_bytes"] > 2 * (300 + step_growth.USERS) * 8 * 4  # both sides


@pytest.mark.parametrize("method", ["rqvae", "rk-means"])
def test_the_parts_of_indexing_are_measured(method: str) -> None:
    row = index_growth.measure(method, num_items=300, width=8, steps=1)
    parts = {"codebooks", "latents", "nearest", "uniform", "unique"}
    assert set(row["seconds"]) == (parts | {"steps", "revival"} if method == "rqvae" else parts)
    assert row["default_steps"] == 1000 and row["peak_bytes"] > 50e6


def test_the_whole_stage_is_measured(tmp_path: Path) -> None:
    data = index_growth.write_catalogue(300, tmp_path / "data")
    row = index_growth.measure_stage("rqvae", 300, 8, data)
    assert row["epochs"] == 1 and row["seconds"] > 0 and row["peak_bytes"] > 50e6
    assert (data / "rqvae-8" / "index.parquet").is_file()


def test_embeddings_are_clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_growth, "CLUSTERS", 2)
    points = index_growth.clustered_embeddings(200, 4)
    assert points.dtype == np.float32 and np.isfinite(points).all()
    assert np.array_equal(points, index_growth.clustered_embeddings(200, 4))
