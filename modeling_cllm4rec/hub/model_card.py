"""The model card, generated from the records of runs; nothing in it is typed by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers.utils import CONFIG_NAME

from modeling_cllm4rec import __version__
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.json_objects import read_json
from modeling_cllm4rec.core.linear_parts import LINEAR_PARTS_FILE, LinearParts
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.core.saved_folder import CARD_FILE, COMPARISON_FILE, CURVES_FILE, DATA_CARD_FILE
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.corpora.data_folder import README, RecommendationData
from modeling_cllm4rec.corpora.hub_folders import is_hub_name, repository_of
from modeling_cllm4rec.evaluation.comparison_plot import keep_comparison
from modeling_cllm4rec.evaluation.protocol import ALL_SCORED
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.training_curves import RECORD_FILE, keep_curves
from modeling_cllm4rec.hub import card_sections
from modeling_cllm4rec.hub.card_examples import load_examples, recommend_examples, save_examples
from modeling_cllm4rec.hub.machine import peak_device_memory, peak_memory
from modeling_cllm4rec.hub.reproduction import backbone_record, changed_arguments, license_header
from modeling_cllm4rec.systems import SYSTEMS, System, system_of_stages

LIBRARY = "cllm4rec"
"""Name of this package in the Hub's list of libraries; see docs/hub-registration.md."""
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "peft")


CARD_FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "steps": (int, "a whole number"),
    "seconds": ((int, float), "a number"),
    "machine": (str, "a text"),
    "versions": (dict, "the versions of libraries"),
}
"""Fields of a stage's record that a card shows: type, and what it is in words."""


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
    """Return the contents of a folder's `training.json`: stage -> record; empty where there is none.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    records = read_json(path, "delete it: the model stays as it is, and its card goes without these records")
    for stage, record in records.items():
        if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict):
            raise InputError(f"{path}: {stage!r} is no record of a stage with its arguments; delete the file")
    return records


def _check_shown(path: Path, records: Mapping[str, Any]) -> None:
    """Raise InputError if a record lacks what a card shows of it."""
    for stage, record in records.items():
        for field, (kind, words) in CARD_FIELDS.items():
            value = record.get(field)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise InputError(f"{path}: {field} of {stage!r} is {str(value)[:50]!r}; it must be {words}; delete the file")


def make_card(
    name: str,
    system: System,
    records: dict[str, Any],
    data_info: dict[str, Any],
    reports: Sequence[EvaluationReport] = (),
    *,
    repository: str | None = None,
    examples: Mapping[str, Any] | None = None,
    curves: bool = False,
    comparison: bool = False,
    data_card: bool = False,
    scoring: Sequence[str] = (),
) -> str:
    """Return the card's text, YAML header with `model-index` included.

    Args:
        name: the model's name.
        system: the system that it is of.
        records: contents of `training.json`, stage by stage.
        data_info: contents of the data folder's `dataset.json`.
        reports: evaluations of this model.
        repository: dataset repository of the data folder on the Hub; None for that which the records name, if they name one.
        examples: see `card_examples.recommend_examples`.
        curves, comparison: show the picture of the training curves, and that of baselines, which are in the card's folder.
        data_card: link the card of the data, which is in the card's folder.
        scoring: lines that say how the model finds items, see `card_sections.scoring_section`.
    """
    backbone = next((record["backbone"] for record in reversed(records.values()) if "backbone" in record), None)
    repository = repository or _trained_on(records)
    header = _header(system, records, backbone, data_info, repository, reports)
    results = [result for report in reports for result in _results(report)]
    if results:
        header = ModelCardData(model_name=name, eval_results=results, **header).to_dict()
    sections = [
        ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {card_sections.quoted(name)}", ""],
        [system.card_about, "", *scoring],
        card_sections.use_section(name, system, examples or {}, card_sections.trained_on_queries(system, records)),
        card_sections.examples_section(examples or {}),
        card_sections.metrics_section(reports, comparison),
        card_sections.data_section(data_info, repository, data_card),
        *(card_sections.stage_section(stage, record) for stage, record in records.items()),
        card_sections.curves_section() if curves else [],
        card_sections.reproduce_section(records, reports),
        card_sections.limits_section(data_info, backbone),
        card_sections.citation_section(system),
    ]
    return "\n".join(line for section in sections for line in section)


def _header(
    system: System,
    records: Mapping[str, Any],
    backbone: Mapping[str, Any] | None,
    data_info: Mapping[str, Any],
    repository: str | None,
    reports: Sequence[EvaluationReport],
) -> dict[str, Any]:
    """Return the fields of the YAML header, by the Hub's names, but for the `model-index`."""
    header: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": system.pipeline_tag}
    header["tags"] = ["recommendation", system.card_tag, "transformers"]
    header.update(license_header(None if backbone is None else backbone["license"], data_info.get("license")))
    if languages := data_info.get("language") or (backbone or {}).get("language"):
        header["language"] = list(languages)
    drawn = any(record["arguments"].get("backbone_weights") == "random" for record in records.values())
    if backbone is not None and not backbone["local"] and not drawn:
        header |= {"base_model": backbone["name"], "base_model_relation": "finetune"}
    if repository is not None:
        header["datasets"] = [repository]
    if metrics := dict.fromkeys(metric for report in reports if not report.protocol.departures for metric in report.metrics):
        header["metrics"] = list(metrics)
    return header


def _trained_on(records: Mapping[str, Any]) -> str | None:
    """Return the dataset repository that the last stage was trained on, None for a local folder."""
    places = [record["arguments"].get("data") for record in records.values()]
    return repository_of(places[-1])[0] if places and places[-1] is not None and is_hub_name(places[-1]) else None


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


def saved_reports(folder: Path) -> list[EvaluationReport]:
    """Return the evaluations in a run's folder, those of an unusual protocol last."""
    reports = [EvaluationReport.load(report) for report in sorted(folder.glob("evaluation-*.json"), key=lambda file: file.stem)]
    return sorted(reports, key=lambda report: bool(report.protocol.departures))


def update_card(folder: Path, data: RecommendationData, model: RecommenderModel | None = None) -> str:
    """Generate the card of a run's folder from its record and its saved evaluations, and write it, with the card of its data.

    Args:
        folder: of the run.
        data: the data folder.
        model: the model of the run, which recommends new examples; None keeps those that the run has.

    Returns:
        The card's text.

    Raises:
        InputError: a record, an evaluation or the examples are damaged.
    """
    if model is not None:
        save_examples(folder, recommend_examples(model, data))
    records = read_records(folder)
    _check_shown(folder / RECORD_FILE, records)
    config = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else {}
    system = SYSTEMS[config["model_type"]] if config else system_of_stages(records)
    linear = LinearParts.load(folder / LINEAR_PARTS_FILE).weights if (folder / LINEAR_PARTS_FILE).is_file() else {}
    data_card = data.folder / README
    if data_card.is_file():
        _write(folder / DATA_CARD_FILE, data_card.read_text(encoding="utf-8"))
    reports = saved_reports(folder)
    keep_comparison(folder, system.title, reports)
    card = make_card(
        folder.resolve().name,
        system,
        records,
        data.info,
        reports,
        repository=data.repository,
        examples=load_examples(folder),
        curves=(folder / CURVES_FILE).is_file(),
        comparison=(folder / COMPARISON_FILE).is_file(),
        data_card=(folder / DATA_CARD_FILE).is_file(),
        scoring=card_sections.scoring_section(config, linear),
    )
    _write(folder / CARD_FILE, card)
    return card


def give_card(model: RecommenderModel, folder: Path, data: RecommendationData) -> None:
    """Update the card of a run's folder, and set it, the curves and the card of the data on the model of the run."""
    model.card = update_card(folder, data, model)
    for name, file in (("training_curves", CURVES_FILE), ("comparison", COMPARISON_FILE)):
        setattr(model, name, (folder / file).read_bytes() if (folder / file).is_file() else None)
    data_card = folder / DATA_CARD_FILE
    model.data_card = data_card.read_text(encoding="utf-8") if data_card.is_file() else None


def save_evaluation(folder: Path, name: str, report: EvaluationReport, data: RecommendationData, model: RecommenderModel) -> None:
    """Save an evaluation in a run's folder, and renew the card there and of the model.

    Args:
        folder: of the run.
        name: of the report's files, beginning with `evaluation-`.
        report: with the baselines of the same run, see `verdicts.compare`.
        data: the data folder.
        model: the model that was evaluated.
    """
    report.save(folder / f"{name}.json", overwrite=True)
    report.save_per_user(folder / f"{name}.parquet", overwrite=True)
    give_card(model, folder, data)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
