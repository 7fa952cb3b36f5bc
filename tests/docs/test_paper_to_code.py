"""Every function in "From the papers to the code" and every module in the glossary exists."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation

PAGE = ROOT / "docs" / "concepts.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
NAME = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)+)(?:\([^`]*\))?`")
FILES = (".yaml", ".py", ".md", ".parquet", ".json", ".png")
SYSTEMS = {"## CLLM4Rec": 20, "## LC-Rec": 15}
"""Section of the page -> minimum number of names."""


def named(text: str) -> list[str]:
    """Return the dotted names of a text."""
    return [name for name in NAME.findall(text) if not name.endswith(FILES)]


def resolve(name: str) -> Any:
    """Return the object of a dotted name below `modeling_cllm4rec`.

    Raises:
        AttributeError: no such object.
    """
    parts = ["modeling_cllm4rec", *name.split(".")]
    for count in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[count:], module)
    raise AttributeError(name)


@pytest.mark.parametrize("name", sorted(set(named(PAGE.read_text(encoding="utf-8")))))
def test_a_name_exists(name: str, tiny_backbones: dict[str, Path]) -> None:
    if name.startswith("model."):
        model = CLLM4RecForRecommendation.from_backbone(tiny_backbones["gpt2"], num_users=2, num_items=3)
        assert functools.reduce(getattr, name.split(".")[1:], model) is not None
    else:
        assert callable(resolve(name)) or not name.rpartition(".")[2].islower()


@pytest.mark.parametrize("name", sorted(set(named(GLOSSARY.read_text(encoding="utf-8")))))
def test_a_module_of_the_glossary_exists(name: str) -> None:
    assert resolve(name)


def test_no_term_has_two_rows_in_the_glossary() -> None:
    terms = re.findall(r"^\| ([^|]+) \| (?!meaning)", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(terms) > 60
    assert len(set(terms)) == len(terms)


def test_both_papers_have_their_names() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for system, least in SYSTEMS.items():
        part = text.split(f"\n{system}\n")[1].split("\n## ")[0]
        assert len(set(named(part))) >= least, system


@pytest.mark.parametrize(
    "name", ["losses.no_such_loss", "no_such_module.f", "modeling_cllm4rec.tokenization.tokenization_cllm4rec.Nothing"]
)
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(AttributeError):
        resolve(name)
