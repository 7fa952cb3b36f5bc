"""Blocks of the other pages run, except for the pages in NOT_RUN."""

from __future__ import annotations

from pathlib import Path

import pytest
from guide_files import FILES
from pages import ROOT, blocks, run_page

RUN = {"metrics"}
"""Pages that run in an empty folder."""
NOT_RUN = {
    "inference": "GPUs and several machines; tests/commands and tests/hub do the same on the CPU",
    "nightly-update": "it needs a server next to it; tests/serving/test_nightly_guide.py runs it",
    "production": "environments of its own, from a wheel; tests/test_production_guide.py runs it",
    "hub-registration": "texts for pull requests to other repositories",
    "engines": "engines that need a GPU; tests/exports runs the export and its decoder",
    "app": "a server that runs until it is stopped; tests/app starts it",
    "measurements": "runs of hours on public data sets",
    "citing": "BibTeX",
    "reproduce": "runs of hours on the papers' data sets",
    "own-data": "trains both systems step by step; the guides do the same with data at hand",
    "serving": "a server that runs until it is stopped, and models by name; tests/serving and tests/exports do the same",
    "install": "fetches the repository and packages; tests/test_wheel.py and `make` install",
    "add-a-system": "an excerpt of tests/systems/toy_system.py, which tests/systems runs",
    "architecture": "drawings and signatures",
}
"""Page -> reason why its blocks are not run. test_guides.py checks their commands and flags."""
PAGES = {page.stem: page for page in (ROOT / "docs").rglob("*.md")}
WITH_BLOCKS = {name for name, page in PAGES.items() if any(block.run for block in blocks(page))}


@pytest.mark.parametrize("name", sorted(RUN))
def test_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(PAGES[name])


def test_every_page_with_blocks_is_run_or_has_a_reason() -> None:
    assert WITH_BLOCKS - set(FILES) - RUN - set(NOT_RUN) == set()
    assert set(NOT_RUN) <= WITH_BLOCKS
