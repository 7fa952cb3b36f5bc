"""The picture of a model next to baselines: what is drawn, and where it is not."""

import importlib.util
import logging
import sys
from pathlib import Path

import pytest

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.evaluation import comparison_plot
from modeling_cllm4rec.evaluation.comparison_plot import keep_comparison, plot_comparison
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.report import BaselineResult, EvaluationReport

matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib (extra benchmark)")


def report(baselines: bool = True) -> EvaluationReport:
    """Return an evaluation of a model with recall@20 of .3 [.2, .4], next to popularity with .1 [.05, .15]."""
    other = BaselineResult({"recall@20": 0.1, "coverage@20": 0.01}, {"recall@20": (0.05, 0.15)}, {"recall@20": (0.2, 0.1, 0.3)})
    return EvaluationReport(
        protocol=Protocol("mine", "a split", "test", "train", "train", items=9, users=5, excluded_users=0),
        metrics={"recall@20": 0.3, "coverage@20": 0.5},
        intervals={"recall@20": (0.2, 0.4)},
        seconds=1.0,
        seed=0,
        n_resamples=10,
        baselines={"popularity": other} if baselines else {},
    )


@matplotlib
def test_rows_are_the_model_then_its_baselines(tmp_path: Path) -> None:
    recall, coverage = comparison_plot._figure("CLLM4Rec", report()).axes
    assert [label.get_text() for label in recall.get_yticklabels()] == ["CLLM4Rec", "popularity"]
    assert (recall.get_xlabel(), coverage.get_xlabel()) == ("recall@20", "coverage@20")
    points = [container.lines[0].get_xydata().tolist() for container in recall.containers]
    assert points == [[[0.3, 0.0]], [[0.1, 1.0]]]
    ends = [container.lines[2][0].get_segments()[0][:, 0].tolist() for container in recall.containers]
    assert ends == [pytest.approx([0.2, 0.4]), pytest.approx([0.05, 0.15])]
    assert plot_comparison(tmp_path / "a.png", "CLLM4Rec", report()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@matplotlib
def test_the_first_report_with_baselines_is_drawn_and_an_old_picture_goes(tmp_path: Path) -> None:
    assert keep_comparison(tmp_path, "CLLM4Rec", [report(False), report()]) == tmp_path / "comparison.png"
    assert keep_comparison(tmp_path, "CLLM4Rec", [report(False)]) is None
    assert list(tmp_path.iterdir()) == []


def test_without_baselines_or_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match="this evaluation has no baselines; evaluate with `--baselines popularity ease`"):
        plot_comparison(tmp_path / "a.png", "CLLM4Rec", report(False))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "comparison.png").write_bytes(b"a picture of an earlier evaluation")
    with caplog.at_level(logging.INFO):
        assert keep_comparison(tmp_path, "CLLM4Rec", [report()]) is None
    assert 'comparison.png needs matplotlib, which is not installed; run: pip install "cllm4rec[benchmark]"' in caplog.text
    assert not (tmp_path / "comparison.png").exists()
