"""The baseline that CONTRIBUTING.md adds works as it is printed there."""

from __future__ import annotations

import numpy as np
from pages import ROOT, blocks

from modeling_cllm4rec.baselines import BASELINES, baseline_settings, fit_baseline
from modeling_cllm4rec.corpora.data_folder import RecommendationData


def test_the_baseline_of_the_page(data: RecommendationData) -> None:
    (code,) = [block.code for block in blocks(ROOT / "CONTRIBUTING.md") if block.language == "python"]
    try:
        exec(compile(code, "CONTRIBUTING.md", "exec"), {})  # noqa: S102
        assert baseline_settings("recent") == {"half_life": 100.0}
        scores = fit_baseline("recent", data, half_life=1e9).score_histories(None, data.histories("train"))
        counts = np.bincount(data.histories("train").items, minlength=data.num_items)
        assert np.allclose(scores[0], counts, rtol=1e-3)
    finally:
        BASELINES.pop("recent", None)


def test_files_that_the_page_names_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [
        word
        for word in text.replace("`", " ").split()
        if word.startswith(("tests/", "modeling_cllm4rec/")) and "NAME" not in word
    ]
    paths = [word.rstrip(".,:") for word in named]
    missing = [path for path in paths if not (ROOT / path).exists() and path != "modeling_cllm4rec/baselines/recent.py"]
    assert paths and missing == []
