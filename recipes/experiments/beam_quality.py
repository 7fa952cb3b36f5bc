"""What more beams buy: quality and speed of LC-Rec's search with several numbers of beams, against exact scoring.

    python recipes/benchmark.py beams --model runs/lcrec-mine --data data/mine --users 200

All searches rank the same users with the same model in one process. What is found is compared with what scoring the whole
catalogue finds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

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


class Recorded:
    """A search that remembers the lists that it gave, and how long each user waited."""

    def __init__(self, search: SearchingRecommender) -> None:
        self.search, self.num_items, self.decoding = search, search.num_items, search.decoding
        self.lists: dict[int, npt.NDArray[np.int64]] = {}
        self.seconds = 0.0

    def rank_histories(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, seen: Histories | None, k: int
    ) -> npt.NDArray[np.int64]:
        """(batch, k) best unseen items, as the search finds them."""
        assert user_indices is not None
        start = time.perf_counter()
        ranked = self.search.rank_histories(user_indices, histories, seen, k)
        self.seconds += time.perf_counter() - start
        self.lists.update(zip(user_indices.tolist(), ranked, strict=True))
        return ranked


def row_of(name: str, found: Recorded, report: EvaluationReport, exact: Recorded, best: EvaluationReport) -> dict[str, Any]:
    """One line of the table: metrics, the difference to exact scoring with its interval, and time."""
    same = [len(np.intersect1d(row, exact.lists[user])) / K for user, row in found.lists.items()]
    row: dict[str, Any] = {"search": name, "ms_per_user": 1e3 * found.seconds / report.users, "found": float(np.mean(same))}
    for metric in METRICS:
        difference = report.per_user[metric] - best.per_user[metric]
        row[metric] = report.metrics[metric]
        row[f"{metric} - exact"] = [float(difference.mean()), *bootstrap_interval(difference)]
    return row


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = [
        f"{report['protocol']} {report['machine']}, {report['threads']} threads, batches of {report['batch_size']}.",
        "",
        f"| search | {METRICS[0]} | {METRICS[1]} | difference to exact (95% interval) | exact best {K} found | ms per user |",
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
    """Measure, write `beams.json` and `beams.md` into the output folder.

    Raises:
        ValueError: fewer than 10 beams, or a model of another catalogue.
    """
    for number in arguments.beams:
        if number < K:
            raise ValueError(f"--beams has {number}; {K} items are ranked and need {K} beams or more")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = LCRecForRecommendation.from_pretrained(arguments.model).to(arguments.device).eval()
    data = RecommendationData.load(arguments.data)
    check_same_ids(model, data, arguments.model)
    searches = {f"{number} beams": SearchingRecommender(model, {"num_beams": number}) for number in arguments.beams}
    searches[EXACT] = SearchingRecommender(model, {"scoring": "all"})
    done: dict[str, tuple[Recorded, EvaluationReport]] = {}
    for name, search in tqdm(searches.items(), desc="searches"):
        recorded = Recorded(search)
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
        done[name] = recorded, report
    exact, best = done[EXACT]
    written = {
        "protocol": str(best.protocol),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "batch_size": arguments.batch_size,
        "rows": [row_of(name, found, report, exact, best) for name, (found, report) in done.items()],
    }
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "beams.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    (output / "beams.md").write_text(as_markdown(written), encoding="utf-8")
    return written


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of `benchmark.py beams`."""
    command.add_argument("--model", required=True, help="an LC-Rec folder, or its name on the Hub")
    command.add_argument("--data", required=True, help="data folder written by recipes/prepare.py")
    command.add_argument("--beams", nargs="+", type=int, default=[10, 20, 50], help="numbers of beams")
    command.add_argument("--users", type=int, default=200, help="a random sample of so many users, the same for every search")
    command.add_argument("--split", choices=["validation", "test"], default="test", help="what is to be predicted")
    command.add_argument("--test-history", choices=["train", "train+validation"], default="train+validation", help="the input")
    command.add_argument("--batch-size", type=int, default=16, help="users searched for at a time")
    command.add_argument("--output", default="reports/beams", help="folder for beams.json and beams.md, which are replaced")
    command.add_argument("--device", default="cpu", help="device of torch")
    command.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its default")
