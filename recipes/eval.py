"""Rank the whole catalogue for every user of a split and measure what was found, with 95% intervals.

    python recipes/eval.py --model runs/beauty --data data/beauty --split test
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
from modeling_cllm4rec.hub.model_card import update_card
from modeling_cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation

BASELINES: dict[str, Callable[[RecommendationData], Any]] = {
    "popularity": PopularityRecommender.fit,
    "random": lambda data: RandomRecommender(data.num_items),
}


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
    flags.add_argument("--metrics", nargs="+", default=list(DEFAULT_METRICS), help="such as recall@20 ndcg@10 mrr@10 coverage@10")
    flags.add_argument(
        "--baselines", nargs="*", choices=sorted(BASELINES), default=["popularity"], help="to be measured beside it"
    )
    flags.add_argument("--batch-size", type=int, default=256, help="users scored at a time")
    flags.add_argument("--seed", type=int, default=0, help="start of the bootstrap's random numbers")
    flags.add_argument("--output", help="folder for the report (default: the model's folder; its card is updated there)")
    return flags


def run(arguments: argparse.Namespace) -> dict[str, EvaluationReport]:
    """Evaluate model and baselines; save the model's report and renew its card."""
    data = RecommendationData.load(arguments.data)
    model = load_model(arguments.model)
    check_same_ids(model, data, arguments.model)
    recommenders = {name: BASELINES[name](data) for name in arguments.baselines}
    reports = {
        name: evaluate(
            recommender,
            data,
            arguments.split,
            arguments.test_history,
            arguments.mask,
            arguments.metrics,
            arguments.batch_size,
            seed=arguments.seed,
        )
        for name, recommender in {**recommenders, "CLLM4Rec": model}.items()
    }
    if arguments.output is None and not Path(arguments.model).is_dir():
        return reports
    folder = Path(arguments.output or arguments.model)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"evaluation-{arguments.split}-given-{arguments.test_history.replace('+', '-')}"
    reports["CLLM4Rec"].save(folder / f"{name}.json", overwrite=True)
    reports["CLLM4Rec"].save_per_user(folder / f"{name}.parquet", overwrite=True)
    if arguments.output is None:
        update_card(folder, data)
    return reports


def load_model(name: str) -> CLLM4RecForRecommendation:
    """The model of a folder or a Hub name.

    Raises:
        OSError: there is none.
    """
    try:
        return CLLM4RecForRecommendation.from_pretrained(name)
    except OSError as error:
        raise OSError(f"--model: {name} is no folder with a model and could not be read from the Hub ({error})") from error


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
