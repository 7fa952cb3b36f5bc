"""`cllm4rec --completion SHELL`: a script that completes commands and flags, made of the help of all commands.

The script holds all words, so that a press of Tab starts no Python.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable

from modeling_cllm4rec.core.errors import InputError

SHELLS = ("bash", "zsh")
"""Shells that have a script of completion."""

SCRIPT = """\
# Completion of cllm4rec. For {shell}, write it into a file that the shell reads, once for each version:
#   {place}
{head}_cllm4rec() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _cllm4rec cllm4rec
"""
PLACES = {
    "bash": "cllm4rec --completion bash > ~/.local/share/bash-completion/completions/cllm4rec",
    "zsh": "cllm4rec --completion zsh > ~/.cllm4rec-completion; echo 'source ~/.cllm4rec-completion' >> ~/.zshrc",
}


def completion(shell: str, commands: Iterable[str], main_of: Callable[[str], Callable[[list[str]], int]]) -> str:
    """Return the script for a shell. Words that are no flag are completed as names of files.

    Args:
        shell: one of `SHELLS`; zsh reads the script of bash by its `bashcompinit`.
        commands: names of the commands.
        main_of: name of a command -> its `main`.

    Raises:
        InputError: another shell.
    """
    if shell not in SHELLS:
        raise InputError(f"completion is {shell!r}; allowed are {' and '.join(SHELLS)}")
    names = list(commands)
    cases = [f'            {name}) words="{" ".join(words_of_help(help_of(main_of(name))))}" ;;' for name in names]
    head = "" if shell == "bash" else "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
    words = " ".join([*names, "--help", "--version", "--completion"])
    return SCRIPT.format(shell=shell, place=PLACES[shell], head=head, commands=words, cases="\n".join(cases))


def help_of(main: Callable[[list[str]], int]) -> str:
    """Return what `--help` of a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main(["--help"])
    return printed.getvalue()


def words_of_help(text: str) -> list[str]:
    """Return the subcommands and flags of a help text, in its order.

    >>> words_of_help("usage: x [-h] {push,pull} ...\\n\\n  -h, --help  show\\n  --k {1,2}  as --all\\n  --a, --no-a  or not\\n")
    ['push', 'pull', '--help', '--k', '--a', '--no-a']
    """
    usage, _, body = text.partition("\n\n")
    found = [word for choices in re.findall(r"\{([\w,-]+)\} \.\.\.", usage) for word in choices.split(",")]
    for line in body.splitlines():
        if line.startswith("  -"):  # flags and their values, then two spaces and the help
            found += re.findall(r"--[a-z][\w-]*", line.strip().partition("  ")[0])
    return list(dict.fromkeys(found))


__all__ = ["SHELLS", "completion", "help_of", "words_of_help"]
