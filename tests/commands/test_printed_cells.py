"""Titles and ids from anyone are printed so that they reach neither the terminal nor a spreadsheet as commands."""

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from modeling_cllm4rec.commands.command_line import cell
from modeling_cllm4rec.commands.recommendation_run import show
from modeling_cllm4rec.core.catalogue import Catalogue


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("\x1b]0;PWNED\x07\x1b[2J", r"\x1b]0;PWNED\x07\x1b[2J"),
        ("a\tb\nc\rd\x00", r"a\tb\nc\rd\x00"),
        ("\x9b31m", r"\x9b31m"),
        ("evil\u202egnp.exe", r"evil\u202egnp.exe"),
        ("a\u2028b", r"a\u2028b"),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1", "'+1"),
        ("-1+2", "'-1+2"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("a=1", "a=1"),
        ("Zoë/Łukasz 🎸", "Zoë/Łukasz 🎸"),
        ("", ""),
        (None, ""),
        (-5, "-5"),
    ],
)
def test_a_cell(value: Any, printed: str) -> None:
    assert cell(value) == printed


def test_titles_and_ids_are_printed_as_cells(capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = SimpleNamespace(catalogue=Catalogue(pa.table({"item_id": ["=1", "b"], "title": ["\x1b[2J\t", "Soap"]})))
    table = pa.table({"user": ["@ann", "bob"], "item": ["=1", "b"], "rank": [1, 1], "score": [0.5, 0.25]})
    show(iter([table]), model, as_json=False)
    assert capsys.readouterr().out.splitlines() == ["'@ann\t  1\t'=1\t0.500\t\\x1b[2J\\t", "bob\t  1\tb\t0.250\tSoap"]
