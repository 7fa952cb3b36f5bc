"""`cllm4rec recommend`: recommend items to known users, to histories, to everyone, or to queries."""

from __future__ import annotations

import logging
from pathlib import Path

from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.commands.model_flags import add_model_arguments
from modeling_cllm4rec.commands.ray_flags import add_ray_arguments, check_ray_arguments
from modeling_cllm4rec.commands.shares import share_of
from modeling_cllm4rec.core.console_log import hide_loading_bars, show_log
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.atomic_files import check_output_file, check_output_folder
from modeling_cllm4rec.hub.model_names import check_name

EPILOG = """example:
  cllm4rec recommend --model runs/mine --users ann bob --k 10
  cllm4rec recommend --model runs/mine --histories histories.parquet --k 10 --output recs.parquet
  cllm4rec recommend --model runs/mine --k 10 --output everyone.parquet
  cllm4rec recommend --model runs/mine --k 10 --output everyone --shard 1/4
  cllm4rec recommend --model runs/mine --k 10 --output everyone --engine ray --num-workers 2
  cllm4rec recommend --model runs/mine-lcrec --query "a gentle cleanser for dry skin" --k 10

A histories file is Parquet or JSON lines with a column `history` (lists of item ids, oldest first). For users that the model
knows, a column `user_id` names them; for unseen users, a column `user` holds any names, which come back with the answers
(without it, the numbers of the rows).
"""


OTHER_TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".feather", ".arrow", ".xlsx", ".gz")
"""Endings of tables that this command does not write, and that nobody gives to a folder."""


def parser() -> CommandParser:
    """Parse the flags."""
    flags = CommandParser(
        "recommend",
        description="Recommend items to known users, to histories, to everyone, or to queries.",
        epilog=EPILOG,
    )
    add_model_arguments(flags)
    source = flags.add_mutually_exclusive_group()
    source.add_argument("--users", nargs="+", help="external user ids; their stored histories are read")
    source.add_argument("--histories", help="Parquet or JSON-lines file; without users and histories: every known user")
    source.add_argument(
        "--query", dest="queries", nargs="+", help="LC-Rec: a description of the wanted item; each query is a text in quotes"
    )
    flags.add_argument("--k", type=int, default=10, help="recommendations for each (default: 10)")
    flags.add_argument("--include-seen", action="store_true", help="recommend items of the history, too")
    flags.add_argument("--candidates", nargs="+", help="choose among these item ids only")
    flags.add_argument(
        "--on-unknown",
        choices=["raise", "skip"],
        default="raise",
        help="unknown ids, and users without an item that the model knows: error, or left out",
    )
    form = flags.add_mutually_exclusive_group()
    form.add_argument(
        "--output",
        help="Parquet file (NAME.parquet) for the table, or a folder for its parts, where a stopped run goes on; without it, the "
        "table is printed with titles",
    )
    form.add_argument("--json", action="store_true", help="print JSON lines: user, rank, item, score, title")
    parts = flags.add_argument_group("a folder of parts")
    parts.add_argument("--part-size", type=int, help="users of one part (default: 16384)")
    parts.add_argument("--shard", metavar="I/N", help="write every N-th part only, such as 2/4 on the second of four machines")
    add_ray_arguments(flags)
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    show_log(logging.WARNING)

    def work() -> None:
        folder = arguments.output is not None and not arguments.output.endswith(".parquet")
        share = share_of(arguments.shard)
        check_ray_arguments(arguments, share.processes)
        if arguments.part_size is not None:
            from modeling_cllm4rec.core.questions import check_whole_number

            check_whole_number("part_size", arguments.part_size)
        if not folder and (unread := [name for name in ("shard", "part_size") if getattr(arguments, name) is not None]):
            raise InputError(f"{unread[0]}: only a folder has parts; give --output FOLDER, or leave it out")
        if not folder and share.processes > 1:
            raise InputError(f"output: {share.processes} processes were launched; give a folder, whose parts they share out")
        if folder and Path(arguments.output).suffix.lower() in OTHER_TABLES:
            raise InputError(
                f"output: {arguments.output} would be a folder of Parquet files; give it the ending .parquet for one file, or no "
                "ending for a folder"
            )
        if arguments.output:
            (check_output_folder if folder else check_output_file)(arguments.output)
        if arguments.queries and arguments.include_seen:
            raise InputError("--include-seen: a query is asked without a history, so nothing was seen; leave it out")
        check_name(arguments.model)
        from modeling_cllm4rec.commands.recommendation_run import recommend

        hide_loading_bars()
        recommend(arguments, share, folder)

    return flags.run(arguments, work)
