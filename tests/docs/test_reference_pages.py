"""The generated reference covers every command, flag, field and public name."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re

import api_pages
import argument_pages
import command_pages
import pytest
from pages import flags_of

from modeling_cllm4rec.commands.main import all_commands
from modeling_cllm4rec.exports.command import EXPORTS
from modeling_cllm4rec.systems import SYSTEMS, resolve

SHARED = {"--help", "--debug"}
"""Flags that the page of all commands explains."""


@pytest.mark.parametrize("command", all_commands())
def test_a_page_has_every_flag_that_the_help_has(command: str) -> None:
    page = command_pages.page(command)
    listed = {name for row in re.findall(r"^\| (`-.*?) \|", page, re.MULTILINE) for name in re.findall(r"--[\w-]+", row)}
    kinds = EXPORTS if command == "export" else ("quality", "ablation", "report") if command == "benchmark" else ("",)
    helped = set()
    for kind in kinds:
        # The help of one flag may name a flag of another command, so only the flags at the beginning of a line count.
        helped |= _first_flags(command, *filter(None, [kind]))
    assert helped - SHARED and {flag.replace("_", "-") for flag in helped} - SHARED <= listed


def _first_flags(*words: str) -> set[str]:
    parsers = command_pages.parsers_of(*words)
    texts = "\n".join(parser.format_help() for parser in parsers)
    found = {flag for line in re.findall(r"^  (-.*)$", texts, re.MULTILINE) for flag in re.findall(r"(?:^|, )(--[\w-]+)", line)}
    assert {flag.replace("_", "-") for flag in found} <= {flag.replace("_", "-") for flag in flags_of(*words)}
    return found


def test_defaults_types_and_choices() -> None:
    rows = {row.names[0]: row for parser in command_pages.all_parsers("pretrain") for row in command_pages.flags(parser)}
    assert (rows["--learning-rate"].values, rows["--learning-rate"].default) == ("number", "0.001")
    assert rows["--tune"].values == "frozen, lora, full"
    assert rows["--attn-implementation"].default == "the backbone's own" and "default" not in rows["--attn-implementation"].help
    benchmark = {row.names[0]: row for row in command_pages.flags(next(command_pages.all_parsers("benchmark")))}
    assert benchmark["--models"].default == "required" and benchmark["--seed"].values == "integer ..."


def test_stages_that_share_a_command_have_a_section_each() -> None:
    assert re.findall("^## .*", command_pages.page("update"), re.MULTILINE) == ["## update, CLLM4Rec", "## update, LC-Rec"]


def test_every_field_of_every_stage_has_a_row_with_its_meaning() -> None:
    page = argument_pages.page()
    for system in SYSTEMS.values():
        for stage in (*system.stages, *system.updates):
            missing = [one.name for one in dataclasses.fields(resolve(stage.arguments)) if f"| `{one.name}` |" not in page]
            assert missing == [], stage.name
    empty = re.findall(r"^\| `(\w+)` .*\|  \|$", page, re.MULTILINE)
    assert empty == []


def test_types_are_those_of_the_class_and_defaults_those_of_the_subclass() -> None:
    rows = {name: row for kind in argument_pages.argument_classes() for name, *row in argument_pages.own_fields(kind)}
    assert rows["max_memory"][:2] == ["float | None", "None"]
    alignment = next(kind for kind in argument_pages.argument_classes() if kind.__name__ == "AlignmentArguments")
    values = {name: default for name, _, default, _ in argument_pages.own_fields(alignment)}
    assert values["num_train_epochs"] == "4" and "seed" not in values  # seed is in the section of its base


@pytest.mark.parametrize("kind", argument_pages.config_classes())
def test_every_argument_of_a_configuration_has_a_meaning(kind: type) -> None:
    rows = argument_pages.parameters(kind)
    assert rows and [name for name, *_, meaning in rows if not meaning] == []
    if not dataclasses.is_dataclass(kind) or kind.__module__.startswith("modeling_cllm4rec.serving"):
        names = [name for name in inspect.signature(kind).parameters if name != "kwargs"]
        assert [name for name, *_ in rows] == names


def test_every_public_name_has_a_page_and_a_docstring() -> None:
    assert api_pages.undocumented() == []
    pages = api_pages.pages()
    text = "\n".join(pages.values())
    for module in api_pages.modules():
        here = api_pages.definitions(module.tree)
        assert [name for name in module.public if name in here and f"::: {module.name}.{name}\n" not in text] == []
    assert {api_pages.room_of(module.name) for module in api_pages.modules()} <= {*api_pages.ROOMS, "systems"}


def test_a_public_name_without_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse('"""Doc."""\nA = 1\nB = 2\n"""Two."""\ndef f(): pass\n__all__ = ["A", "B", "f", "gone"]\n')
    module = api_pages.Module("modeling_cllm4rec.core.made", tree, api_pages.declared(tree))
    monkeypatch.setattr(api_pages, "modules", lambda: [module])
    found = [name for name in api_pages.undocumented() if ".made" in name]
    assert found == [f"modeling_cllm4rec.core.made.{name}" for name in ("A", "f", "gone")]
    with pytest.raises(ValueError, match="public names without a docstring or a page: modeling_cllm4rec.core.made.A"):
        api_pages.pages()


def test_a_cell_keeps_the_table_whole() -> None:
    assert command_pages.cell("a | b <c> *d* `e*`\nf") == r"a &#124; b &lt;c> \*d\* `e*` f"
