"""The sections of a model card: lines of Markdown from records, reports and examples."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from modeling_cllm4rec.core.saved_folder import COMPARISON_FILE, CURVES_FILE, DATA_CARD_FILE, named_model
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.verdicts import plain_sentence
from modeling_cllm4rec.hub.reproduction import NOT_STATED, training_command
from modeling_cllm4rec.systems import System

LONGEST_TITLE = 60
"""Letters of a title in a table."""


def scoring_section(config: Mapping[str, Any], linear_weights: Mapping[str, float]) -> list[str]:
    """Return how the model of a folder finds items, where that differs from the first sentence of its system.

    Args:
        config: contents of `config.json`.
        linear_weights: name -> weight of the linear models of a hybrid.

    Example:
        >>> scoring_section({"scoring": "beam"}, {})
        []
    """
    lines = []
    if config.get("scoring") == "head":
        lines += ["It recommends by its item head, which scores all items at once; the search is for queries.", ""]
    if linear_weights:
        parts = ", ".join(f"{quoted(name)} ({weight:g})" for name, weight in linear_weights.items())
        about = f"It is a hybrid: scores of linear models are added to those of the language model, with the weights {parts}; "
        lines += [f"{about}the language model has 1. All are standardized over the catalogue first.", ""]
    return lines


def trained_on_queries(system: System, records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a model was trained to answer queries, as far as its records say; True of a system without queries."""
    if not system.query_task:
        return True
    tasks = [str(task) for record in records.values() for task in record["arguments"].get("tasks") or []]
    return not tasks or any(task.partition("=")[0] == system.query_task for task in tasks)


def use_section(name: str, system: System, examples: Mapping[str, Any], queries: bool = True) -> list[str]:
    """Return an example that runs, with ids of the catalogue, and the intended use.

    Args:
        queries: whether the model was trained to answer queries, if its system can.
    """
    histories = [[one["item"] for one in row["history"]] for row in examples.get("histories", [])]
    use = system.card_use if queries else system.card_use_untrained
    asked = repr(histories[1:2]) if histories else "[[...]]"
    code = [
        "import modeling_cllm4rec  # the package cllm4rec; where it is not installed, pass trust_remote_code=True below",
        "from transformers import AutoModel",
        "",
        named_model(name),
        "model = AutoModel.from_pretrained(name)",
        f"print(model.recommend(histories={asked}, k=5).to_pandas())  # item ids in, item ids out",
    ]
    if examples.get("query") and queries:
        code.append(f"print(model.search([{examples['query']!r}], k=5).to_pandas())")
    return [
        *fenced("python", "\n".join(code)),
        "",
        "## Intended use",
        "",
        f"To rank the items of its catalogue {use}. It is meant for research and for lists of suggestions that a "
        "user reviews, for users and items like those of its data; not for decisions about users.",
        "",
    ]


def examples_section(examples: Mapping[str, Any]) -> list[str]:
    """Return the table of sample recommendations; none without examples."""
    rows: Sequence[Mapping[str, Any]] = examples.get("histories", [])
    if not rows:
        return []
    heads = ["rank", *("after " + "; ".join(_item_cell(item) for item in row["history"]) for row in rows)]
    lines = ["## Sample recommendations", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for rank in range(max(len(row["recommended"]) for row in rows)):
        cells = [_item_cell(row["recommended"][rank]) if rank < len(row["recommended"]) else "" for row in rows]
        lines.append(f"| {' | '.join([str(rank + 1), *cells])} |")
    return [*lines, "", "The histories are made of popular items; they are none of a real user.", ""]


def data_section(data_info: Mapping[str, Any], repository: str | None, data_card: bool) -> list[str]:
    """Return the statistics, protocol and sources of the data."""
    lines = ["## Data", ""]
    if repository is not None:
        lines.append(f"- data folder: [{quoted(repository)}](https://huggingface.co/datasets/{quoted(repository)})")
    for part in ("statistics", "protocol"):
        said = {key: value for key, value in data_info.get(part, {}).items() if value is not None}
        lines += [f"- {quoted(key).replace('_', ' ')}: {quoted(_short(value))}" for key, value in said.items()]
    for one in data_info.get("sources", []):
        lines.append(f"- source of {quoted(one['table'])}: {quoted(one['file'])}, SHA-256 {quoted(one['sha256'])}")
    return [*lines, *(["", f"Columns and use of the tables: [{DATA_CARD_FILE}]({DATA_CARD_FILE})."] if data_card else []), ""]


def metrics_section(reports: Sequence[EvaluationReport], comparison: bool = False) -> list[str]:
    """Return the evaluations: the baselines of the same run next to the model, a plain sentence, the slices folded.

    Args:
        comparison: show the picture of the model next to baselines, which is in the card's folder.
    """
    lines = ["## Metrics", ""]
    if comparison:
        lines += [f"![Metrics of the model and of baselines, with 95% intervals]({COMPARISON_FILE})", ""]
    for report in reports:
        sentence = plain_sentence(report.baselines)
        lines += [f"**{quoted(sentence)}** (95% intervals of the differences, over users)", ""] if sentence else []
        lines += [*report.metric_lines(), ""]
        if report.slices:
            lines += folded(f"Slices ({report.protocol.split})", report.slice_lines())
    return lines if reports else [*lines, "Not evaluated yet: run `cllm4rec evaluate`.", ""]


def stage_section(stage: str, record: Mapping[str, Any]) -> list[str]:
    """Return the cost of a stage, its arguments folded, and the versions of the libraries."""
    lines = [f"## Training: {stage}", ""]
    lines += [f"{record['steps']} optimizer steps, {record['seconds']:.0f} s on {quoted(record['machine'])}.", ""]
    lines += folded("Arguments", fenced("yaml", yaml.safe_dump(record["arguments"], sort_keys=True).strip()))
    lines += [", ".join(f"{quoted(library)} {quoted(number)}" for library, number in record["versions"].items()), ""]
    return lines + [line for note in record.get("notes", []) for line in (quoted(note), "")]


def curves_section() -> list[str]:
    """Return the picture of the training curves."""
    return ["## Training curves", "", f"![Losses and validation metrics by epoch]({CURVES_FILE})", ""]


def reproduce_section(records: Mapping[str, Any], reports: Sequence[EvaluationReport]) -> list[str]:
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


def limits_section(data_info: Mapping[str, Any], backbone: Mapping[str, Any] | None) -> list[str]:
    """Return the limits of the model, and the licences that apply."""
    name = ""
    if backbone is not None:  # a path says nothing to a reader elsewhere, and may hold a user's name
        name = (
            f" ({quoted(Path(backbone['name']).name)}, a local folder)" if backbone["local"] else f" ({quoted(backbone['name'])})"
        )
    stated = NOT_STATED if backbone is None or backbone["license"] is None else backbone["license"]
    return [
        "## Limits",
        "",
        "It recommends only items of its catalogue, and reflects the interactions it was trained on, popularity and gaps "
        "included. `users.parquet` holds user ids, and training histories unless it was saved or uploaded without them "
        "(`include_histories=False`, the default of uploads).",
        "",
        "## Licences",
        "",
        f"- of the data: {quoted(data_info.get('license', NOT_STATED))}",
        f"- of the backbone{name}: {quoted(stated)}",
        "",
        "They apply to what was learned from data and backbone.",
        "",
    ]


def citation_section(system: System) -> list[str]:
    """Return the paper as BibTeX; none for a system without one."""
    return ["## Citation", "", *fenced("bibtex", system.citation), ""] if system.citation else []


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


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Return lines that a reader unfolds.

    Example:
        >>> folded("Arguments", ["text"])
        ['<details>', '<summary>Arguments</summary>', '', 'text', '', '</details>', '']
    """
    return ["<details>", f"<summary>{quoted(summary)}</summary>", "", *lines, "", "</details>", ""]


def _item_cell(item: Mapping[str, Any]) -> str:
    """Return an item as the cell of a table: its title, or its id where it has none."""
    text = str(item["item"] if item["title"] is None else item["title"])
    text = text if len(text) <= LONGEST_TITLE else text[: LONGEST_TITLE - 1].rstrip() + "…"
    return quoted(text).replace("|", "\\|")


def _short(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
