"""The scripts of the notebooks run on their synthetic data, offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import notebook_pages
import pytest
from pages import ROOT

SCRIPTS = notebook_pages.scripts()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_runs_as_a_script(script: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DATA", None)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_page_lists_every_notebook_with_a_badge_of_its_own() -> None:
    page = notebook_pages.page("https://github.com/me/here")
    assert len(SCRIPTS) == 4
    for script in SCRIPTS:
        title, about = notebook_pages.heading(script)
        assert f"## {title}\n\n{about}\n" in page and about.endswith(".")
        assert f"https://colab.research.google.com/github/me/here/blob/gh-pages/notebooks/{script.stem}.ipynb" in page


def test_a_script_without_a_heading_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("# %%\n1\n")
    with pytest.raises(ValueError, match=r"bad\.py does not begin with a Markdown cell; it needs a title and a paragraph"):
        notebook_pages.heading(tmp_path / "bad.py")


def test_a_notebook_has_the_cells_of_its_script_and_no_output() -> None:
    pytest.importorskip("jupytext", reason="jupytext is in the extra docs")
    import json

    content = json.loads(notebook_pages.notebook(SCRIPTS[0]))
    assert [cell["cell_type"] for cell in content["cells"][:2]] == ["markdown", "code"]
    assert all(not cell.get("outputs") for cell in content["cells"])
    assert notebook_pages.notebook(SCRIPTS[0]) == notebook_pages.notebook(SCRIPTS[0])
