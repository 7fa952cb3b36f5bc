"""Quality and speed of LC-Rec's beam search for several beam sizes, compared with exact scoring.

    python recipes/experiments/beam_quality.py --model runs/lcrec-mine --data data/mine --users 200

All searches rank the same users with the same model in one process. Each list is compared with the list found by scoring the
whole catalogue.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.id_checks import check_same_ids
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.searching import SearchingRecommender
from modeling_cllm4rec.hub.model_card import machine
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation

K = 10
METRICS = (f"hit_rate@{K}", f"ndcg@{K}")
EXACT = "exact"


class RecordedSearch:
    """A search that records its ranked lists and the seconds that it took."""

    def __init__(self, search: SearchingRecommender) -> None:
        self.search, self.num_items, self.decoding = search, search.num_items, search.decoding
        self.lists: dict[int, npt.NDArray[np.int64]] = {}
        self.seconds = 0.0

    def rank_histories(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, seen: Histories | None, k: int
    ) -> npt.NDArray[np.int64]:
        """Return the (batch, k) best unseen items found by the search."""
        assert user_indices is not None
        start = time.perf_counter()
        ranked = self.search.rank_histories(user_indices, histories, seen, k)
        self.seconds += time.perf_counter() - start
        self.lists.update(zip(user_indices.tolist(), ranked, strict=True))
        return ranked


def row_of(
    name: str, search: RecordedSearch, report: EvaluationReport, exact: RecordedSearch, best: EvaluationReport
) -> dict[str, Any]:
    """Return one row of the table: metrics, the difference from exact scoring with its interval, and time."""
    overlap = [len(np.intersect1d(row, exact.lists[user])) / K for user, row in search.lists.items()]
    row: dict[str, Any] = {"search": name, "ms_per_user": 1e3 * search.seconds / report.users, "found": float(np.mean(overlap))}
    for metric in METRICS:
        difference = report.per_user[metric] - best.per_user[metric]
        row[metric] = report.metrics[metric]
        row[f"{metric} - exact"] = [float(difference.mean()), *bootstrap_interval(difference)]
    return row


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = [
        f"{report['protocol']} {report['machine']}, {report['threads']} threads, batches of {report['batch_size']}.",
        "",
        f"| search | {METRICS[0]} | {METRICS[1]} | difference from exact (95% interval) | exact best {K} found | ms per user |",
        "|---" * 6 + "|",
    ]
    for row in report["rows"]:
        mean, low, high = row[f"{METRICS[1]} - exact"]
        lines.append(
            f"| {row['search']} | {row[METRICS[0]]:.4f} | {row[METRICS[1]]:.4f} | {mean:+.4f} [{low:+.4f}, {high:+.4f}] "
            f"| {row['found']:.1%} | {row['ms_per_user']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def beams(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all searches and write `beams.json` and `beams.md` into the output folder.

    Raises:
        InputError: fewer than 10 beams, or a model of another catalogue.
    """
    for number in arguments.beams:
        if number < K:
            raise InputError(f"--beams has {number}; {K} items are ranked, so each number must be {K} or more")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = LCRecForRecommendation.from_pretrained(arguments.model).to(arguments.device).eval()
    data = RecommendationData.load(arguments.data)
    check_same_ids(model, data, arguments.model)
    searches = {f"{number} beams": SearchingRecommender(model, {"num_beams": number}) for number in arguments.beams}
    searches[EXACT] = SearchingRecommender(model, {"scoring": "all"})
    finished: dict[str, tuple[RecordedSearch, EvaluationReport]] = {}
    for name, search in tqdm(searches.items(), desc="searches"):
        recorded = RecordedSearch(search)
        report = evaluate(
            recorded,
            data,
            arguments.split,
            arguments.test_history,
            metrics=METRICS,
            batch_size=arguments.batch_size,
            n_resamples=0,
            max_users=arguments.users,
        )
        finished[name] = recorded, report
    exact, best = finished[EXACT]
    written = {
        "protocol": str(best.protocol),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "batch_size": arguments.batch_size,
        "rows": [row_of(name, search, report, exact, best) for name, (search, report) in finished.items()],
    }
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "beams.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    (output / "beams.md").write_text(as_markdown(written), encoding="utf-8")
    return written


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(prog="beam_quality.py", description=__doc__)
    flags.add_argument("--model", required=True, help="LC-Rec folder or Hub name")
    flags.add_argument("--data", required=True, help="data folder written by `cllm4rec prepare`")
    flags.add_argument("--beams", nargs="+", type=int, default=[10, 20, 50], help="beam sizes to compare")
    flags.add_argument("--users", type=int, default=200, help="size of the random sample of users, shared by all searches")
    flags.add_argument("--split", choices=["validation", "test"], default="test", help="split to predict")
    flags.add_argument("--test-history", choices=["train", "train+validation"], default="train+validation", help="input history")
    flags.add_argument("--batch-size", type=int, default=16, help="users per batch")
    flags.add_argument("--output", default="reports/beams", help="output folder; beams.json and beams.md are overwritten")
    flags.add_argument("--device", default="cpu", help="torch device")
    flags.add_argument("--threads", type=int, default=0, help="torch threads; 0 keeps the default")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    disable_progress_bar()
    return flags.run(arguments, lambda: print(as_markdown(beams(arguments))))


if __name__ == "__main__":
    sys.exit(main())
