"""The command of a training stage, such as `cllm4rec pretrain`: one for all stages of all systems."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_cllm4rec.commands import evaluate
from modeling_cllm4rec.commands.command_line import OK, print_json
from modeling_cllm4rec.commands.stage_arguments import StageParser, parse_arguments
from modeling_cllm4rec.core.console_log import show_log
from modeling_cllm4rec.corpora.hub_folders import check_data_folder
from modeling_cllm4rec.systems import SYSTEMS, Stage, System, resolve
from modeling_cllm4rec.training.arguments import read_yaml

logger = logging.getLogger(__name__)

EPILOG = """example:
  cllm4rec {name} {flags}
  accelerate launch -m modeling_cllm4rec {name} --config my.yaml
  accelerate launch recipes/{file}.py --config my.yaml

A YAML file of --config sets defaults, flags have the last word. Stopped or killed? Run the same command with --resume.
With --json, where it ended is printed as JSON: output, model, finished, step, seconds, and metrics of the epoch that was kept.
"""


def stage_main(stage: Stage, argv: list[str] | None = None) -> int:
    """Run the command of a training stage: parse, train, report.

    Args:
        stage: its row in `systems.SYSTEMS`.
        argv: words behind the command; None reads those of the process.

    Returns:
        0 when the stage ended (or stopped where it was asked to), otherwise as `run_command`.
    """
    words = sys.argv[1:] if argv is None else argv
    show_log()

    parser, system = stage_parser(stage), recommending_system(stage)

    def work() -> None:
        arguments = parse_arguments(resolve(stage.arguments), stage.section, words, parser)
        names: list[str] | None = getattr(parser.parse_known_args(words)[0], "baselines", None)
        if arguments.data:  # before torch is imported, which takes seconds
            check_data_folder(arguments.data)
        if names:
            from modeling_cllm4rec.baselines import members

            for name in names:
                members(name)  # a wrong name is reported before the training
        _, progress = resolve(stage.run)(arguments)
        from accelerate import PartialState

        if not progress.finished:
            print(f"cllm4rec {stage.name}: stopped after step {progress.step}; go on with --resume", file=sys.stderr)
        elif system is not None and names is not None:
            measure(system, arguments, names)
        if "--json" in words and PartialState().is_main_process:
            print_json(outcome(Path(arguments.output), stage.folder, progress))

    return parser.run(argparse.Namespace(debug="--debug" in words), work)


def recommending_system(stage: Stage) -> System | None:
    """Return the system whose finished model a stage makes: it is the last stage, or continues that model; None for another."""
    return next((system for system in SYSTEMS.values() if stage in (system.stages[-1], *system.updates)), None)


def measure(system: System, arguments: Any, names: list[str]) -> None:
    """Evaluate the model of a finished stage and baselines on validation; all processes of a launch must call this.

    The metrics are those of the system's paper that the catalogue is large enough for.

    Args:
        arguments: of the stage.
        names: of the baselines; empty for the usual ones.
    """
    from accelerate import PartialState

    from modeling_cllm4rec.baselines.usual import usual_baselines
    from modeling_cllm4rec.commands.evaluation_run import in_words, run
    from modeling_cllm4rec.core.processes import joined_processes
    from modeling_cllm4rec.corpora.data_folder import RecommendationData
    from modeling_cllm4rec.hub.push import push_run

    data = RecommendationData.load(arguments.data)
    if not len(data.histories("validation").items):
        logger.info("the data has no validation interactions, so the model is not compared with baselines")
        return
    paper: tuple[str, ...] = resolve(system.model).paper_metrics
    metrics = [name for name in paper if int(name.partition("@")[2]) <= data.num_items] or [f"recall@{data.num_items}"]
    words = ["--model", str(arguments.run_folder), "--data", str(arguments.data), "--split", "validation", "--metrics", *metrics]
    evaluation = evaluate.parse([*words, "--baselines", *(names or usual_baselines(data))])
    with joined_processes():
        reports = run(evaluation)
    if PartialState().is_main_process:
        print(in_words(reports), file=sys.stderr)
        if arguments.push_to_hub:  # the card has the baselines now
            name = arguments.hub_model_id or arguments.run_folder.resolve().name
            push_run(arguments.run_folder, name, private=arguments.hub_private_repo)


def stage_parser(stage: Stage) -> StageParser:
    """Return the parser of a stage's flags."""
    parser = StageParser(
        resolve(stage.arguments),
        stage.name,
        description=stage.description,
        epilog=EPILOG.format(name=stage.name, flags=stage.example, file=stage.name.replace("-", "_")),
    )
    parser.add_argument("--json", action="store_true", help="print where the stage ended as JSON")
    if recommending_system(stage) is not None:
        parser.add_argument(
            "--baselines",
            nargs="*",
            metavar="NAME",
            help="at the end, measure the model and these baselines on validation and put them into the card (without names: "
            "popularity, and EASE with item texts up to 20,000 items; default: no evaluation)",
        )
    return parser


def shared_stage_main(stages: Mapping[str, Stage], argv: list[str] | None = None) -> int:
    """Run the command of stages that share a name: the one of the system whose model the command continues.

    The help of all of them is shown where no model is named.

    Args:
        stages: name of a system -> its stage.
        argv: as in `stage_main`.
    """
    words = sys.argv[1:] if argv is None else argv
    system = _system_continued(stages, words)
    if system is None and {"-h", "--help"} & {*words}:
        for stage in stages.values():
            print(stage_parser(stage).format_help())
        return OK
    return stage_main(stages[system or next(iter(stages))], words)  # the stage reports a missing or unknown model


def _system_continued(stages: Mapping[str, Stage], words: Sequence[str]) -> str | None:
    """Return the system of the model that a command continues, None where it names no model of one of the stages."""
    first = next(iter(stages))
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument(f"--{stages[first].previous}", dest="folder")
    flags.add_argument("--config")
    given, _ = flags.parse_known_args(list(words))
    folder = given.folder
    if folder is None and given.config is not None:
        content = read_yaml(given.config)
        sections = [content, *(content.get(stage.section) for stage in stages.values())]
        places = [one[stages[first].previous] for one in sections if isinstance(one, dict) and stages[first].previous in one]
        folder = next(iter(places), None)
    config = Path(str(folder or "")) / "config.json"
    if not config.is_file():
        return None
    try:
        system = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (AttributeError, ValueError):
        return None
    return system if system in stages else None


def outcome(output: Path, folder: str, progress: Any) -> dict[str, Any]:
    """Where a stage ended, for machines; `model` is None where it was stopped before it had saved one."""
    kept = progress.history[progress.best_epoch] if progress.history else {}  # the last one where none was chosen
    return {
        "output": str(output),
        "model": str(output / folder) if progress.finished else None,
        "finished": progress.finished,
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "metrics": kept,
    }
