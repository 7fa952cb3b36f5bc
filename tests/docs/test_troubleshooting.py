"""Every message that docs/troubleshooting.md quotes occurs in the code."""

from __future__ import annotations

import ast
import re

import pytest
from pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
IN_TEXT = ("that are free", "max_memory is", "which is slower than as many")
"""Fragments that the page quotes outside its tables."""


def string_of(node: ast.AST) -> str | None:
    """Return the text of a string or an f-string, with a NUL character for each replacement field."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(string_of(part) or "\0" for part in node.values)
    return None


@pytest.fixture(scope="module")
def strings() -> list[str]:
    """Return all strings of the package except docstrings."""
    found = []
    for folder in ("modeling_cllm4rec", "modeling_cllm4rec/tokenization"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            found += [text for node in ast.walk(tree) if id(node) not in docs and (text := string_of(node))]
    return found


@pytest.mark.parametrize("fragment", [*ROW.findall(PAGE.read_text(encoding="utf-8")), *IN_TEXT])
def test_a_message_is_ours(fragment: str, strings: list[str]) -> None:
    assert any(fragment in text for text in strings)


def test_what_is_quoted_in_the_text_is_quoted() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [fragment for fragment in IN_TEXT if f"`{fragment}`" not in text] == []
    assert len(ROW.findall(text)) > 40
