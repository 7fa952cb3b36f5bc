"""The page of notebooks, and the notebooks themselves, from the scripts in notebooks/ (percent format of jupytext).

python docs/generators/notebook_pages.py writes notebooks/*.ipynb.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "notebooks"
BRANCH = "gh-pages"
"""Branch that `mkdocs gh-deploy` pushes the site to; Colab reads the notebooks from there."""


def scripts() -> list[Path]:
    """Return the scripts in the order of their names."""
    return sorted(SCRIPTS.glob("*.py"))


def heading(script: Path) -> tuple[str, str]:
    """Return the title and the first paragraph of a script's first cell."""
    text = script.read_text(encoding="utf-8")
    first = re.search(r"^# %% \[markdown\]\n((?:#.*\n)+)", text, re.MULTILINE)
    if first is None:
        raise ValueError(f"{script.name} does not begin with a Markdown cell; it needs a title and a paragraph")
    lines = [line.removeprefix("#").strip() for line in first[1].splitlines()]
    title = lines[0].removeprefix("# ").strip()
    return title, " ".join(lines[1:]).strip()


def notebook(script: Path) -> str:
    """Return a script as a notebook without outputs, in JSON."""
    import jupytext

    read: Any = jupytext.read(script)
    read.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for number, cell in enumerate(read.cells):
        cell["id"] = f"cell-{number}"  # jupytext draws them at random
    return str(jupytext.writes(read, fmt="ipynb"))


def page(repository: str) -> str:
    """Return the page that lists the notebooks."""
    rows = []
    for script in scripts():
        title, about = heading(script)
        place = repository.removeprefix("https://github.com/")
        colab = f"https://colab.research.google.com/github/{place}/blob/{BRANCH}/notebooks/{script.stem}.ipynb"
        buttons = (
            f"[Open in Colab]({colab}){{ .md-button }} [Notebook]({script.stem}.ipynb){{ .md-button download='' }} "
            f"[Script]({repository}/blob/main/notebooks/{script.name}){{ .md-button }}"
        )
        rows.append(f"## {title}\n\n{about}\n\n{buttons}\n")
    return f"""# Notebooks

Each notebook installs the package where it is missing, runs on a small synthetic data set, and says which line to change for
your own data. The tests run all of them.

{chr(10).join(rows)}"""


def pages(repository: str) -> dict[str, str]:
    """Return the path of each file below docs/ and its text."""
    return {"notebooks/index.md": page(repository), **{f"notebooks/{one.stem}.ipynb": notebook(one) for one in scripts()}}


def main() -> None:
    """Write a notebook next to each script."""
    for script in scripts():
        script.with_suffix(".ipynb").write_text(notebook(script), encoding="utf-8")
        print(script.with_suffix(".ipynb").relative_to(ROOT))


if __name__ == "__main__":
    main()
