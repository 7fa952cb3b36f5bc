"""Rank the whole catalogue for every user of a split and measure what was found, with 95% intervals.

    python recipes/eval.py --model runs/beauty --data data/beauty --split test
    python recipes/eval.py --model runs/lcrec-scientific --data data/scientific --split test --test-history train+validation
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.matching import check_same_ids
from modeling_cllm4rec.evaluation.baselines import PopularityRecommender, RandomRecommender
from modeling_cllm4rec.evaluation.evaluator import DEFAULT_METRICS, EvaluationReport, comparison_table, evaluate
from modeling_cllm4rec.evaluation.search import evaluate_templates
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.hub.model_card import update_card
from modeling_cllm4rec.modeling_lcrec import LCRecForRecommendation

BASELINES: dict[str, Callable[[RecommendationData], Any]] = {
    "popularity": PopularityRecommender.fit,
    "random": lambda data: RandomRecommender(data.num_items),
}


LCREC_METRICS = ("hit_rate@1", "hit_rate@5", "hit_rate@10", "ndcg@5", "ndcg@10")
BATCH_SIZE, LCREC_BATCH_SIZE = 256, 64
SEARCH_FLAGS = {"num_beams": None, "scoring": "beam", "templates": ["0"]}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="eval.py"
    )
    flags.add_argument("--model", required=True, help="folder or Hub name of a finetuned model")
    flags.add_argument("--data", required=True, help="data folder that the model was trained on")
    flags.add_argument("--split", choices=["validation", "test"], default="test", help="what is to be predicted")
    flags.add_argument(
        "--test-history",
        choices=["train", "train+validation"],
        default="train",
        help="histories that the model is given; train as the released code of the paper",
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
        "--baselines", nargs="*", choices=sorted(BASELINES), default=["popularity"], help="to be measured beside it"
    )
    flags.add_argument("--batch-size", type=int, help=f"users at a time (default: {BATCH_SIZE}, LC-Rec {LCREC_BATCH_SIZE})")
    flags.add_argument("--max-users", type=int, help="a fixed random sample of so many users (default: all)")
    search = flags.add_argument_group("LC-Rec")
    search.add_argument("--num-beams", type=int, help="beams of the search (default: the model's)")
    search.add_argument("--scoring", choices=["beam", "all"], default="beam", help="search, or score every item exactly")
    search.add_argument("--templates", nargs="+", default=["0"], help="numbers of prompt templates, or all; metrics are means")
    flags.add_argument("--seed", type=int, default=0, help="start of the bootstrap's random numbers")
    flags.add_argument("--output", help="folder for the report (default: the model's folder; its card is updated there)")
    return flags


def run(arguments: argparse.Namespace) -> dict[str, EvaluationReport]:
    """Evaluate model and baselines; save the model's report and renew its card."""
    data = RecommendationData.load(arguments.data)
    model = load_recommender(arguments.model)
    check_same_ids(model, data, arguments.model)
    searches = isinstance(model, LCRecForRecommendation)
    asked = [flag for flag, value in SEARCH_FLAGS.items() if getattr(arguments, flag) != value]
    if asked and not searches:
        flags = ", ".join("--" + flag.replace("_", "-") for flag in asked)
        raise ValueError(f"{flags}: {arguments.model} scores all items at once and has no search to set; leave it out")
    reports = {
        name: evaluate(
            recommender,
            data,
            arguments.split,
            arguments.test_history,
            arguments.mask,
            arguments.metrics or (LCREC_METRICS if searches else DEFAULT_METRICS),
            arguments.batch_size or BATCH_SIZE,
            seed=arguments.seed,
            max_users=arguments.max_users,
        )
        for name, recommender in {
            **{name: BASELINES[name](data) for name in arguments.baselines},
            **({} if searches else {"CLLM4Rec": model}),
        }.items()
    }
    if searches:
        reports["LC-Rec"] = searching_report(model, data, arguments)
    if arguments.output is None and not Path(arguments.model).is_dir():
        return reports
    folder = Path(arguments.output or arguments.model)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"evaluation-{arguments.split}-given-{arguments.test_history.replace('+', '-')}"
    own = reports["LC-Rec" if searches else "CLLM4Rec"]
    own.save(folder / f"{name}.json", overwrite=True)
    own.save_per_user(folder / f"{name}.parquet", overwrite=True)
    if arguments.output is None:
        update_card(folder, data)
    return reports


def searching_report(model: LCRecForRecommendation, data: RecommendationData, arguments: argparse.Namespace) -> EvaluationReport:
    """LC-Rec's report: by the search that the flags ask for, over one template, some or all."""
    available = range(len(model.config.recommendation_prompts or []))
    templates = list(available) if arguments.templates == ["all"] else [int(word) for word in arguments.templates]
    return evaluate_templates(
        model,
        data,
        arguments.split,
        templates,
        arguments.num_beams,
        arguments.scoring,
        test_history=arguments.test_history,
        mask=arguments.mask,
        metrics=arguments.metrics or LCREC_METRICS,
        batch_size=arguments.batch_size or LCREC_BATCH_SIZE,
        seed=arguments.seed,
        max_users=arguments.max_users,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        reports = run(arguments)
    except (ValueError, OSError) as error:
        print(f"eval.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(comparison_table(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
