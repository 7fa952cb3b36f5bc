"""`cllm4rec COMMAND`: a table of commands, each imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

from modeling_cllm4rec.commands.command_line import BAD_ARGUMENTS, OK, RUN_FAILED


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
    "pretrain": Command("modeling_cllm4rec.commands.stages:pretrain_main", "CLLM4Rec: data folder -> pretrained model"),
    "finetune": Command("modeling_cllm4rec.commands.stages:finetune_main", "CLLM4Rec: pretrained model -> recommender"),
    "index-items": Command("modeling_cllm4rec.commands.stages:index_items_main", "LC-Rec: item texts -> semantic index"),
    "align": Command("modeling_cllm4rec.commands.stages:align_main", "LC-Rec: index and language model -> recommender"),
    "evaluate": Command("modeling_cllm4rec.commands.evaluate:main", "rank the whole catalogue and measure, with intervals"),
    "recommend": Command("modeling_cllm4rec.commands.recommend:main", "recommend to users, histories, everyone, queries"),
    "benchmark": Command("modeling_cllm4rec.benchmark.command:main", "models beside baselines, ablations, a page of results"),
    "app": Command("modeling_cllm4rec.app.command:main", "a page in the browser to look at models"),
    "serve": Command("modeling_cllm4rec.serving.command:main", "answer recommendations over HTTP"),
    "export": Command("modeling_cllm4rec.exports.command:main", "a model as ONNX, as vectors, as a Space"),
    "add-items": Command("modeling_cllm4rec.commands.add_items:main", "new items for a trained model, by their texts alone"),
    "update": Command("modeling_cllm4rec.commands.update:main", "CLLM4Rec: go on training on new interactions"),
}

Main = Callable[[list[str]], int]


def help_text() -> str:
    """What `cllm4rec --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items())
    return f"""usage: cllm4rec COMMAND ...

Large language models that recommend: CLLM4Rec and LC-Rec.

commands:
{commands}

`cllm4rec COMMAND --help` shows the flags of a command and an example. Exit codes: 0 done, 1 the run failed, 2 bad arguments.

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
        Its exit code; 2 for a command that there is none of, 1 if a package that it needs is not installed.
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
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"cllm4rec: error: there is no command {name!r}; {hint}", file=sys.stderr)
        return BAD_ARGUMENTS
    try:
        return load(COMMANDS[name].target)(rest)
    except ModuleNotFoundError as missing:
        print(f"cllm4rec {name}: error: {what_is_missing(missing.name or str(missing))}", file=sys.stderr)
        return RUN_FAILED


def load(target: str) -> Main:
    """The function that `module:function` names."""
    module, function = target.split(":")
    found: Main = getattr(importlib.import_module(module), function)
    return found


def what_is_missing(module: str) -> str:
    """What to install where a module was not found.

    Example:
        >>> what_is_missing("gradio.themes")
        'gradio is not installed; run: pip install gradio'
    """
    package = module.split(".")[0]
    if package == __name__.split(".")[0]:
        return f"this installation has no module {module}; install a version of cllm4rec that has it"
    return f"{package} is not installed; run: pip install {package}"


if __name__ == "__main__":
    sys.exit(main())
