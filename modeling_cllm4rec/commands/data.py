"""`cllm4rec data push`: upload a data folder to the Hub."""

from __future__ import annotations

from modeling_cllm4rec.commands.command_line import CommandParser, add_upload_flags, print_json, upload_lines
from modeling_cllm4rec.core.console_log import show_log
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import FILES, RecommendationData
from modeling_cllm4rec.corpora.hub_folders import BENCHMARK_FILE, benchmark_description, is_hub_name

EPILOG = """example:
  cllm4rec data push data/mine --to you/mine --dry-run
  cllm4rec data push data/mine --to you/mine
  cllm4rec data push data/mine --to you/mine --benchmark
  cllm4rec pretrain --data hf:you/mine --backbone gpt2 --output runs/mine
"""


def parser() -> CommandParser:
    """Parse the flags."""
    flags = CommandParser("data", description="Share a data folder on the Hugging Face Hub.", epilog=EPILOG)
    flags.add_argument("action", choices=["push"], help="push: upload the folder with its card")
    flags.add_argument("folder", help="the data folder")
    flags.add_argument("--to", required=True, metavar="OWNER/NAME", help="dataset repository, made if there is none")
    flags.add_argument(
        "--benchmark",
        action="store_true",
        help="add eval.yaml, which declares leaderboards of the test split; the Hub refuses it until its list has this package",
    )
    add_upload_flags(flags, "make a new repository public; it holds the histories of all users")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    show_log()

    def work() -> None:
        if is_hub_name(arguments.folder):
            raise InputError(f"folder: {arguments.folder} is on the Hub already; name a folder of this machine")
        data = RecommendationData.load(arguments.folder)
        sizes = {name: (data.folder / name).stat().st_size for name in FILES}
        if arguments.benchmark:
            sizes[BENCHMARK_FILE] = len(benchmark_description(data.name, data.info).encode())
        commit = None
        if not arguments.dry_run:
            commit = data.push_to_hub(
                arguments.to, private=not arguments.public, benchmark=arguments.benchmark, message=arguments.commit_message
            )
        if arguments.json:
            print_json({"repository": arguments.to, "private": not arguments.public, "files": sizes, "commit": commit})
            return
        lines, end = upload_lines(sizes, arguments.to, not arguments.public, commit)
        print("\n".join([*lines, end]))

    return flags.run(arguments, work)
