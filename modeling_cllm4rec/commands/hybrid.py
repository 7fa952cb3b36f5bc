"""`cllm4rec hybrid`: add linear models to a trained model, with weights learned on validation, and save it to a new folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from modeling_cllm4rec.baselines.hybrid import NEIGHBOURS, make_hybrid
from modeling_cllm4rec.commands.changed_models import save_changed_model
from modeling_cllm4rec.commands.command_line import CommandParser, print_json
from modeling_cllm4rec.commands.model_flags import add_device_arguments, placement
from modeling_cllm4rec.core.console_log import show_log
from modeling_cllm4rec.corpora.atomic_files import check_new_folder
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.hub.loading import load_recommender, load_tokenizer
from modeling_cllm4rec.training.teacher_arguments import parsed_settings

EPILOG = """example:
  cllm4rec hybrid --model runs/mine --data data/mine --baselines ease+textknn --output runs/mine-hybrid
  cllm4rec hybrid --model runs/mine --data data/mine --baselines ease-recency+transition-graph+textknn \\
    --settings ease-recency.regularization=100 textknn.neighbours=200 --output runs/mine-hybrid
"""
NOTE = """
## Hybrid

Scores of linear models are added to those of the language model, each standardized over the catalogue: {weights}.
The weights were learned on validation. The metrics above are those of the language model alone.
"""


def parser() -> CommandParser:
    """Parse the flags."""
    flags = CommandParser(
        "hybrid",
        description="Add linear models of items from items to a trained model, with weights learned on validation. The new "
        "folder holds the whole sum, and recommends by it.",
        epilog=EPILOG,
    )
    flags.add_argument("--model", required=True, help="folder or Hub name of a CLLM4Rec, or of an LC-Rec with an item head")
    flags.add_argument("--data", required=True, help="the data folder that it was trained on")
    flags.add_argument("--output", required=True, help="folder for the hybrid; must not exist or be empty")
    flags.add_argument("--baselines", required=True, help="linear baselines joined by +, such as ease+textknn")
    flags.add_argument("--settings", nargs="+", default=[], help="their settings, such as ease.regularization=100")
    flags.add_argument(
        "--trials",
        type=int,
        default=120,
        help="budget of the search for the weights; a round takes 13 for each baseline (default: 120)",
    )
    flags.add_argument("--metric", help="validation metric to maximize, such as ndcg@10 (default: that of the model's epochs)")
    flags.add_argument("--neighbours", type=int, default=NEIGHBOURS, help=f"most entries of a row (default: {NEIGHBOURS})")
    flags.add_argument("--max-users", type=int, default=4000, help="users of the search, a fixed random sample (default: 4000)")
    flags.add_argument("--seed", type=int, default=0, help="start of the random numbers")
    add_device_arguments(flags, ["device"])  # another data type would be that of the saved model
    flags.add_argument("--json", action="store_true", help="print output, weights and metric as JSON")
    return flags


def run(arguments: argparse.Namespace) -> None:
    """Load, fit, search, save.

    Raises:
        ExistingFileError: the output holds something.
        InputError: see `make_hybrid`.
    """
    output = Path(arguments.output)
    check_new_folder(output)
    settings = parsed_settings("settings", arguments.settings)
    if arguments.baselines.count("+") == 0 and settings and arguments.baselines not in settings:
        settings = {arguments.baselines: settings}
    data = RecommendationData.load(arguments.data)
    model = load_recommender(arguments.model, **placement(arguments))
    tuning = make_hybrid(
        model,
        data,
        arguments.baselines,
        settings,
        trials=arguments.trials,
        metric=arguments.metric,
        neighbours=arguments.neighbours,
        max_users=arguments.max_users,
        seed=arguments.seed,
        progress=not arguments.json,
    )
    weights = {} if model.linear_parts is None else model.linear_parts.weights
    words = ", ".join(f"{name} {weight:g}" for name, weight in weights.items()) or "none of the linear models helps"
    note = f"Linear models were added after this training: {words}."
    tokenizer = load_tokenizer(arguments.model)
    save_changed_model(model, tokenizer, arguments.model, output, NOTE.format(weights=words), note)
    if arguments.json:
        best = max(tuning.trials.drop_columns(["settings"]).to_pylist(), key=lambda trial: trial["chosen"])
        print_json({"output": str(output), "weights": weights, "best_trial": best})
    else:
        print(f"weights on validation: {words}; hybrid saved in {output}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    show_log()
    return flags.run(arguments, lambda: run(arguments))
