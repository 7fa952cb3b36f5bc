"""`cllm4rec evaluate`: rank the whole catalogue for every user of a split and measure what was found."""

from __future__ import annotations

import argparse
import shlex
import sys

from modeling_cllm4rec.commands.command_line import CommandParser, print_json
from modeling_cllm4rec.commands.model_flags import add_model_arguments
from modeling_cllm4rec.core.console_log import hide_loading_bars, show_log
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.launches import launched_processes
from modeling_cllm4rec.corpora.atomic_files import check_output_folder
from modeling_cllm4rec.corpora.hub_folders import check_data_folder
from modeling_cllm4rec.hub.model_names import check_name

EPILOG = """example:
  cllm4rec evaluate --model runs/mine --data data/mine --split test
  cllm4rec evaluate --model runs/mine-lcrec --data data/mine --split test --test-history train+validation
  cllm4rec evaluate --model runs/mine-lcrec --data data/mine --search --baselines bm25 encoder
  torchrun --nproc_per_node 4 -m modeling_cllm4rec evaluate --model runs/mine --data data/mine

All processes of `torchrun` or `accelerate launch` share the users out; the first prints.

--search asks the queries that are made of held-out reviews (`cllm4rec prepare --held-out-reviews`), one a review, and looks for
the item that was reviewed. Items of the history are left out, for the baselines as well.
"""
FIRST_TEMPLATE = ["0"]


def parser() -> CommandParser:
    """Parse the flags."""
    flags = CommandParser(
        "evaluate",
        description="Rank the whole catalogue for every user of a split and measure what was found, with 95% intervals.",
        epilog=EPILOG,
    )
    add_model_arguments(flags)
    flags.add_argument("--templates", nargs="+", default=FIRST_TEMPLATE, help="LC-Rec: numbers of templates, or all; then means")
    flags.add_argument("--data", required=True, help="data folder that the model was trained on")
    flags.add_argument("--split", choices=["validation", "test"], default="test", help="what is to be predicted (default: test)")
    flags.add_argument(
        "--test-history",
        choices=["train", "train+validation"],
        help="histories that the model is given (default: those of its paper on test: train for CLLM4Rec, train+validation for "
        "LC-Rec; on validation train)",
    )
    flags.add_argument(
        "--mask",
        choices=["train", "train+validation", "none"],
        help="items that may not be recommended (default: those of the given histories)",
    )
    flags.add_argument(
        "--metrics", nargs="+", help="such as recall@20 ndcg@10 mrr@10 coverage@10 (default: those of the model's paper)"
    )
    baselines = flags.add_argument("--baselines", nargs="*", metavar="NAME")
    flags.explain_when_shown(baselines, about_baselines)
    search = flags.add_argument_group("search")
    search.add_argument("--search", action="store_true", help="measure the answers to queries, of a model that reads them")
    search.add_argument("--without-history", action="store_true", help="with --search: give the model the query alone")
    flags.add_argument("--max-users", type=int, help="a fixed random sample of so many users (default: all)")
    flags.add_argument("--seed", type=int, default=0, help="start of the bootstrap's random numbers")
    flags.add_argument("--output", help="folder for the report (default: the model's folder; its card is updated there)")
    flags.add_argument("--json", action="store_true", help="print the reports as JSON, not as a table")
    flags.set_defaults(command=None)
    return flags


def parse(words: list[str]) -> argparse.Namespace:
    """Return the arguments of the words behind the command, with the command line for the card."""
    arguments: argparse.Namespace = parser().parse_args(words)
    arguments.command = shlex.join(["cllm4rec", "evaluate", *words])
    return arguments


def about_baselines() -> str:
    """Return the help of `--baselines`."""
    from modeling_cllm4rec.baselines import BASELINES
    from modeling_cllm4rec.evaluation.search_baselines import ENCODER, SEARCH_BASELINES

    return (
        f"baselines to measure as well: {', '.join(BASELINES)}, sums such as ease+ials, package.module:Class, lists:FILE "
        f"(default: popularity); with --search {', '.join(SEARCH_BASELINES)}, {ENCODER}NAME (default: bm25 tfidf)"
    )


def check_places(arguments: argparse.Namespace) -> None:
    """Check what can be checked before torch and transformers are imported, which takes seconds.

    Raises:
        InputError: flags that do not go together, or an output that is no folder.
        MissingFileError: there is no such data folder or model.
    """
    if arguments.without_history and not arguments.search:
        raise InputError("--without-history is for --search: recommendations need a history; leave it out, or add --search")
    if arguments.output is not None:
        check_output_folder(arguments.output)
    check_data_folder(arguments.data)
    check_name(arguments.model)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    show_log()

    def work() -> None:
        check_places(arguments)
        from modeling_cllm4rec.commands.evaluation_run import in_words, run
        from modeling_cllm4rec.core.processes import joined_processes

        hide_loading_bars()
        with joined_processes():
            reports = run(arguments)
        if launched_processes()[0]:
            return  # the first process prints
        if arguments.json:
            print_json({name: report.to_dict() for name, report in reports.items()})
        else:
            print(in_words(reports))

    return parser().run(arguments, work)
