"""Arguments of a training stage from flags and from a YAML file; flags override the file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.training.argument_names import PASSED_ON, current_names
from modeling_cllm4rec.training.arguments import packaged_configs, read_config

Arguments = TypeVar("Arguments", bound=Any)


class StageParser(CommandParser, HfArgumentParser):
    """Parse the fields of a stage's dataclass of arguments as flags, and `--config FILE`.

    Args:
        kind: the dataclass.
        name: name of the command.
    """

    def __init__(self, kind: type[Any], name: str = "", **settings: Any) -> None:
        super().__init__(name, dataclass_types=kind, **settings)
        self.add_argument(
            "--config", help=f"YAML file with defaults for the flags: a path, or one of {', '.join(packaged_configs())}"
        )
        for action in self._actions:
            opposite = next((flag for flag in action.option_strings if flag.startswith("--no_")), None)
            if opposite is not None:  # HfArgumentParser gives it the help of the flag that it switches off
                action.help = f"switch off --{action.dest}"


def parse_arguments(
    kind: type[Arguments], section: str, argv: Sequence[str] | None = None, parser: StageParser | None = None
) -> Arguments:
    """Parse the arguments of a stage: those of `--config FILE`, overridden by flags.

    Args:
        kind: the dataclass.
        section: key of the stage in a YAML file; keys that its stages share may be above it.
        argv: words behind the command; None reads those of the process.
        parser: None makes one.

    Raises:
        InputError: an unknown key or flag (the nearest names are listed) or a value that is not allowed.
        SystemExit: with code 2, a flag whose value is no number where one is needed.
    """
    parser = StageParser(kind) if parser is None else parser
    words = _current_flags(list(sys.argv[1:] if argv is None else argv), kind, parser)
    given, unknown = parser.parse_known_args(words)
    if unknown:
        raise InputError(parser.about_unknown(unknown[0]))
    if given.config:
        parser.set_defaults(**read_config(given.config, kind, section))
    arguments, *_ = parser.parse_args_into_dataclasses(words)
    return arguments


def _current_flags(words: list[str], kind: type[Any], parser: StageParser) -> list[str]:
    """Return the words of a command with flags of transformers and earlier flags under the names of the fields of `kind`."""
    known = {option for action in parser._actions for option in action.option_strings}
    found: list[str] = []
    passed: dict[str, Any] = {}
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if not flag.startswith("--") or known & {flag, "--" + name, "--" + name.replace("_", "-")}:
            found.append(word)
            continue
        behind = not equals and place < len(words) and not words[place].startswith("--")
        text = value if equals else words[place] if behind else "true"
        given = {name: yaml.safe_load(text)}
        renamed = current_names(given, kind)
        if renamed == given:  # no name that is known; the parser reports it
            found.append(word)
            continue
        place += behind
        passed |= renamed.pop(PASSED_ON, {})
        for new, converted in renamed.items():
            found += (
                [f"--{new}"]
                if converted is True
                else []
                if converted is None or converted is False
                else [f"--{new}", str(converted)]
            )
    if passed and any(word.partition("=")[0] == "--trainer" for word in words):
        raise InputError(f"trainer is given together with {', '.join(passed)}; write all of them into one of the two")
    return [*found, *(["--trainer", json.dumps(passed)] if passed else [])]
