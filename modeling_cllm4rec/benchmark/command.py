"""`cllm4rec benchmark`: comparisons of models and baselines, ablations of recipes, and a page of results."""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from modeling_cllm4rec.benchmark import budgets
from modeling_cllm4rec.benchmark.ablation import make_variant_jobs, variant_names
from modeling_cllm4rec.benchmark.jobs import (
    CONFIG_FILE,
    FOLDERS,
    BenchmarkConfig,
    Job,
    UserGroup,
    claim,
    make_config,
    selection_of,
    shown,
)
from modeling_cllm4rec.benchmark.models import make_jobs, model_names
from modeling_cllm4rec.benchmark.page import write_page
from modeling_cllm4rec.benchmark.plots import check_plots
from modeling_cllm4rec.benchmark.recipes import read_one_recipe, read_recipes
from modeling_cllm4rec.benchmark.report import REPORT_FILE, RESULTS_FILE, write_report
from modeling_cllm4rec.benchmark.runner import DataFolders, run_jobs
from modeling_cllm4rec.benchmark.strong_generalization import hold_out_users, sample_users
from modeling_cllm4rec.commands.command_line import CommandParser, print_json
from modeling_cllm4rec.core.console_log import show_log
from modeling_cllm4rec.core.errors import ExistingFileError, InputError, RunError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.training.arguments import CONFIGS

logger = logging.getLogger(__name__)

PROGRAM = "cllm4rec benchmark"
QUALITY = """example:
  {program} quality --data data/beauty --models popularity,itemknn,ease,cllm4rec=runs/beauty --output reports/beauty
  {program} quality --data data/beauty --config benchmark.yaml --models ease,sasrec,cllm4rec --seeds 5 --hold-out-users 0.1
  {program} quality --data data/beauty --config beauty_benchmark.yaml --models ease+textknn,cllm4rec,cllm4rec+ease+textknn
"""
ABLATION = """example:
  {program} ablation --data data/beauty --config recipes/configs/beauty_pretrained.yaml --variants LLM-CF,LLM-FixOrd --seeds 3
  {program} ablation --data data/scientific --config recipes/configs/scientific_benchmark.yaml --train-users 4000
"""
REPORT = """example:
  {program} report --reports reports/* --output docs/results.md --readme README.md
"""
PASSED_ON = (
    *("data", "config", "backbone", "metrics", "test_history", "mask_validation", "sampled_negatives", "hold_out_users"),
    *("tune", "tune_metric", "epochs_share", "max_users", "train_users"),
)
"""Flags that change numbers, which are part of the command line of a row."""


def add_commands(commands: Any, program: str = PROGRAM, default_config: Path | None = None) -> None:
    """Add `quality`, `ablation` and `report` to a parser's subcommands.

    Args:
        commands: result of `ArgumentParser.add_subparsers`.
        program: name of the program in the examples.
        default_config: YAML file of `quality` if none is named.
    """
    shape: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    quality = commands.add_parser(
        "quality", help="models and baselines, with intervals and verdicts", epilog=QUALITY.format(program=program), **shape
    )
    models = (
        f"{', '.join(model_names())}; ease+ials for a sum; cllm4rec+ease for a hybrid; package.module:Class; lists:FILE; "
        "name=folder for a trained model; several are joined by commas without spaces"
    )
    quality.add_argument("--models", required=True, type=_list, help=models)
    settings = "YAML: settings of baselines, recipes of systems (default: benchmark.yaml; its recipes were chosen on other data)"
    quality.add_argument("--config", type=Path, default=default_config, help=settings)
    quality.add_argument("--tune", type=int, default=0, help="trials of the search for each baseline's settings, on validation")
    quality.add_argument("--tune-metric", help="what the search maximizes (default: the first metric)")
    quality.add_argument("--hold-out-users", type=float, default=0.0, help="share of users held out of training")
    _add_shared(quality)
    ablation = commands.add_parser(
        "ablation", help="the papers' variants as switches of one recipe", epilog=ABLATION.format(program=program), **shape
    )
    ablation.add_argument(
        "--config", required=True, type=Path, help="the recipe: YAML file of pretraining and finetuning, or with one system's key"
    )
    variants = "; ".join(f"of {title} some of {','.join(names)}" for title, names in variant_names().items())
    variants = f"{variants} (default: all)"
    ablation.add_argument("--variants", type=_list, help=variants)
    _add_shared(ablation)
    for parser in (quality, ablation):
        parser.set_defaults(program=program, default_config=default_config)
    report = commands.add_parser(
        "report", help="one page of documentation from report folders", epilog=REPORT.format(program=program), **shape
    )
    report.add_argument("--reports", required=True, nargs="+", type=Path, help="report folders")
    report.add_argument("--output", required=True, type=Path, help="the page, a Markdown file; a generated one is replaced")
    report.add_argument("--readme", type=Path, help="another page: the text between the marks of the head is replaced there")
    report.add_argument("--resamples", type=int, default=1000, help="resamples of the bootstrap")
    report.add_argument("--no-plots", action="store_true", help="draw no plots (they need matplotlib)")


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, type=Path, help="prepared data folder")
    parser.add_argument("--output", type=Path, help="report folder (default: reports/NAME of the data)")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=int, default=1, help="number of seeds, 1, 2, ...; deterministic models run once")
    seeds.add_argument("--seed", type=int, nargs="+", help="the seeds themselves")
    parser.add_argument("--backbone", help="language model in place of the recipe's")
    parser.add_argument("--epochs-share", type=float, default=1.0, help="train language models for this share of their epochs")
    parser.add_argument("--metrics", nargs="+", help="such as recall@20 ndcg@10; the first is that of slices and costs")
    parser.add_argument(
        "--test-history",
        choices=["train", "train+validation", "both"],
        help="histories that models are given (default: train, of data split by time train+validation)",
    )
    parser.add_argument(
        "--mask-validation", choices=["no", "yes", "both"], default="no", help="mask validation items that are not given"
    )
    parser.add_argument(
        "--sampled-negatives",
        type=int,
        default=0,
        help="also rank the true items among this many random items; labelled as sampled",
    )
    parser.add_argument("--max-users", type=int, help="evaluate a fixed random sample of this many users (default: all)")
    parser.add_argument(
        "--train-users", type=int, help="train and evaluate on a fixed random sample of this many users (default: all)"
    )
    parser.add_argument("--batch-size", type=int, default=256, help="users per batch")
    parser.add_argument("--resamples", type=int, default=1000, help="resamples of the bootstrap")
    parser.add_argument("--no-plots", action="store_true", help="draw no plots (they need matplotlib)")
    parser.add_argument("--json", action="store_true", help="print the paths of the report and the numbers as JSON")
    parser.add_argument("--keep-models", action="store_true", help="keep trained language models in OUTPUT/runs")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier report in output")


def run(arguments: argparse.Namespace) -> None:
    """Run a parsed command and print the report.

    Raises:
        RunError: a job failed; the report is written before.
    """
    if arguments.command == "report":
        write_page(arguments.reports, arguments.output, arguments.resamples, arguments.readme, not arguments.no_plots)
        print(f"page: {arguments.output}")
        return
    if not arguments.no_plots:
        check_plots()
    for name in ("seeds", "batch_size", "resamples"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name} is {getattr(arguments, name)}; it must be 1 or more")
    data = RecommendationData.load(arguments.data)
    if arguments.train_users is not None:
        data = sample_users(data, arguments.train_users)
    jobs, config = plan(arguments, data)
    output = arguments.output or Path("reports") / data.folder.resolve().name
    if arguments.overwrite:
        throw_away(output)
    claim(output, config)
    if arguments.train_users is not None:
        data = data.save(output / "data" / data.folder.name, overwrite=True)
    for model, chosen in {job.model: job.chosen for job in jobs}.items():
        logger.info("%s: settings: %s", model, "tuned by a search" if budgets.DEFAULTS in chosen and config.tune else chosen)
    folders: dict[UserGroup, DataFolders] = {"everyone": DataFolders(data.folder, data.folder)}
    if config.hold_out_users:
        known, unseen = hold_out_users(data, config.hold_out_users, output / "data")
        folders["unseen-people"] = DataFolders(known.folder, unseen.folder)
    failed = run_jobs(jobs, config, output, folders, batch_size=arguments.batch_size, keep_models=arguments.keep_models)
    report = write_report(output, arguments.resamples, not arguments.no_plots)
    if arguments.json:
        files = {"report": str(output / REPORT_FILE), "results": str(output / RESULTS_FILE)}
        print_json({**files, "jobs": len(jobs), "failed": len(failed)})
    else:
        print(report)
        print(f"report: {output / REPORT_FILE}")
    if failed:
        first, why = next(iter(failed.items()))
        raise RunError(
            f"{len(failed)} of {len(jobs)} jobs failed, {'' if len(failed) == 1 else 'the first is '}{first}: {why}; the same "
            "command tries them again"
        )


def plan(arguments: argparse.Namespace, data: RecommendationData) -> tuple[list[Job], BenchmarkConfig]:
    """Return the jobs and the configuration of the flags; all errors in them are raised here, before anything runs."""
    seeds = arguments.seed or list(range(1, arguments.seeds + 1))
    shared: dict[str, Any] = {
        "backbone": arguments.backbone,
        "epochs_share": arguments.epochs_share,
        "command": command_line(arguments),
    }
    measured: dict[str, Any] = {
        "metrics": tuple(arguments.metrics) if arguments.metrics else None,
        **{name: getattr(arguments, name) for name in ("test_history", "mask_validation", "sampled_negatives")},
        **{name: getattr(arguments, name) for name in ("max_users", "epochs_share")},
    }
    if arguments.command == "ablation":
        measured["kind"] = "ablation"
        config = make_config(data, **measured)
        system, read = read_one_recipe(arguments.config)
        jobs, recipe = make_variant_jobs(read, arguments.variants, seeds, name=system, **shared)
        return jobs, make_config(data, **measured, **recipe)
    searched = {name: getattr(arguments, name) for name in ("tune", "tune_metric", "hold_out_users")}
    config = make_config(data, **measured, **searched)
    shared |= {"hold_out": bool(config.hold_out_users), "selection": selection_of(config.metrics)}
    return make_jobs(arguments.models, seeds, read_recipes(arguments.config), **shared), config


def command_line(arguments: argparse.Namespace) -> str:
    """Return the command line as far as it changes numbers, without models, variants, seeds and paths of this machine.

    Its output is another folder, so that no result of the checked report is reused.
    """
    words = [arguments.command]
    for name in PASSED_ON:
        value = getattr(arguments, name, None)
        plain = {"epochs_share": 1.0, "mask_validation": "no", "config": arguments.default_config}
        if value in (None, 0, plain.get(name)):
            continue
        flag = "--" + name.replace("_", "-")
        parts = value if isinstance(value, list) else [shown(value) if name in ("data", "config", "backbone") else value]
        words += [flag, *map(str, parts)]
    return f"{arguments.program} {shlex.join([*words, '--output', 'reports/again'])}"


def throw_away(output: Path) -> None:
    """Delete the files of a report folder, and nothing else.

    Raises:
        ExistingFileError: the folder is no report folder.
    """
    if not output.exists():
        return
    if not (output / CONFIG_FILE).is_file():
        raise ExistingFileError(f"output: {output} is no report folder, so it is never replaced; choose another output")
    for name in FOLDERS:
        shutil.rmtree(output / name, ignore_errors=True)
    for name in (CONFIG_FILE, REPORT_FILE, RESULTS_FILE):
        (output / name).unlink(missing_ok=True)


def _list(words: str) -> list[str]:
    return [word for word in words.split(",") if word]


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    epilog = f"{QUALITY.format(program=PROGRAM)}\n`{PROGRAM} quality --help` shows the flags of one of them."
    shape: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    flags = CommandParser(prog=PROGRAM, description=__doc__, epilog=epilog, **shape)
    add_commands(flags.add_subparsers(dest="command", required=True), default_config=CONFIGS / "benchmark.yaml")
    arguments = flags.parse_args(argv)
    show_log()
    return flags.run(arguments, lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
