"""Mapped tables hold what the Parquet files hold, are made once, and are made again when those files change."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.corpora import data_folder, interaction_files, mapped_tables
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.interaction_files import interaction_parts
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.splits import SPLITS


def write(folder: Path, seed: int = 0, split: str = "random") -> RecommendationData:
    """Write a folder of 40 users, the fourth with half of the rows, with reviews and a rating that is missing."""
    rng = np.random.default_rng(seed)
    users = np.where(rng.random(600) < 0.5, 3, rng.integers(0, 40, 600))
    rows = pa.table(
        {
            "user_id": [f"u{user}" for user in users],
            "item_id": [f"i{item}" for item in rng.integers(0, 400, 600)],
            "rating": pa.array([None if number == 7 else float(number % 5) for number in range(600)]),
            "timestamp": rng.integers(0, 50, 600),
            "review": [f"text {number}" if number % 3 else None for number in range(600)],
        }
    )
    items = pa.table({"item_id": [f"i{item}" for item in range(400)], "title": [f"Thing {item}" for item in range(400)]})
    return prepare_tables(rows, items, None, folder, split=split, overwrite=True)


@pytest.fixture
def mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Map folders of any size, in small pieces."""
    monkeypatch.setattr(data_folder, "MAPPED_BYTES", 0)
    monkeypatch.setattr(interaction_files, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(mapped_tables, "ROWS_OF_BATCH", 50)


@pytest.mark.parametrize("split", ["random", "leave-one-out"])
def test_mapped_tables_are_the_loaded_ones(tmp_path: Path, mapping: None, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = write(tmp_path / "data", split=split)
    monkeypatch.setattr(data_folder, "MAPPED_BYTES", 1 << 30)
    loaded = RecommendationData.load(tmp_path / "data")
    assert mapped.mapped is not None and loaded.mapped is None
    assert mapped.interactions["user_index"].num_chunks > 5
    for name in ("users", "items", "interactions"):
        assert getattr(mapped, name).equals(getattr(loaded, name))
    assert mapped.reviews().equals(loaded.reviews())
    for size in (1, 2, 3):
        for splits in itertools.combinations(SPLITS, size):
            for ours, theirs in zip(mapped.histories(*reversed(splits)), loaded.histories(*splits), strict=True):
                assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
                assert not ours.flags.owndata
    assert all(mapped.split(name).equals(loaded.split(name)) for name in SPLITS)


@pytest.mark.parametrize("rows", [1, 2, 3, 50, 10_000])
def test_parts_do_not_depend_on_the_number_of_rows(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "data", seed=rows)
    monkeypatch.setattr(interaction_files, "ROWS_AT_ONCE", rows)
    parts = list(interaction_parts(tmp_path / "data"))
    assert pa.concat_tables(parts).combine_chunks().equals(data.interactions)
    ends = [set(part["user_index"].to_pylist()) for part in parts]
    assert not any(first & second for first, second in itertools.pairwise(ends))


def test_the_files_are_made_once_and_again_after_a_change(
    tmp_path: Path, mapping: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "data"
    write(folder)
    assert caplog.text.count("written once as files that processes map") == 1
    before = pa.total_allocated_bytes()
    data = RecommendationData.load(folder)
    assert pa.total_allocated_bytes() - before < 1000
    assert caplog.text.count("written once as files that processes map") == 1
    (place,) = (folder / ".arrow").iterdir()
    assert sorted(path.name for path in place.iterdir()) == ["interactions.arrow", "items.arrow", "users.arrow"]
    data.histories("train")
    assert sorted(path.name for path in place.glob("*.npy")) == ["histories-train.indptr.npy", "histories-train.items.npy"]
    write(tmp_path / "other", seed=5)
    for name in ("dataset.json", *(f"{name}.parquet" for name in ("users", "items", *SPLITS))):
        shutil.copy(tmp_path / "other" / name, folder / name)
    assert RecommendationData.load(folder).histories("train").items.tolist() == (
        RecommendationData.load(tmp_path / "other").histories("train").items.tolist()
    )
    assert [path.name for path in (folder / ".arrow").iterdir()] != [place.name]
    assert len(list((folder / ".arrow").iterdir())) == 1


def test_small_folders_are_not_mapped(tmp_path: Path) -> None:
    assert write(tmp_path / "data").mapped is None
    assert not (tmp_path / "data" / ".arrow").exists()


def test_a_copy_with_other_interactions_has_other_histories(tmp_path: Path, mapping: None) -> None:
    data = write(tmp_path / "data")
    whole = data.histories("train").items.tolist()
    some = replace(data, interactions=data.interactions.slice(0, 20))
    expected = [row["item_index"] for row in some.interactions.to_pylist() if row["split"] == "train"]
    assert some.histories("train").items.tolist() == expected != whole


def test_where_nothing_can_be_written(
    tmp_path: Path, mapping: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def refuse(folder: Path, unique: bool = False) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(folder))
        yield folder

    data = write(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / ".arrow")
    monkeypatch.setattr(mapped_tables, "atomic_folder", refuse)
    read = RecommendationData.load(tmp_path / "data")
    assert "nothing can be written there" in caplog.text and "each process loads the tables into its own memory" in caplog.text
    assert read.mapped is None and read.interactions.num_rows == data.interactions.num_rows


def test_bad_tables_are_not_mapped(tmp_path: Path, mapping: None) -> None:
    folder = tmp_path / "data"
    write(folder)
    table = pq.read_table(folder / "train.parquet")
    for name, values, message in (
        ("item_index", np.full(table.num_rows, 400, dtype=np.int32), r"item_index must be in \[0, \d+\), got \d+ to 400"),
        ("item_index", np.zeros(table.num_rows, dtype=np.int32), "pair occurs more than once"),
        ("user_index", np.arange(table.num_rows)[::-1].astype(np.int32), "rows must be sorted by user_index, but those of train"),
        (
            "position",
            np.zeros(table.num_rows, dtype=np.int32),
            "position does not number the rows of each user from 0, so the files of the splits are not of one folder",
        ),
    ):
        bad = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(bad, folder / "train.parquet")
        with pytest.raises(ValueError, match=message):
            RecommendationData.load(folder)
        assert not any(path.name.endswith(".partial") for path in (folder / ".arrow").iterdir())
    (folder / "test.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="test.parquet is missing; prepare the folder again"):
        RecommendationData.load(folder)
