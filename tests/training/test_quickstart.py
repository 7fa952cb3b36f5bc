"""From a table of interactions to recommendations in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from modeling_cllm4rec import train_recommender
from modeling_cllm4rec.cllm4rec import quickstart as own_data
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset

SHORT: dict[str, Any] = {"batch_size": 32, "max_text_tokens": 8, "epochs": 1, "pretraining": {"content_share": 0.1}}


def test_five_lines(synthetic_dataset: SyntheticDataset, tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    """Any ids, in a pandas frame; no texts, so that rows are initialized at random."""
    frame = synthetic_dataset.interactions.to_pandas()[["user_id", "item_id"]]
    frame["user_id"] = pd.factorize(frame["user_id"])[0] * 7 + 3

    model = train_recommender(frame, str(tiny_backbones["gpt2"]), tmp_path / "run", **SHORT)
    best = model.recommend(users=[3, 10], k=5).to_pandas()

    assert best["user"].tolist() == [3] * 5 + [10] * 5 and best["rank"].tolist() == [1, 2, 3, 4, 5] * 2
    seen = set(frame[frame["user_id"] == 3]["item_id"])
    assert set(best["item"]) <= set(frame["item_id"]) and not seen & set(best["item"][:5])
    assert RecommendationData.load(tmp_path / "run" / "data").info["protocol"]["split"] == "random"
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_tables_files_and_settings(synthetic_dataset: SyntheticDataset, tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    synthetic_dataset.interactions.to_pandas().to_parquet(tmp_path / "pairs.parquet")
    items: pa.Table = synthetic_dataset.items.select(["item_id", "title"])
    model = train_recommender(
        tmp_path / "pairs.parquet",
        str(tiny_backbones["gpt2"]),
        tmp_path / "run",
        items=items,
        users=synthetic_dataset.users,
        prepare={"split": "temporal", "temporal_cuts": (0.6, 0.8)},
        finetuning={"epochs": 2},
        **SHORT,
    )
    data = RecommendationData.load(tmp_path / "run" / "data")
    assert data.info["protocol"]["split"] == "temporal" and data.items.column_names == ["item_id", "title"]
    assert data.users.column_names == ["user_id", "biography"] and data.reviews().num_rows
    assert model.catalogue is not None and model.catalogue.titles([0]) == [items["title"][0].as_py()]
    with pytest.raises(FileExistsError, match="holds a data folder already"):
        train_recommender(items, "nothing", tmp_path / "run")


def test_bad_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="interactions: no column 'user_id'; the columns are who, item_id"):
        train_recommender(pd.DataFrame({"who": [1], "item_id": [2]}), "gpt2", tmp_path / "run")
    with pytest.raises(InputError, match="a column of the table mixes types"):
        train_recommender(pd.DataFrame({"user_id": [1, "a"], "item_id": [2, 3]}), "gpt2", tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        train_recommender(tmp_path / "none.csv", "gpt2", tmp_path / "run")


def test_texts_are_cut_by_default(synthetic_dataset: SyntheticDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single long review would end the run, so this call cuts texts by default; the commands do not."""
    lengths = []
    monkeypatch.setattr(own_data, "pretrain", lambda arguments: lengths.append(arguments.max_text_tokens))
    monkeypatch.setattr(own_data, "finetune", lambda arguments: lengths.append(arguments.max_text_tokens))
    monkeypatch.setattr(own_data, "load_recommender", lambda folder: folder)
    for number, settings in enumerate(({}, {"max_text_tokens": 64}, {"max_text_tokens": None})):
        train_recommender(synthetic_dataset.interactions, "gpt2", tmp_path / str(number), prepare={"split": "random"}, **settings)
    assert lengths == [128, 128, 64, 64, None, None]
