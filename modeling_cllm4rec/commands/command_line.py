"""The command line: one parser for all commands, errors in one line, exit codes."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from modeling_cllm4rec.core.errors import CLLM4RecError, nearest

OK = 0
"""Exit code of a command that is done."""
RUN_FAILED = 1
"""Exit code of a run that failed."""
BAD_ARGUMENTS = 2
"""Exit code of arguments that are missing or wrong, which include those that name a file, a folder or an id."""
INTERRUPTED = 130
"""Exit code after Ctrl-C; that of another signal is 128 + its number."""

HUGGING_FACE_NAMES = {
    "per_device_eval_batch_size": "batch_size",
    "output_dir": "output",
    "overwrite_output_dir": "overwrite",
    "model_name_or_path": "backbone",
    "dataset_name": "data",
}
"""Argument names of transformers, peft and TRL -> the name here, where it is another one."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the line breaks of description and epilog, and show the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        silent = action.default in (None, False, argparse.SUPPRESS, "", []) or not action.option_strings
        if silent or "default" in text or action.nargs == 0:
            return text
        return f"{text} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """Parse the flags of one command.

    Flags may be written with hyphens or with underscores. An unknown flag is reported with the nearest ones.

    Args:
        name: name of the command, as `evaluate` in `cllm4rec evaluate`.
    """

    def __init__(self, name: str = "", **settings: Any) -> None:
        settings.setdefault("prog", f"cllm4rec {name}".strip())
        settings["formatter_class"] = HelpFormatter
        settings["allow_abbrev"] = False
        super().__init__(**settings)
        self._late_help: dict[argparse.Action, Callable[[], str]] = {}
        self.add_argument("--debug", action="store_true", help="show the traceback of an error, also of a wrong argument")

    def explain_when_shown(self, action: argparse.Action, text: Callable[[], str]) -> None:
        """Let a flag get its help only where help is shown, because what the help lists takes seconds to import.

        Example:
            >>> parser = CommandParser("x")
            >>> parser.explain_when_shown(parser.add_argument("--colour"), lambda: "red, or any of thousands")
            >>> "red, or any of thousands" in parser.format_help()
            True
        """
        self._late_help[action] = text

    def format_help(self) -> str:
        """Return the help of the command and of its flags."""
        for action, text in self._late_help.items():
            action.help = text()
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, with hyphens for underscores in flags and the other way round."""
        words = [self._known_spelling(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(words, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all words, and end with a message in one line where one of them is unknown."""
        words = [self._known_spelling(word) for word in (sys.argv[1:] if args is None else args)]
        flags = [word for word in words if word.startswith("--") and len(word) > 2]
        unknown = [flag for flag in flags if flag.partition("=")[0] not in self._option_string_actions]
        if unknown and self._subparsers is None:  # before a missing flag is reported that an unknown one may have meant
            self.error(self.about_unknown(unknown[0]))
        self._refuse_repeated(flags)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(self.about_unknown(unknown[0]))
        return parsed

    def _refuse_repeated(self, flags: Sequence[str]) -> None:
        """Refuse a flag that takes several values and is given twice: argparse would keep the last ones only, without a word."""
        names = [flag.partition("=")[0] for flag in flags]
        for name in {name for name in names if names.count(name) > 1}:
            action = self._option_string_actions.get(name)
            if action is not None and action.nargs in ("+", "*") and isinstance(action, argparse._StoreAction):
                self.error(f"{name} is given {names.count(name)} times; put all of its values behind one")

    def about_unknown(self, flag: str) -> str:
        """Return the message about a flag that this command does not have."""
        name = flag.partition("=")[0].lstrip("-").replace("-", "_")
        ours = {action.dest: option for action in self._actions for option in action.option_strings if option.startswith("--")}
        if not flag.startswith("-"):
            return f"unexpected word {flag!r}; put a value behind its flag"
        if HUGGING_FACE_NAMES.get(name) in ours:
            return f"unknown flag {flag!r}; here it is {ours[HUGGING_FACE_NAMES[name]]}"
        return f"unknown flag {flag!r}; {nearest(flag.partition('=')[0], ours.values(), f'see {self.prog} --help')}"

    def error(self, message: str) -> NoReturn:
        """Report wrong arguments in one line, without the usage of all flags, and exit with code 2."""
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(BAD_ARGUMENTS)

    def run(self, arguments: argparse.Namespace, work: Callable[[], None]) -> int:
        """Do the work of the command; see `run_command`."""
        return run_command(self.prog, work, self.flags(), debug=bool(getattr(arguments, "debug", False)))

    def flags(self) -> dict[str, str]:
        """Return the name of each argument and its flag, those of subcommands included."""
        found = {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    found |= {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
        return found

    def _known_spelling(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag in self._option_string_actions:
            return word
        for spelling in (flag[:2] + flag[2:].replace("_", "-"), flag[:2] + flag[2:].replace("-", "_")):
            if spelling in self._option_string_actions:
                return spelling + equals + value
        return word


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of system errors: the disk is full, the user's quota is spent, or a file may not grow further."""


def run_command(name: str, work: Callable[[], None], flags: dict[str, str] | None = None, debug: bool = False) -> int:
    """Do the work of a command, and report an error of this package in one line.

    Any other exception is a programming error, or one that nobody foresaw: it keeps its traceback.

    Args:
        name: the command, as `cllm4rec evaluate`.
        work: reads, computes, writes and prints.
        flags: argument name -> flag, for messages that name an argument.
        debug: show the traceback of errors of this package as well; so does the environment variable CLLM4REC_DEBUG=1.

    Returns:
        0 when it was done; the error's exit code (2 for bad input, 1 for a failed run); 1 when the reader of the output went
        away; 130 when it was interrupted, 128 + the number of another signal.

    Example:
        >>> run_command("cllm4rec nothing", lambda: None)
        0
    """
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:  # as in `cllm4rec recommend ... | head`; the interpreter's own last flush must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUN_FAILED
    except KeyboardInterrupt as stopped:
        print(f"{name}: {in_shell_words(str(stopped) or 'interrupted', flags or {})}", file=sys.stderr)
        return int(getattr(stopped, "exit_code", INTERRUPTED))
    except CLLM4RecError as error:
        if debug or os.environ.get("CLLM4REC_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        words = " ".join(str(error).split()) or type(error).__name__
        print(f"{name}: error: {in_shell_words(words, flags or {})}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of another library, which writes for us
        if error.errno not in NO_ROOM or debug:
            raise
        place = f" ({error.filename})" if error.filename else ""
        print(
            f"{name}: error: there is no room on the disk{place}: {error.strerror}; what was finished before is unchanged: make "
            "room and run the command again",
            file=sys.stderr,
        )
        return RUN_FAILED
    return OK


def in_shell_words(message: str, flags: dict[str, str]) -> str:
    """Replace names of arguments in a message of the library by flags of the shell.

    A name counts at the beginning of the message, wherever a value is given to it as in Python, and where it has an underscore,
    because it is no English word then. The flags of `plots=False` and of `with_plots=False` are `--no-plots`.

    Example:
        >>> in_shell_words("on_unknown is 'x'; pass on_unknown='skip'", {"on_unknown": "--on-unknown"})
        "--on-unknown is 'x'; pass --on-unknown skip"
        >>> in_shell_words("lower batch_size, or pass plots=False", {"batch_size": "--batch-size", "no_plots": "--no-plots"})
        'lower --batch-size, or pass --no-plots'
    """
    first = re.match(r"(\w+)(?= is | are | holds |: )", message)
    if first and first[1] in flags:
        message = flags[first[1]] + message[first.end() :]
    # Not after a dot, quote, slash or hyphen: config.item_encoder, 'item_id', a file's name and a flag are none.
    name = re.compile(r"(?<![\w.'\"`/-])([a-z]\w*)(?:=('[^']*'|\"[^\"]*\"|\.\.\.|[\w.]*\w)?|(?![\w'\"`(/]|\.\w))")

    def as_flag(found: re.Match[str]) -> str:
        word, value = found[1], (found[2] or "").strip("'\"")
        negative = f"no_{word.removeprefix('with_')}"
        if value == "False" and negative in flags:
            return flags[negative]
        if word not in flags or ("=" not in found[0] and "_" not in word):
            return found[0]
        return flags[word] if value == "True" else f"{flags[word]} {value}".strip()

    return name.sub(as_flag, message)


def cell(value: Any) -> str:
    """Return a value as one cell of columns that are printed between tabs.

    Control characters would reach the terminal or break the columns, and bidirectional marks hide text: they are escaped. A
    spreadsheet reads a text that begins with `=`, `+`, `-` or `@` as a formula: it gets an apostrophe, which spreadsheets hide.

    Example:
        >>> cell("a\\tb\\x1b[2J"), cell("=1+1"), cell(-5), cell(None)
        ('a\\\\tb\\\\x1b[2J', "'=1+1", '-5', '')
    """
    if value is None:
        return ""
    text = _UNPRINTED.sub(lambda found: found[0].encode("unicode_escape").decode(), str(value))
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@") else text


_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def add_upload_flags(flags: CommandParser, public: str) -> None:
    """Add the flags that all uploads to the Hub have.

    Args:
        flags: the parser of a command; public: what `--public` does, for its help.
    """
    flags.add_argument("--public", action="store_true", help=public)
    flags.add_argument("--message", dest="commit_message", help="commit message")
    flags.add_argument("--dry-run", action="store_true", help="list the files and their sizes, and upload nothing")
    flags.add_argument("--json", action="store_true", help="print repository, files and commit as JSON")


def upload_lines(files: Mapping[str, int], repository: str, private: bool, commit: str | None) -> tuple[list[str], str]:
    """Return a line for each file of an upload with its size, and one for where they went; a dry run has no commit."""
    kind = "private" if private else "public"
    sizes = [f"{size:>14,} bytes  {name}" for name, size in files.items()]
    return sizes, f"{repository}, {kind} if it is new: {commit or 'nothing was uploaded (dry run)'}"


def print_json(value: Any) -> None:
    """Print a value as one indented JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


__all__ = [
    "BAD_ARGUMENTS",
    "HUGGING_FACE_NAMES",
    "INTERRUPTED",
    "OK",
    "RUN_FAILED",
    "CommandParser",
    "HelpFormatter",
    "cell",
    "in_shell_words",
    "print_json",
    "run_command",
]
