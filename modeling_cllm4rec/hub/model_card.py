"""The model card, generated from what was really run; nothing in it is typed by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from modeling_cllm4rec import __version__
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.report import EvaluationReport

RECORD_FILE = "training.json"
SYSTEMS = {
    "cllm4rec": (
        "cllm4rec",
        "A CLLM4Rec recommender ([arXiv 2311.01343](https://arxiv.org/abs/2311.01343)): a causal language model with a token for "
        "each user and each item; one forward pass scores the whole catalogue.",
    ),
    "lcrec": (
        "lc-rec",
        "An LC-Rec recommender ([arXiv 2311.09049](https://arxiv.org/abs/2311.09049)): a causal language model that writes the "
        "semantic index of the next item, by a search that can only end at real items.",
    ),
}
"""Tag and first sentence of the card."""
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "peft")


def machine() -> str:
    """The machine in words: processor kind, cores, accelerator."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}"


def training_record(arguments: Any, progress: Any) -> dict[str, Any]:
    """What a stage was asked to do and what came out: arguments, epochs, seconds, validation history, versions, machine."""
    return {
        "arguments": dataclasses.asdict(arguments),
        "seconds": round(progress.seconds, 3),
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "history": progress.history,
        "versions": {"cllm4rec": __version__, **{name: version(name) for name in LIBRARIES}},
        "machine": machine(),
    }


def save_record(folder: Path, stage: str, record: dict[str, Any]) -> None:
    """Put a stage's record into `training.json`, beside those of earlier stages."""
    path = folder / RECORD_FILE
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    records[stage] = record
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")


def make_card(
    name: str,
    records: dict[str, Any],
    data_info: dict[str, Any],
    reports: Sequence[EvaluationReport] = (),
) -> str:
    """The card's text, YAML header with `model-index` included.

    Args:
        name: the model's name.
        records: contents of `training.json`, stage by stage.
        data_info: contents of the data folder's `dataset.json`.
        reports: evaluations of this model.
    """
    tag, about = SYSTEMS["lcrec" if "align" in records else "cllm4rec"]
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["recommendation", tag]}
    if reports:
        results = [
            EvalResult(
                task_type="recommendation",
                dataset_type="interactions",
                dataset_name=report.protocol.dataset,
                dataset_split=report.protocol.split,
                metric_type=metric,
                metric_name=f"{metric} ({report.protocol.test_history} histories)",
                metric_value=round(value, 5),
            )
            for report in reports
            for metric, value in report.metrics.items()
        ]
        header = ModelCardData(model_name=name, eval_results=results, **header).to_dict()
    lines = ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {name}", ""]
    lines += [
        about,
        "",
        "```python",
        "from transformers import AutoModel",
        "",
        'model = AutoModel.from_pretrained("PATH OR NAME", trust_remote_code=True)  # no flag after `import modeling_cllm4rec`',
        "model.recommend(histories=[[...]], k=10)  # external item ids in, external item ids out",
        "```",
        "",
        "## Data",
        "",
    ]
    lines += [f"- {key}: {_short(value)}" for key, value in data_info.get("statistics", {}).items()]
    lines += [f"- {key}: {_short(value)}" for key, value in data_info.get("protocol", {}).items()]
    lines += ["", "## Metrics", ""]
    for report in reports:
        lines += [report.to_markdown(), ""]
    if not reports:
        lines += ["Not evaluated yet: run `cllm4rec evaluate`.", ""]
    for stage, record in records.items():
        lines += [f"## Training: {stage}", ""]
        lines += [f"{record['steps']} optimizer steps, {record['seconds']:.0f} s on {record['machine']}.", "", "```yaml"]
        lines += [yaml.safe_dump(record["arguments"], sort_keys=True).strip(), "```", ""]
        lines += [", ".join(f"{library} {number}" for library, number in record["versions"].items()), ""]
        lines += [line for note in record.get("notes", []) for line in (note, "")]
    lines += [
        "## Limits",
        "",
        "It recommends only items of its catalogue, and reflects the interactions it was trained on, popularity and gaps "
        "included. `users.parquet` holds training histories unless the model was saved with `include_histories=False`. "
        "The licences of the data and of the backbone apply to what was learned from them.",
        "",
    ]
    return "\n".join(lines)


def update_card(folder: Path, data: RecommendationData) -> str:
    """Generate the card of a run's folder from its record and its saved evaluations, and write it.

    Returns:
        The card's text.
    """
    path = folder / RECORD_FILE
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    reports = [EvaluationReport.load(report) for report in sorted(folder.glob("evaluation-*.json"))]
    card = make_card(folder.resolve().name, records, data.info, reports)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def _short(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
