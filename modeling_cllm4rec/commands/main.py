"""`cllm4rec COMMAND`: a table of commands, each imported when it is asked for."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import NamedTuple, cast

from packaging.utils import canonicalize_name

from modeling_cllm4rec.commands.command_line import BAD_ARGUMENTS, OK, RUN_FAILED, run_command
from modeling_cllm4rec.core.errors import nearest
from modeling_cllm4rec.core.optional_packages import declared_requirements
from modeling_cllm4rec.systems import SYSTEMS, resolve


class Command(NamedTuple):
    """A command.

    Attributes:
        target: `module:function`; the function takes the words behind the command and returns an exit code.
        about: what it does, in a few words.
    """

    target: str
    about: str


COMMANDS = {
    "doctor": Command("modeling_cllm4rec.commands.doctor:main", "what is installed, what is missing, what will not work"),
    "prepare": Command("modeling_cllm4rec.commands.prepare:main", "raw interactions and texts -> data folder"),
    "evaluate": Command("modeling_cllm4rec.commands.evaluate:main", "rank the whole catalogue and measure, with intervals"),
    "recommend": Command("modeling_cllm4rec.commands.recommend:main", "recommend to users, histories, everyone, queries"),
    "similar-items": Command("modeling_cllm4rec.commands.similar_items:main", "items that are near to items in the model"),
    "benchmark": Command("modeling_cllm4rec.benchmark.command:main", "models and baselines, ablations, a page of results"),
    "app": Command("modeling_cllm4rec.app.command:main", "a page in the browser to look at models"),
    "serve": Command("modeling_cllm4rec.serving.command:main", "answer recommendations over HTTP"),
    "push": Command("modeling_cllm4rec.commands.push:main", "a finished run to the Hub: model, tokenizer, card"),
    "data": Command("modeling_cllm4rec.commands.data:main", "share a data folder on the Hub"),
    "export": Command("modeling_cllm4rec.exports.command:main", "a model as ONNX, as vectors, as a Space"),
    "hybrid": Command("modeling_cllm4rec.commands.hybrid:main", "add linear models to a trained model, weights learned"),
    "add-items": Command("modeling_cllm4rec.commands.add_items:main", "new items for a trained model, by their texts alone"),
}

"""The commands that are no training stage."""

COMPLETION = {"completion": "--completion"}

Main = Callable[[list[str]], int]


def all_commands() -> dict[str, str]:
    """Return the name of each command and what it does in a few words; the stages of all systems follow `prepare`."""
    stages = {stage.name: stage.summary for system in SYSTEMS.values() for stage in (*system.stages, *system.updates)}
    about = {name: command.about for name, command in COMMANDS.items()}
    first = {name: about.pop(name) for name in ("doctor", "prepare")}
    return {**first, **stages, **about}


def help_text() -> str:
    """Return the text of `cllm4rec --help`."""
    about = all_commands()
    width = max(map(len, about))
    commands = "\n".join(f"  {name:<{width}}  {words}" for name, words in about.items())
    return f"""usage: cllm4rec COMMAND ...

Large language models that recommend: CLLM4Rec and LC-Rec.

commands:
{commands}

`cllm4rec COMMAND --help` shows the flags of a command and an example. `cllm4rec --completion bash` (or zsh) prints a script
that completes commands and flags; its first lines say where to put it. Exit codes: 0 done, 1 the run failed, 2 bad arguments.

example:
  cllm4rec prepare --interactions ratings.csv --items movies.csv --k-core 5 --output data/movies
  cllm4rec pretrain --data data/movies --backbone gpt2 --output runs/movies
  cllm4rec finetune --data data/movies --output runs/movies
  cllm4rec evaluate --model runs/movies --data data/movies
  cllm4rec recommend --model runs/movies --users 17 --k 10
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        Its exit code; 2 for a command that there is none of, 1 if a dependency of this package is not installed.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(help_text(), end="")
        return OK if words else BAD_ARGUMENTS
    if words[0] == "--version":
        from modeling_cllm4rec import __version__

        print(f"cllm4rec {__version__}")
        return OK
    name, *rest = words
    if name == "--completion":
        from modeling_cllm4rec.commands.completion import completion

        return run_command("cllm4rec", lambda: print(completion(" ".join(rest), all_commands(), load), end=""), COMPLETION)
    if name not in all_commands():
        print(f"cllm4rec: error: there is no command {name!r}; {nearest(name, all_commands())}", file=sys.stderr)
        return BAD_ARGUMENTS
    try:
        return load(name)(rest)
    except ModuleNotFoundError as missing:
        if (advice := about_missing_dependency(missing.name or "")) is None:
            raise
        print(f"cllm4rec {name}: error: {advice}", file=sys.stderr)
        return RUN_FAILED


def load(name: str) -> Main:
    """Import the function of a command: it takes the words behind the command and returns an exit code."""
    if name in COMMANDS:
        return cast(Main, resolve(COMMANDS[name].target))
    named = {
        system.name: stage for system in SYSTEMS.values() for stage in (*system.stages, *system.updates) if stage.name == name
    }
    if len(named) == 1:
        return functools.partial(resolve("modeling_cllm4rec.commands.stages:stage_main"), *named.values())
    return functools.partial(resolve("modeling_cllm4rec.commands.stages:shared_stage_main"), named)


def about_missing_dependency(module: str) -> str | None:
    """Return the advice for a module of a dependency that is not installed; None for any other module.

    Example:
        >>> about_missing_dependency("a_module_of_no_dependency") is None
        True
    """
    package = module.partition(".")[0]
    name = canonicalize_name({"yaml": "pyyaml"}.get(package, package))
    for needed in declared_requirements():
        if canonicalize_name(needed.name) == name:
            return f'{name} is not installed; run: pip install "{needed.name}{needed.specifier}"'
    return None


if __name__ == "__main__":
    sys.exit(main())
