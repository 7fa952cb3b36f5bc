"""`cllm4rec evaluate`: rank the whole catalogue for every user of a split and measure what was found."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from modeling_cllm4rec.baselines import BASELINES, fit_baseline
from modeling_cllm4rec.commands.command_line import CommandParser, print_json
from modeling_cllm4rec.commands.model_flags import add_model_arguments, batch_size, placement, refuse_search, search_settings
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.processes import joined_processes, launched_processes, process_number
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.atomic_files import check_output_folder
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.id_checks import check_same_ids
from modeling_cllm4rec.evaluation.evaluator import EvaluationReport, comparison_table, evaluate
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.searching import evaluate_templates
from modeling_cllm4rec.evaluation.verdicts import verdicts
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.hub.model_card import update_card
from modeling_cllm4rec.systems import system_of

EPILOG = """example:
  cllm4rec evaluate --model runs/mine --data data/mine --split test
  cllm4rec evaluate --model runs/mine-lcrec --data data/mine --split test --test-history train+validation
  torchrun --nproc_per_node 4 -m modeling_cllm4rec evaluate --model runs/mine --data data/mine

All processes of `torchrun` or `accelerate launch` share the users out; the first prints.
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
        default="train",
        help="histories that the model is given (default: train, as the released code of CLLM4Rec)",
    )
    flags.add_argument(
        "--mask",
        choices=["train", "train+validation", "none"],
        help="items that may not be recommended (default: those of the given histories)",
    )
    flags.add_argument(
        "--metrics", nargs="+", help="such as recall@20 ndcg@10 mrr@10 coverage@10 (default: those of the model's paper)"
    )
    flags.add_argument(
        "--baselines",
        nargs="*",
        default=["popularity"],
        metavar="NAME",
        help=f"baselines to measure as well: {', '.join(BASELINES)}, sums such as ease+ials, package.module:Class, lists:FILE",
    )
    flags.add_argument("--max-users", type=int, help="a fixed random sample of so many users (default: all)")
    flags.add_argument("--seed", type=int, default=0, help="start of the bootstrap's random numbers")
    flags.add_argument("--output", help="folder for the report (default: the model's folder; its card is updated there)")
    flags.add_argument("--json", action="store_true", help="print the reports as JSON, not as a table")
    flags.set_defaults(command=None)
    return flags


def run(arguments: argparse.Namespace) -> dict[str, EvaluationReport]:
    """Evaluate model and baselines; save the model's report and renew its card."""
    if arguments.output is not None:
        check_output_folder(arguments.output)
    data = RecommendationData.load(arguments.data)
    model = load_recommender(arguments.model, **placement(arguments))
    check_same_ids(model, data, arguments.model)
    search = search_settings(arguments, model)
    searches, title = not model.scores_catalogue, system_of(model).title
    if arguments.templates != FIRST_TEMPLATE and not searches:
        refuse_search(["templates"], arguments.model)
    shared: dict[str, Any] = {
        "test_history": arguments.test_history,
        "mask": arguments.mask,
        "metrics": arguments.metrics or model.paper_metrics,
        "seed": arguments.seed,
        "max_users": arguments.max_users,
        "batch_size": batch_size(arguments, model),
        "slice_by": data.histories("train"),
        "distributed": True,
        "progress": process_number() == 0,
    }
    recommenders = {name: fit_baseline(name, data, seed=arguments.seed) for name in arguments.baselines}
    if not searches:
        recommenders[title] = model
    reports = {name: evaluate(one, data, arguments.split, **shared) for name, one in recommenders.items()}
    if searches:
        templates = template_numbers(arguments.templates, model)
        reports[title] = evaluate_templates(model, data, arguments.split, templates, search, **shared)
    if process_number() == 0 and (arguments.output is not None or Path(arguments.model).is_dir()):
        report = reports[title]
        save(report, report_name(report.protocol, arguments, search, model.config), arguments, data)
    return reports


def report_name(protocol: Protocol, arguments: argparse.Namespace, search: dict[str, Any], config: Any) -> str:
    """Return the name of the report's files: the evaluated data, and all settings that differ from the defaults.

    So a quick look at five users does not replace what was measured on all.
    """
    parts = [f"{protocol.split} given {protocol.test_history}", *protocol.departures]
    if "num_beams" in search and search["num_beams"] != config.search_beams:
        parts.append(f"{search['num_beams']} beams")
    if search.get("scoring") == "all":
        parts.append("all scored")
    if arguments.templates != FIRST_TEMPLATE:
        parts.append(f"templates {' '.join(arguments.templates)}")
    return "-".join(["evaluation", *parts]).replace(" ", "-").replace("+", "-")


def template_numbers(words: list[str], model: RecommenderModel) -> list[int]:
    """Return the prompt templates of `--templates`.

    Raises:
        InputError: a word that is neither a number nor `all`.
    """
    if words == ["all"]:
        return list(range(len(model.config.recommendation_prompts or [])))
    wrong = [word for word in words if not word.isdecimal()]
    if wrong:
        raise InputError(f"--templates: {wrong[0]!r} is no number; give numbers from 0 on, or all")
    return [int(word) for word in words]


def save(report: EvaluationReport, name: str, arguments: argparse.Namespace, data: RecommendationData) -> None:
    """Write the model's report; if it is in the model's folder, also update the card."""
    folder = Path(arguments.output or arguments.model)
    folder.mkdir(parents=True, exist_ok=True)
    report.command = arguments.command
    report.save(folder / f"{name}.json", overwrite=True)
    report.save_per_user(folder / f"{name}.parquet", overwrite=True)
    if arguments.output is None:
        update_card(folder, data)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    arguments.command = shlex.join(["cllm4rec", "evaluate", *(sys.argv[1:] if argv is None else argv)])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def work() -> None:
        with joined_processes():
            reports = run(arguments)
        if launched_processes()[0]:
            return  # the first process prints
        if arguments.json:
            print_json({name: report.to_dict() for name, report in reports.items()})
        else:
            title = next(reversed(reports))  # the model is measured last
            print(comparison_table(reports))
            print("\n".join(["", *verdicts(reports, title, [name for name in reports if name != title])]))

    return flags.run(arguments, work)
