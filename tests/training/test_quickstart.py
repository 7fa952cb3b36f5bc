"""From a table of interactions to recommendations in one call."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from modeling_cllm4rec import train_recommender
from modeling_cllm4rec.cllm4rec import quickstart as own_data
from modeling_cllm4rec.core.errors import ExistingFileError, InputError, MissingFileError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset

SHORT: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "max_text_tokens": 8,
    "num_train_epochs": 1,
    "pretraining": {"content_share": 0.1},
}


def test_five_lines(synthetic_dataset: SyntheticDataset, tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    """Any ids, in a pandas frame; no texts, so that rows are initialized at random."""
    frame = synthetic_dataset.interactions.to_pandas()[["user_id", "item_id"]]
    frame["user_id"] = pd.factorize(frame["user_id"])[0] * 7 + 3

    model = train_recommender(frame, tmp_path / "run", backbone=str(tiny_backbones["gpt2"]), **SHORT)
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
        tmp_path / "run",
        backbone=str(tiny_backbones["gpt2"]),
        items=items,
        users=synthetic_dataset.users,
        prepare={"split": "temporal", "temporal_cuts": (0.6, 0.8)},
        finetuning={"num_train_epochs": 2},
        **SHORT,
    )
    data = RecommendationData.load(tmp_path / "run" / "data")
    assert data.info["protocol"]["split"] == "temporal" and data.items.column_names == ["item_id", "title"]
    assert data.users.column_names == ["user_id", "biography"] and data.reviews().num_rows
    assert model.catalogue is not None and model.catalogue.titles([0]) == [items["title"][0].as_py()]


def test_bad_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'user_id'; it has who, item_id; name it with user_column"):
        train_recommender(pd.DataFrame({"who": [1], "item_id": [2]}), tmp_path / "run")
    with pytest.raises(InputError, match="user_id mixes numbers and texts, and 7 is not"):
        train_recommender(pd.DataFrame({"user_id": [1, "a"], "item_id": [2, 3]}), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        train_recommender(tmp_path / "none.csv", tmp_path / "run")


def test_settings_come_from_the_recipe_and_from_the_call(
    synthetic_dataset: SyntheticDataset, tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_data, "_own_backbone", lambda data, folder, seed: folder)
    table = synthetic_dataset.interactions
    train_recommender(table, tmp_path / "a", per_device_train_batch_size=7, finetuning={"learning_rate": 0.5})
    train_recommender(table, tmp_path / "b", config="demo.yaml", max_text_tokens=None)
    assert [one.per_device_train_batch_size for one in calls] == [7, 7, 32, 32] and [one.max_text_tokens for one in calls] == [
        64,
        64,
        None,
        None,
    ]
    assert [one.learning_rate for one in calls] == [3e-3, 0.5, 1e-3, 3e-3] and [one.teacher for one in calls[1::2]] == [
        "ease",
        "ease+textknn",
    ]
    with pytest.raises(MissingFileError, match="config: there is no file mine.yaml"):
        train_recommender(table, tmp_path / "c", config="mine.yaml")


def test_a_teacher_that_needs_too_much_memory_is_left_out(
    synthetic_dataset: SyntheticDataset,
    tmp_path: Path,
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(own_data, "_own_backbone", lambda data, folder, seed: folder)
    monkeypatch.setattr(own_data, "LARGEST_EASE", 39)
    with caplog.at_level("INFO", logger="modeling_cllm4rec"):
        train_recommender(synthetic_dataset.interactions, tmp_path / "run")
        train_recommender(synthetic_dataset.interactions, tmp_path / "other", finetuning={"teacher": "ease"})
    assert [one.teacher for one in calls[1::2]] == ["", "ease"]
    assert "no teacher: EASE would hold 1,600 pairs of items in memory" in caplog.text


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the stages by a list of their arguments: what is prepared, reused and refused comes before them."""
    seen: list[Any] = []
    monkeypatch.setattr(own_data, "pretrain", seen.append)
    monkeypatch.setattr(own_data, "finetune", seen.append)
    monkeypatch.setattr(own_data, "load_recommender", lambda folder: folder)
    monkeypatch.setattr(own_data, "_compare", lambda model, data, output: None)
    return seen


def test_a_wrong_backbone_leaves_nothing_behind(synthetic_dataset: SyntheticDataset, tmp_path: Path, calls: list[Any]) -> None:
    with pytest.raises(MissingFileError, match="backbone: .*nothing is no folder with a language model"):
        train_recommender(synthetic_dataset.interactions, tmp_path / "run", backbone=str(tmp_path / "nothing"))
    assert not (tmp_path / "run").exists() and calls == []


@pytest.mark.parametrize(
    "bad", [{"num_train_epochs": -1}, {"finetuning": {"mask_share": 2}}, {"pretraining": {"warmup_epochs": -1}}]
)
def test_a_wrong_argument_leaves_nothing_behind(
    synthetic_dataset: SyntheticDataset, tmp_path: Path, calls: list[Any], bad: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="is -1|is 2"):
        train_recommender(synthetic_dataset.interactions, tmp_path / "run", **bad)
    assert not (tmp_path / "run").exists() and calls == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"user_column": "customer"}, r"^unknown argument 'user_column'; pass prepare=\{'user_column': \.\.\.\}$"),
        ({"teacher": "ease"}, r"^unknown argument 'teacher'; pass finetuning=\{'teacher': \.\.\.\}$"),
        ({"num_epochs": 3}, "^unknown argument 'num_epochs'; did you mean .*'num_train_epochs'"),
        ({"prepare": {"kcore": 5}}, r"^prepare: unknown argument 'kcore'; did you mean 'k_core'"),
        ({"prepare": {"num_train_epochs": 5}}, r"^prepare: unknown argument 'num_train_epochs'; pass pretraining="),
        ({"finetuning": {"content_share": 0.5}}, r"^finetuning: unknown argument 'content_share'; pass pretraining="),
    ],
)
def test_an_unknown_argument_is_named_with_its_place(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_recommender(tmp_path / "nothing.csv", tmp_path / "run", **bad)
    assert not (tmp_path / "run").exists()


def test_prepared_data_is_used_again_until_its_tables_change(
    synthetic_dataset: SyntheticDataset, tiny_backbones: dict[str, Path], tmp_path: Path, calls: list[Any]
) -> None:
    table = synthetic_dataset.interactions
    settings: dict[str, Any] = {"backbone": str(tiny_backbones["gpt2"]), "prepare": {"seed": 1}}
    train_recommender(table, tmp_path / "run", **settings)
    written = (tmp_path / "run" / "data" / "dataset.json").stat().st_mtime_ns
    train_recommender(pa.concat_tables([table.slice(0, 9), table.slice(9)]), tmp_path / "run", **settings)  # the same rows
    train_recommender(table, tmp_path / "run", num_train_epochs=3, **settings)
    assert (tmp_path / "run" / "data" / "dataset.json").stat().st_mtime_ns == written
    assert [one.resume for one in calls] == [True] * 6 and not any(one.overwrite for one in calls)

    with pytest.raises(ExistingFileError, match=r"prepared from other tables or with other arguments \(sources differ\); pass"):
        train_recommender(table.slice(1), tmp_path / "run", **settings)
    with pytest.raises(ExistingFileError, match=r"\(prepare differ\)"):
        train_recommender(table, tmp_path / "run", **{**settings, "prepare": {"seed": 2}})
    assert len(calls) == 6

    train_recommender(table.slice(1), tmp_path / "run", overwrite=True, **settings)
    assert RecommendationData.load(tmp_path / "run" / "data").info["statistics"]["interactions"] < table.num_rows
    assert all(one.overwrite and not one.resume for one in calls[6:])


def test_arguments_that_the_call_sets_itself(synthetic_dataset: SyntheticDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prepare has 'overwrite', which train_recommender sets"):
        train_recommender(synthetic_dataset.interactions, tmp_path / "run", prepare={"overwrite": True})
    with pytest.raises(InputError, match="stop_after_steps ends a stage early"):
        train_recommender(synthetic_dataset.interactions, tmp_path / "run", finetuning={"stop_after_steps": 3})


def interrupted(arguments: Any) -> None:
    raise KeyboardInterrupt


def test_a_second_call_goes_on_and_other_arguments_are_named(
    synthetic_dataset: SyntheticDataset,
    tiny_backbones: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first call is stopped within pretraining, the second one is not, and a third one has another number of epochs."""
    table = synthetic_dataset.interactions.select(["user_id", "item_id"])
    settings: dict[str, Any] = {"backbone": str(tiny_backbones["gpt2"]), **SHORT}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(own_data, "finetune", interrupted)
        train_recommender(table, tmp_path / "run", **settings)
    with caplog.at_level("INFO", logger="modeling_cllm4rec"):
        model = train_recommender(table, tmp_path / "run", **settings)
    assert "resumed pretrain after step 2 of 2" in caplog.text
    assert "CLLM4Rec" in caplog.text and "popularity" in caplog.text and "on recall@20" in caplog.text
    assert model.num_items == 40
    with pytest.raises(
        InputError, match=r"had other arguments \(then, now\): .'num_train_epochs': \(1, 2\).*pass overwrite=True"
    ):
        train_recommender(table, tmp_path / "run", **{**settings, "num_train_epochs": 2})
    train_recommender(table, tmp_path / "run", **{**settings, "num_train_epochs": 2}, overwrite=True)


@pytest.mark.parametrize("texts", [True, False])
def test_a_backbone_of_its_own(synthetic_dataset: SyntheticDataset, tmp_path: Path, calls: list[Any], texts: bool) -> None:
    columns = ["user_id", "item_id", "review"] if texts else ["user_id", "item_id"]
    table = synthetic_dataset.interactions.select(columns)
    for _ in range(2):
        train_recommender(table, tmp_path / "run", items=synthetic_dataset.items if texts else None)
    assert [one.init_ids for one in calls[::2]] == ["text" if texts else "random"] * 2
    assert {one.backbone for one in calls[::2]} == {str(tmp_path / "run" / "backbone")}
    assert (tmp_path / "run" / "backbone" / "model.safetensors").is_file()


def test_progress_is_shown_unless_logging_is_set_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    package, log = logging.getLogger("modeling_cllm4rec"), logging.getLogger("modeling_cllm4rec.x")
    monkeypatch.setattr(own_data, "hide_loading_bars", lambda: None)  # it would be for all tests that follow
    with own_data._shown_log(True):  # pytest has set up logging
        log.info("not shown")
    monkeypatch.setattr(package, "propagate", False)
    monkeypatch.setattr(package, "handlers", [])
    with own_data._shown_log(False):
        log.info("not shown")
    with own_data._shown_log(True):
        log.info("an estimate")
    log.info("after")
    shown = capsys.readouterr().err
    assert shown.endswith("an estimate\n") and "after" not in shown and "not shown" not in shown
    assert package.handlers == []
