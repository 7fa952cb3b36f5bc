"""Pages of the command line, from the parsers themselves: a command that exists has a page, with the default of every flag."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Iterator
from typing import NamedTuple

from modeling_cllm4rec.commands.main import all_commands, load
from modeling_cllm4rec.exports.command import EXPORTS

FOLDER = "reference/command-line"
DEFAULT = re.compile(r"\s*\(default: (?P<value>(?:[^()]|\([^()]*\))*)\)")


class Flag(NamedTuple):
    """A flag or a positional word of a command.

    Attributes:
        names: its spellings.
        values: the values that it takes; empty for a switch.
        default: its default, `required`, or empty for none.
        help: its meaning.
    """

    names: tuple[str, ...]
    values: str
    default: str
    help: str


def parsers_of(*words: str) -> list[argparse.ArgumentParser]:
    """Return the parsers whose help a command prints: several where stages of two systems share the command's name."""
    found: list[argparse.ArgumentParser] = []
    format_help = argparse.ArgumentParser.format_help

    def noted(parser: argparse.ArgumentParser) -> str:
        found.append(parser)
        return format_help(parser)

    argparse.ArgumentParser.format_help = noted  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            load(words[0])([*words[1:], "--help"])
    finally:
        argparse.ArgumentParser.format_help = format_help  # type: ignore[method-assign]
    return found


def all_parsers(command: str) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of a command and of its subcommands."""
    targets = [(command, target) for target in EXPORTS] if command == "export" else [(command,)]
    for parser in (found for words in targets for found in parsers_of(*words)):
        nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not nested:
            yield parser
        for action in nested:
            yield from action.choices.values()


def flags(parser: argparse.ArgumentParser) -> list[Flag]:
    """Return the flags and positional words of a parser in their order, without those that all commands have."""
    shared = ("help", "debug")
    parser.format_help()  # some flags get their help only then
    return [_flag(parser, one) for one in parser._actions if one.dest not in shared and one.help != argparse.SUPPRESS]


def _flag(parser: argparse.ArgumentParser, action: argparse.Action) -> Flag:
    # HfArgumentParser writes both spellings of a name; the parser takes either, so one of them is enough here.
    names = tuple(dict.fromkeys(name.replace("_", "-") for name in action.option_strings)) or (action.metavar or action.dest,)
    values = "" if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction) else _values(action)
    text = _help(parser, action)
    stated = DEFAULT.search(text)
    if action.required and action.option_strings:
        default = "required"
    elif stated is not None:
        default, text = stated["value"], DEFAULT.sub("", text, count=1)
    elif action.default in (None, argparse.SUPPRESS, "", []) or (action.default is False and not values):
        default = ""
    else:
        default = " ".join(map(str, action.default)) if isinstance(action.default, list | tuple) else str(action.default)
    return Flag(tuple(map(str, names)), values, default, text)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return " ".join(text.split())


def _values(action: argparse.Action) -> str:
    if action.choices is not None:
        return ", ".join(map(str, action.choices))
    name = action.metavar if isinstance(action.metavar, str) else getattr(action.type, "__name__", "text").lower().strip("_")
    name = {"str": "text", "int": "integer", "float": "number", "none": "text", "string_to_bool": "true or false"}.get(name, name)
    return f"{name} ..." if action.nargs in ("+", "*") else name


def page(command: str) -> str:
    """Return the page of a command."""
    found = list(all_parsers(command))
    parts = [f"# {command}\n\n{all_commands()[command][0].upper()}{all_commands()[command][1:]}.\n"]
    for parser in found:
        if len(found) > 1:
            title = parser.prog.removeprefix("cllm4rec ")
            twice = [one for one in found if one.prog == parser.prog]
            parts.append(f"## {title if len(twice) == 1 else f'{title}, {_system(parser)}'}\n")
        if parser.description:
            parts.append(f"{_prose(parser.description)}\n")
        if parser.epilog:
            parts.append(example(parser.epilog))
        parts.append(table(flags(parser)))
    return "\n".join(parts)


def example(epilog: str) -> str:
    """Return the text behind a command's flags: its commands as a block, its sentences as paragraphs.

    Example:
        >>> print(example("example:\\n  cllm4rec doctor\\n\\nMore."))
        ```bash
        cllm4rec doctor
        ```
        <BLANKLINE>
        More.
        <BLANKLINE>
    """
    lines = epilog.strip().splitlines()
    commands = [line.strip() for line in lines if line.startswith("  ")]
    kept = [line or "\n\n" for line in lines if not line.startswith("  ") and line.strip() not in ("example:", "examples:")]
    sentences = " ".join(kept)
    block = "```bash\n" + "\n".join(commands) + "\n```\n\n" if commands else ""
    prose = "\n\n".join(_prose(part) for part in sentences.split("\n\n") if part.strip())
    return f"{block}{prose}\n"


def _system(parser: argparse.ArgumentParser) -> str:
    return "LC-Rec" if "LC-Rec" in (parser.description or "") else "CLLM4Rec"


def table(rows: list[Flag]) -> str:
    """Return flags as a table."""
    lines = ["| flag | values | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        names = ", ".join(f"`{name}`" for name in row.names)
        default = f"`{row.default}`" if row.default and row.default != "required" and " " not in row.default else row.default
        lines.append(f"| {names} | {cell(row.values)} | {cell(default)} | {cell(row.help)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Return a text as one cell of a table, in which no character is markup but backticks.

    Example:
        >>> cell("a|b <c>")
        'a&#124;b &lt;c>'
    """
    parts = re.split(r"(`[^`]*`)", text.replace("|", "&#124;"))
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_\[\]])", r"\\\1", part.replace("<", "&lt;")) for part in parts
    ).replace("\n", " ")


def _prose(text: str) -> str:
    """Return a description as paragraphs of a page."""
    return cell(" ".join(text.split()))


def index() -> str:
    """Return the page that lists all commands."""
    rows = "\n".join(f"| [`{name}`]({name}.md) | {cell(about)} |" for name, about in all_commands().items())
    return f"""# Command line

`cllm4rec COMMAND --help` prints the same in the shell. Flags may be written with hyphens or underscores. `--debug`, which every
command has, shows the traceback of an error. Exit codes: 0 done, 1 the run failed, 2 bad arguments, 130 interrupted.

| command | what it does |
|---|---|
{rows}

Generated from the parsers of the installed version.
"""


def pages() -> dict[str, str]:
    """Return the path of each page below docs/ and its text."""
    return {f"{FOLDER}/index.md": index(), **{f"{FOLDER}/{name}.md": page(name) for name in all_commands()}}
