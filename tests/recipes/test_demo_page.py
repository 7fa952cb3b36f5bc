"""The page of the demo: self-contained, escaped, with every row and every list."""

from __future__ import annotations

import dataclasses
import importlib
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from recipe_modules import RECIPES, load_recipe

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate


class Tags(HTMLParser):
    """Count tags, and check that all are closed in order."""

    VOID = ("meta", "rect", "line", "polyline", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        return importlib.import_module("demo_page")


@pytest.fixture(scope="module")
def page(pages: ModuleType, data: RecommendationData):
    reports = {
        name: evaluate(fit_baseline(name, data), data, "test", metrics=("ndcg@10", "coverage@10"), progress=False)
        for name in ("popularity", "ease")
    }
    hit = pages.Shown("Tea <b>", "<item_1>", 1.25, True)
    return pages.DemoPage(
        counts={"users": 60},
        steps=[("data", 1.0), ("a model", 61.5)],
        reports=reports,
        models=("ease",),
        about={"ease": "a linear model"},
        verdicts=["EASE is above & beyond."],
        metric="ndcg@10",
        curves={"ease": [(2, 0.1), (4, 0.2)]},
        curves_metric={"ease": "ndcg@10"},
        users=[pages.ShownUser("<user_3>", [pages.Shown("Lamp", "x")], {"ease": [hit]})],
        found=[pages.Found("a calm tea", [hit])],
        folders=[("runs/demo/run", "weights")],
        commands=[("Go on:", "cllm4rec recommend --users '<user_3>'")],
    )


def test_the_page_is_whole_escaped_and_loads_nothing(pages: ModuleType, page) -> None:
    text = pages.render(page)
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.count["table"] == 2 and tags.count["svg"] == 2 and "script" not in tags.count
    assert not re.search(r"\b(src|href)=|url\(|@import", text)
    assert "<user_3>" not in text and "&lt;user_3&gt;" in text and "Tea &lt;b&gt;" in text and "above &amp; beyond" in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_the_table_has_means_intervals_and_the_model_marked(pages: ModuleType, page) -> None:
    text = pages.render(page)
    assert text.count('<tr class="model">') == 1
    for report in page.reports.values():
        mean, ends = report.metrics["ndcg@10"], report.intervals["ndcg@10"]
        for number in (mean, *ends):
            assert f"{number:.4f}".lstrip("0") in text
    assert "62 seconds" in text and text.count('class="hit">held out') == 3  # the explanation, a recommendation, a search


def test_bars_are_proportional_and_curves_follow_the_epochs(pages: ModuleType, page) -> None:
    text = pages.render(page)
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    means = sorted((report.metrics["ndcg@10"] for report in page.reports.values()), reverse=True)
    assert widths[0] / widths[1] == pytest.approx(means[0] / means[1], rel=0.01)
    (points,) = re.findall(r'<polyline points="([^"]+)"', text)
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points.split())
    assert x0 < x1 and y0 > y1  # later is to the right, higher is up


def test_a_run_without_validations_has_no_curve(pages: ModuleType, page) -> None:
    assert pages.render(dataclasses.replace(page, curves={"ease": []})).count("<svg") == 1


@pytest.mark.slow
def test_the_demo_runs_end_to_end(tmp_path: Path, synthetic_dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    demo = load_recipe("demo")
    text = demo.run_demo(synthetic_dataset, tmp_path / "demo", seed=0).read_text(encoding="utf-8")
    for name in (*demo.BASELINES, *demo.MODELS, *demo.QUERIES):
        assert name in text
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "backbone",
        "data",
        "lcrec",
        "lcrec-index",
        "report.html",
        "run",
    }
