"""The page of results is generated, and README is short and shows rows of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeling_cllm4rec.benchmark.page import head_of
from modeling_cllm4rec.benchmark.report import MARKER

ROOT = Path(__file__).parents[2]
MOST_WORDS = 700


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def rows(text: str) -> list[str]:
    """Return the rows of all tables of a text."""
    return [line for line in text.splitlines() if line.startswith("| ") and "| seeds |" not in line]


def test_the_readme_shows_rows_of_the_results(readme: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page.startswith(MARKER)
    shown = rows(head_of(readme))
    assert len(shown) > 4
    assert [row for row in shown if row not in rows(head_of(page))] == []


def test_the_readme_is_short(readme: str) -> None:
    assert len(readme.split()) < MOST_WORDS
