"""The model card, generated from the records of runs; nothing in it is typed by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers.utils import CONFIG_NAME

from modeling_cllm4rec import __version__
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.core.saved_folder import CURVES_FILE
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.protocol import ALL_SCORED
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.training_curves import RECORD_FILE, keep_curves
from modeling_cllm4rec.hub.machine import peak_device_memory, peak_memory
from modeling_cllm4rec.hub.reproduction import NOT_STATED, backbone_record, changed_arguments, license_header, training_command
from modeling_cllm4rec.systems import SYSTEMS, System, system_of_stages

LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "peft")


def machine() -> str:
    """Describe the machine: processor kind, cores, accelerator."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}"


def training_record(arguments: Any, progress: Any) -> dict[str, Any]:
    """Return the record of a stage: arguments, epochs, seconds, history, versions, machine, backbone.

    `peak_bytes` and `peak_device_bytes` are the most memory that the process held up to here, of several the first one.
    """
    given = dataclasses.asdict(arguments)
    return {
        "arguments": given,
        "changed": changed_arguments(arguments),
        "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "seconds": round(progress.seconds, 3),
        "peak_bytes": peak_memory(),
        "peak_device_bytes": peak_device_memory(),
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "history": progress.history,
        "versions": {"cllm4rec": __version__, **{name: version(name) for name in LIBRARIES}},
        "machine": machine(),
        **({"backbone": backbone_record(given["backbone"])} if given.get("backbone") else {}),
    }


def save_record(folder: Path, stage: str, record: dict[str, Any], earlier: Path | None = None) -> None:
    """Put a stage's record into `training.json`, behind those of earlier stages, and draw their curves.

    Args:
        folder: of the run.
        earlier: folder of what the stage started from; the records there, if there are any, are those of the earlier stages.
    """
    records = {} if earlier is None else read_records(earlier)
    records = records or read_records(folder)
    records[stage] = record
    with atomic_file(folder / RECORD_FILE) as temporary:  # a torn record would stop --resume
        temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")
    keep_curves(folder)


def read_records(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder's `training.json`: stage -> record; empty where there is none."""
    path = folder / RECORD_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def make_card(
    name: str,
    system: System,
    records: dict[str, Any],
    data_info: dict[str, Any],
    reports: Sequence[EvaluationReport] = (),
    curves: bool = False,
) -> str:
    """Return the card's text, YAML header with `model-index` included.

    Args:
        name: the model's name.
        system: the system that it is of.
        records: contents of `training.json`, stage by stage.
        data_info: contents of the data folder's `dataset.json`.
        reports: evaluations of this model.
        curves: show the picture of the training curves, which is in the card's folder.
    """
    backbone = next((record["backbone"] for record in reversed(records.values()) if "backbone" in record), None)
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["recommendation", system.card_tag]}
    header.update(license_header(None if backbone is None else backbone["license"], data_info.get("license")))
    if backbone is not None and not backbone["local"]:
        header["base_model"] = backbone["name"]
    results = [result for report in reports for result in _results(report)]
    if results:
        header = ModelCardData(model_name=name, eval_results=results, **header).to_dict()
    parts = [
        ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {quoted(name)}", "", system.card_about, ""],
        _use_section(system.card_use),
        _data_section(data_info),
        _metrics_section(reports),
        *(_stage_section(stage, record) for stage, record in records.items()),
        ["## Training curves", "", f"![Losses and validation metrics by epoch]({CURVES_FILE})", ""] if curves else [],
        _reproduce_section(records, reports),
        _limits_section(data_info, backbone),
    ]
    return "\n".join(line for part in parts for line in part)


def _results(report: EvaluationReport) -> list[EvalResult]:
    """Return the entries of the `model-index`; a number's interval is among its arguments.

    Numbers of an unusual protocol are excluded. The text of the card shows them with their protocol.
    """
    results: list[EvalResult] = []
    if report.protocol.departures:
        return results
    how = [f"{report.protocol.test_history} histories"]
    how += [report.protocol.decoding] if report.protocol.decoding != ALL_SCORED else []
    for metric, value in report.metrics.items():
        interval = [round(end, 5) for end in report.intervals.get(metric, ())]
        results.append(
            EvalResult(
                task_type="recommendation",
                dataset_type="interactions",
                dataset_name=report.protocol.dataset,
                dataset_split=report.protocol.split,
                metric_type=metric,
                metric_name=f"{metric} ({', '.join(how)})",
                metric_value=round(value, 5),
                metric_args={"interval_95": interval, "bootstrap_resamples": report.n_resamples} if interval else None,
            )
        )
    return results


def _use_section(use: str) -> list[str]:
    return [
        "```python",
        "from transformers import AutoModel",
        "",
        'model = AutoModel.from_pretrained("PATH OR NAME", trust_remote_code=True)  # no flag after `import modeling_cllm4rec`',
        "model.recommend(histories=[[...]], k=10)  # external item ids in, external item ids out",
        "```",
        "",
        "## Intended use",
        "",
        f"To rank the items of its catalogue {use}. It is meant for research and for lists of suggestions that a user "
        "reviews, for users and items like those of its data; not for decisions about users.",
        "",
    ]


def _data_section(data_info: dict[str, Any]) -> list[str]:
    lines = ["## Data", ""]
    for part in ("statistics", "protocol"):
        lines += [f"- {quoted(key)}: {quoted(_short(value))}" for key, value in data_info.get(part, {}).items()]
    for one in data_info.get("sources", []):
        lines.append(f"- source of {quoted(one['table'])}: {quoted(one['file'])}, SHA-256 {quoted(one['sha256'])}")
    return [*lines, ""]


def _metrics_section(reports: Sequence[EvaluationReport]) -> list[str]:
    lines = ["## Metrics", ""]
    for report in reports:
        lines += [report.to_markdown(), ""]
    return lines if reports else [*lines, "Not evaluated yet: run `cllm4rec evaluate`.", ""]


def _stage_section(stage: str, record: dict[str, Any]) -> list[str]:
    lines = [f"## Training: {stage}", ""]
    lines += [f"{record['steps']} optimizer steps, {record['seconds']:.0f} s on {quoted(record['machine'])}.", ""]
    lines += [*fenced("yaml", yaml.safe_dump(record["arguments"], sort_keys=True).strip()), ""]
    lines += [", ".join(f"{quoted(library)} {quoted(number)}" for library, number in record["versions"].items()), ""]
    return lines + [line for note in record.get("notes", []) for line in (quoted(note), "")]


def _reproduce_section(records: dict[str, Any], reports: Sequence[EvaluationReport]) -> list[str]:
    """Return the commands of all stages and evaluations; a record of an earlier version names all of its arguments."""
    commands = [
        training_command(stage, record.get("changed", record["arguments"]), record.get("processes", 1))
        for stage, record in records.items()
    ]
    commands += [report.command for report in reports if report.command is not None]
    if not commands:
        return []
    about = "With the versions above, the same data folder and the same backbone:"
    return ["## Reproduce", "", about, "", *fenced("bash", "\n".join(commands)), ""]


def _limits_section(data_info: dict[str, Any], backbone: dict[str, Any] | None) -> list[str]:
    name = "" if backbone is None else f" ({quoted(backbone['name'])})"
    stated = NOT_STATED if backbone is None or backbone["license"] is None else backbone["license"]
    return [
        "## Limits",
        "",
        "It recommends only items of its catalogue, and reflects the interactions it was trained on, popularity and gaps "
        "included. `users.parquet` holds training histories unless the model was saved with `include_histories=False`.",
        "",
        "## Licences",
        "",
        f"- of the data: {quoted(data_info.get('license', NOT_STATED))}",
        f"- of the backbone{name}: {quoted(stated)}",
        "",
        "They apply to what was learned from data and backbone.",
        "",
    ]


def update_card(folder: Path, data: RecommendationData) -> str:
    """Generate the card of a run's folder from its record and its saved evaluations, and write it.

    Returns:
        The card's text.
    """
    reports = [EvaluationReport.load(report) for report in sorted(folder.glob("evaluation-*.json"), key=lambda file: file.stem)]
    reports.sort(key=lambda report: bool(report.protocol.departures))
    records = read_records(folder)
    config = folder / CONFIG_NAME
    if config.is_file():
        system = SYSTEMS[json.loads(config.read_text(encoding="utf-8"))["model_type"]]
    else:
        system = system_of_stages(records)
    card = make_card(folder.resolve().name, system, records, data.info, reports, (folder / CURVES_FILE).is_file())
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    return card


def give_card(model: RecommenderModel, folder: Path, data: RecommendationData) -> None:
    """Update the card of a run's folder, and set it and the curves on the model that was trained there."""
    model.card = update_card(folder, data)
    curves = folder / CURVES_FILE
    model.training_curves = curves.read_bytes() if curves.is_file() else None


def quoted(value: Any) -> str:
    """Return a value from data or files as Markdown text of one line, in which no HTML, link or picture is read.

    Example:
        >>> quoted("<img src=x> ![a](b)")
        '&lt;img src=x> ![a]\\\\(b)'
    """
    text = " ".join(str(value).split())
    return text.replace("<", "&lt;").replace("](", "]\\(").replace("][", "]\\[")


def fenced(language: str, text: str) -> list[str]:
    """Return a block of code whose fence is longer than any run of backticks in it.

    Example:
        >>> fenced("bash", "ls")
        ['```bash', 'ls', '```']
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.split("\n"), fence]


def _short(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
