"""The picture of a training: what is drawn, where it is not, and that stages draw it."""

import importlib.util
import json
import logging
import struct
import sys
from pathlib import Path

import pytest

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.evaluation import training_curves
from modeling_cllm4rec.evaluation.training_curves import keep_curves, panels, plot_training

matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib (extra benchmark)")
RECORDS = {
    "pretrain": {
        "best_epoch": 1,
        "history": [
            {"epoch": 0, "step": 5, "seconds": 1.0, "train/content_nll": 4.0, "validation/word_nll": 3.5},
            {"epoch": 1, "step": 15, "seconds": 2.0, "train/collaborative_nll": 6.0, "train/content_nll": 3.0, "selection": -6.5},
        ],
    },
    "finetune": {
        "best_epoch": -1,
        "history": [
            {"epoch": 0, "step": 5, "train/recommendation_nll": 9.0},
            {"epoch": 1, "step": 10, "train/recommendation_nll": 8.0, "validation/recall@20": 0.25, "selection": 0.25},
        ],
    },
}


def write(folder: Path, records: dict) -> Path:
    (folder / "training.json").write_text(json.dumps(records))
    return folder


def test_what_is_drawn() -> None:
    losses, tuned, metrics = panels(RECORDS)
    assert (losses.stage, losses.label, losses.best) == ("pretrain", "loss", 2)
    assert losses.curves == {
        "train/content_nll": ([1, 2], [4.0, 3.0]),
        "validation/word_nll": ([1], [3.5]),
        "train/collaborative_nll": ([2], [6.0]),
    }
    assert (tuned.stage, tuned.best, tuned.curves) == ("finetune", None, {"train/recommendation_nll": ([1, 2], [9.0, 8.0])})
    assert (metrics.label, metrics.curves) == ("validation", {"validation/recall@20": ([2], [0.25])})


@matplotlib
def test_the_picture_has_a_row_for_each_stage(tmp_path: Path) -> None:
    sizes = []
    for records in (RECORDS, {"finetune": RECORDS["finetune"]}):
        picture = plot_training(write(tmp_path, records))
        assert picture == tmp_path / "training_curves.png"
        content = picture.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        sizes.append(struct.unpack(">II", content[16:24]))
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] == 2 * sizes[1][1]


@matplotlib
def test_the_lines_of_a_panel() -> None:
    (axes,) = training_curves._figure(panels({"pretrain": RECORDS["pretrain"]})).axes
    assert [line.get_label() for line in axes.lines] == [*panels(RECORDS)[0].curves, "kept: epoch 2"]
    assert axes.lines[0].get_xydata().tolist() == [[1, 4.0], [2, 3.0]]
    assert axes.get_ylabel() == "loss, nats"


def test_a_folder_without_a_record(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*training.json; give the folder of a run that came to its end"):
        plot_training(tmp_path)


@matplotlib
def test_nothing_to_draw(tmp_path: Path) -> None:
    write(tmp_path, {"index-items": {"history": []}})
    with pytest.raises(ValueError, match="no stage in .* has losses or metrics of its epochs"):
        plot_training(tmp_path)
    assert keep_curves(tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training.json"]


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write(tmp_path, RECORDS)
    with caplog.at_level(logging.INFO):
        assert keep_curves(tmp_path) is None
    assert [record.message for record in caplog.records] == [
        'training_curves.png needs matplotlib, which is not installed; run: pip install "cllm4rec[benchmark]"'
    ]
    assert not (tmp_path / "training_curves.png").exists()
    with pytest.raises(ImportError, match="needs matplotlib, which is not installed; run: pip install"):
        plot_training(tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"pretrain": {"history"')
    with pytest.raises(InputError, match="training.json cannot be read .*; delete it: the model stays as it is"):
        keep_curves(tmp_path)
