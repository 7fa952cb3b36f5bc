"""`cllm4rec push`: a finished run to the Hub, and nothing of its folder that is not of the model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from modeling_cllm4rec.commands.command_line import CommandParser, add_upload_flags, in_shell_words, print_json, upload_lines
from modeling_cllm4rec.core.console_log import hide_loading_bars, show_log

if TYPE_CHECKING:  # importing it takes seconds, which a wrong flag need not wait for
    from modeling_cllm4rec.hub.push import Push

EPILOG = """example:
  cllm4rec push runs/mine --to you/mine --dry-run
  cllm4rec push runs/mine --to you/mine --dataset you/mine-data

The model, its tokenizer and code, the card with its pictures, the evaluations, the training record and the card of the data are
pushed as one commit. Checkpoints, the corpus, prepared data and values per user stay here. --dataset names the data on the Hub
(`cllm4rec data push`): the card links it, and results on its test split are written to .eval_results/. A run that was trained on
hf:OWNER/NAME needs no --dataset.
"""


def parser() -> CommandParser:
    """Parse the flags."""
    flags = CommandParser("push", description="Push the model of a finished run to the Hugging Face Hub.", epilog=EPILOG)
    flags.add_argument("run", help="folder of the run")
    flags.add_argument("--to", dest="repo_id", required=True, metavar="OWNER/NAME", help="repository, made if there is none")
    flags.add_argument("--include-histories", action="store_true", help="push the users' histories (default: their ids alone)")
    flags.add_argument("--dataset", metavar="OWNER/NAME", help="the data folder on the Hub, for a run on a local copy of it")
    flags.add_argument("--revision", help="branch to commit to, made if there is none")
    flags.add_argument("--create-pr", action="store_true", help="propose the commit as a pull request")
    add_upload_flags(flags, "make a new repository public")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    show_log()

    def work() -> None:
        from modeling_cllm4rec.hub.push import push_run

        hide_loading_bars()
        push = push_run(
            arguments.run,
            arguments.repo_id,
            private=not arguments.public,
            include_histories=arguments.include_histories,
            dataset=arguments.dataset,
            commit_message=arguments.commit_message,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            dry_run=arguments.dry_run,
        )
        if arguments.json:
            print_json(dataclasses.asdict(push))
        else:
            print(in_words(push, flags.flags()))

    return flags.run(arguments, work)


def in_words(push: Push, flags: dict[str, str]) -> str:
    """Return the files that are pushed with their sizes, what is left out and why, and where the push went.

    Args:
        flags: argument name -> flag, see `command_line.in_shell_words`.
    """
    lines, end = upload_lines(push.files, push.repository, push.private, push.commit)
    lines.append(f"{sum(push.files.values()):>14,} bytes in {len(push.files)} files")
    lines += [f"left out: {name} ({in_shell_words(why, flags)})" for name, why in push.left_out.items()]
    return "\n".join([*lines, end])
