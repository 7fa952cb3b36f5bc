"""What `cllm4rec evaluate` does once its flags are known to be right: measure a model and baselines, and keep the report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.commands.evaluate import FIRST_TEMPLATE
from modeling_cllm4rec.commands.model_flags import batch_size, placement, refuse_search, search_settings
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.processes import process_count, process_number
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.id_checks import check_same_ids
from modeling_cllm4rec.evaluation.evaluator import EvaluationReport, comparison_table, evaluate
from modeling_cllm4rec.evaluation.protocol import WITHOUT_HISTORY, Protocol
from modeling_cllm4rec.evaluation.search_baselines import search_baseline
from modeling_cllm4rec.evaluation.search_evaluation import SEARCH_METRICS, SearchingModel, evaluate_search
from modeling_cllm4rec.evaluation.search_queries import search_queries
from modeling_cllm4rec.evaluation.searching import evaluate_templates
from modeling_cllm4rec.evaluation.verdicts import compare, verdicts
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.hub.model_card import save_evaluation
from modeling_cllm4rec.systems import resolve, system_of

USUAL_BASELINES = {False: ["popularity"], True: ["bm25", "tfidf"]}
"""Baselines of recommending and of search, where none are named."""


def run(arguments: argparse.Namespace) -> dict[str, EvaluationReport]:
    """Evaluate model and baselines; save the model's report with those of the baselines and renew its card.

    Raises:
        InputError: flags that do not go together, or those of the parts that this calls.
    """
    if arguments.baselines is None:
        arguments.baselines = USUAL_BASELINES[arguments.search]
    data = RecommendationData.load(arguments.data)
    model = load_recommender(arguments.model, **placement(arguments))
    check_same_ids(model, data, arguments.model)
    search = search_settings(arguments, model)
    searches, title = not model.scores_catalogue, system_of(model).title
    if arguments.search:
        reports = measure_search(arguments, data, model, search)
        keep_report(reports, title, arguments, search, model, data)
        return reports
    if arguments.templates != FIRST_TEMPLATE and not searches:
        refuse_search(["templates"], arguments.model)
    shared: dict[str, Any] = {
        "test_history": given_history(arguments, model),
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
    keep_report(reports, title, arguments, search, model, data)
    return reports


def given_history(arguments: argparse.Namespace, model: RecommenderModel) -> str:
    """Return the histories that the model is given: as asked, or as its paper has them."""
    return arguments.test_history or ("train" if arguments.split == "validation" else system_of(model).test_history)


def measure_search(
    arguments: argparse.Namespace, data: RecommendationData, model: RecommenderModel, settings: dict[str, Any]
) -> dict[str, EvaluationReport]:
    """Measure the answers of baselines and model to the queries of held-out reviews.

    Raises:
        InputError: the model reads no queries, or a flag has no meaning for a search.
    """
    templates = template_numbers(arguments.templates, model)
    if len(templates) > 1:
        raise InputError("--templates: a search is measured with one template of queries; name one number")
    if arguments.mask is not None:
        raise InputError("--mask has no meaning with --search, which leaves out the items of the history; leave it out")
    if process_count() > 1:
        raise InputError("--search runs in one process; start it without torchrun or accelerate launch")
    ranker = SearchingModel(model, settings, template=templates[0], batch_size=arguments.batch_size)
    write = resolve(system_of(model).review_queries)
    queries = search_queries(data, arguments.split, write)
    rankers: dict[str, Any] = {name: search_baseline(name, data, write, arguments.seed) for name in arguments.baselines}
    rankers[system_of(model).title] = ranker
    return {
        name: evaluate_search(
            one,
            data,
            queries,
            WITHOUT_HISTORY if arguments.without_history else given_history(arguments, model),
            metrics=arguments.metrics or SEARCH_METRICS,
            seed=arguments.seed,
            max_users=arguments.max_users,
        )
        for name, one in rankers.items()
    }


def keep_report(
    reports: dict[str, EvaluationReport],
    title: str,
    arguments: argparse.Namespace,
    search: dict[str, Any],
    model: RecommenderModel,
    data: RecommendationData,
) -> None:
    """Put the baselines into the model's report and save it, unless it came from the Hub and no other folder is named.

    The first process does. In the model's folder, the card is renewed as well.
    """
    if process_number() != 0:
        return
    report = compare(reports, title)
    report.command = arguments.command
    name = report_name(report.protocol, arguments, search, model.config)
    if arguments.output is not None:
        folder = Path(arguments.output)
        folder.mkdir(parents=True, exist_ok=True)
        report.save(folder / f"{name}.json", overwrite=True)
        report.save_per_user(folder / f"{name}.parquet", overwrite=True)
    elif Path(arguments.model).is_dir():
        save_evaluation(Path(arguments.model), name, report, data, model)


def report_name(protocol: Protocol, arguments: argparse.Namespace, search: dict[str, Any], config: Any) -> str:
    """Return the name of the report's files: the evaluated data, and all settings that differ from the defaults.

    So a quick look at five users does not replace what was measured on all.
    """
    parts = [f"{protocol.split} given {protocol.test_history}", *protocol.departures]
    if "num_beams" in search and search["num_beams"] != config.search_beams:
        beams = search["num_beams"]
        parts.append(f"{' '.join(map(str, beams)) if isinstance(beams, list) else beams} beams")
    if search.get("scoring") not in (None, getattr(config, "scoring", None)):
        parts.append({"beam": "search", "all": "all scored", "head": "item head"}[search["scoring"]])
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


def in_words(reports: dict[str, EvaluationReport]) -> str:
    """Return the table of model and baselines, and their differences in sentences; the model is the last."""
    title = next(reversed(reports))
    return "\n".join([comparison_table(reports), "", *verdicts(reports[title], title)])
