"""The page of results is generated, and README shows its head."""

from __future__ import annotations

from pathlib import Path

from modeling_cllm4rec.benchmark.page import head_of
from modeling_cllm4rec.benchmark.report import MARKER

ROOT = Path(__file__).parents[2]


def test_readme_shows_the_head_of_the_results() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page.startswith(MARKER)
    head = head_of(page)
    assert head and head_of((ROOT / "README.md").read_text(encoding="utf-8")) == head
