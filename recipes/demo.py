"""An offline end-to-end run on synthetic data: data, backbone, both systems, evaluation, and a page about all of it.

python recipes/demo.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from demo_page import DemoPage, Found, Shown, ShownUser, render

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.cllm4rec.pretraining import pretrain
from modeling_cllm4rec.commands.stage_arguments import parse_arguments
from modeling_cllm4rec.core.catalogue import Catalogue, Recommendations
from modeling_cllm4rec.core.console_log import show_log
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset, make_synthetic_dataset
from modeling_cllm4rec.evaluation.evaluator import comparison_table, evaluate
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.searching import SearchingRecommender
from modeling_cllm4rec.evaluation.verdicts import Estimate, compare, verdict
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.hub.model_card import update_card
from modeling_cllm4rec.lcrec.alignment import align
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.training.backbones import train_backbone
from modeling_cllm4rec.training.estimates import in_words

CONFIGS = Path(__file__).parent / "configs"
METRICS = ("recall@10", "recall@20", "ndcg@10", "coverage@10")
METRIC = "ndcg@10"
"""The metric of the bars and of the sentences."""
BASELINES = {
    "random": "any items",
    "popularity": "the same items for all users",
    "textknn": "items whose texts are near to those of the history",
    "ease": "EASE, a linear model of interactions",
    "ease+textknn": "the sum of both, the teacher of CLLM4Rec",
}
CLLM4REC, LCREC = "CLLM4Rec", "LC-Rec"
MODELS = {
    CLLM4REC: "a token per user and item; all items scored in one pass",
    LCREC: "semantic IDs of texts and co-purchases, written by beam search, 20 beams",
}
NUM_BEAMS = 20
"""Beam size of LC-Rec in the table: the length of the longest list."""
NUM_USERS = 3
QUERIES = ("calming herbal tea", "a sleek notebook", "fragrant candle")

NUM_STEPS = 6

logger = logging.getLogger("modeling_cllm4rec.demo")


class Steps:
    """Steps of the demo: each is announced when it begins, and its seconds are kept."""

    def __init__(self) -> None:
        self.done: list[tuple[str, float]] = []
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Announce and time a step."""
        begun = time.perf_counter()
        logger.info("step %d of %d: %s", len(self.done) + 1, NUM_STEPS, what)
        yield
        self.done.append((what, time.perf_counter() - begun))

    @property
    def seconds(self) -> float:
        """Seconds since the first step."""
        return time.perf_counter() - self._started


def make_data(dataset: SyntheticDataset, folder: Path, seed: int) -> RecommendationData:
    """Write the data folder of a synthetic data set."""
    return prepare_tables(dataset.interactions, dataset.items, dataset.users, folder / "data", split="random", seed=seed)


def make_backbone(data: RecommendationData, folder: Path, seed: int) -> Path:
    """Train a language model of three layers on the texts of the data, for one epoch."""
    settings: dict[str, Any] = {"layers": 3, "epochs": 1, "batch_size": 64, "lr": 3e-3, "max_text_tokens": 40}
    return train_backbone(data, folder / "backbone", seed=seed, **settings)


def train_cllm4rec(data: RecommendationData, backbone: Path, run: Path, seed: int) -> None:
    """Make the new model, then finetune it."""
    common = ["--config", str(CONFIGS / "demo.yaml"), "--data", str(data.folder), "--output", str(run), "--seed", str(seed)]
    pretrain(parse_arguments(PretrainArguments, "pretrain", [*common, "--backbone", str(backbone)]))
    finetune(parse_arguments(FinetuneArguments, "finetune", common))


def train_lcrec(data: RecommendationData, backbone: Path, run: Path, seed: int) -> None:
    """Index the items, then align."""
    index = run.with_name(run.name + "-index")
    common = ["--data", str(data.folder), "--seed", str(seed)]
    encoder = ["--config", str(CONFIGS / "demo_index.yaml"), "--encoder", str(backbone), "--output", str(index)]
    index_items(parse_arguments(IndexArguments, "index", [*common, *encoder]))
    model = ["--config", str(CONFIGS / "demo_lcrec.yaml"), "--backbone", str(backbone), "--index", str(index)]
    align(parse_arguments(AlignArguments, "align", [*common, *model, "--output", str(run)]))


def measure(models: Mapping[str, Any], data: RecommendationData) -> dict[str, EvaluationReport]:
    """Evaluate baselines and models on the test split; the report of each model holds its differences from the baselines."""
    recommenders: dict[str, Any] = {name: fit_baseline(name, data) for name in BASELINES}
    recommenders |= {**models, LCREC: SearchingRecommender(models[LCREC], {"num_beams": NUM_BEAMS})}
    metrics = [name for name in METRICS if int(name.partition("@")[2]) <= data.num_items]
    reports = {name: evaluate(one, data, "test", metrics=metrics, progress=False) for name, one in recommenders.items()}
    for name in MODELS:
        compare({other: report for other, report in reports.items() if other in BASELINES or other == name}, name)
    return reports


def sentences(reports: Mapping[str, EvaluationReport]) -> list[str]:
    """Return whether each model is above popularity and above the best of the other baselines, in words."""
    best = max((name for name in BASELINES if name != "popularity"), key=lambda name: reports[name].metrics[METRIC])
    found = []
    for name in MODELS:
        for reference in ("popularity", best):
            difference = Estimate(*reports[name].baselines[reference].differences[METRIC], reports[name].users)
            found.append(verdict(name, reference, difference, METRIC))
    return found


def shown_items(recommendations: Recommendations, catalogue: Catalogue, held_out: frozenset[Any] = frozenset()) -> list[Shown]:
    """Return recommendations of one user or query with their titles."""
    rows = recommendations.to_pylist()
    titles = catalogue.titles(catalogue.ids.indices_of([row["item"] for row in rows]))
    return [
        Shown(str(title), str(row["item"]), row["score"], row["item"] in held_out)
        for row, title in zip(rows, titles, strict=True)
    ]


def shown_user(models: Mapping[str, Any], data: RecommendationData, index: int, k: int = 5) -> ShownUser:
    """Return a user's last items and what each model recommends."""
    first = models[CLLM4REC]
    (user,) = first.users.ids.ids_of([index])
    last = first.users.history(index)[-6:]
    test = data.histories("test")
    held_out = frozenset(first.catalogue.ids.ids_of(test.items[test.indptr[index] : test.indptr[index + 1]]))
    named = zip(first.catalogue.titles(last), first.catalogue.ids.ids_of(last), strict=True)
    lists = {name: shown_items(model.recommend(users=[user], k=k), model.catalogue, held_out) for name, model in models.items()}
    return ShownUser(str(user), [Shown(str(title), str(item)) for title, item in named], lists)


def curve(run: Path, stage: str, metric: str) -> list[tuple[int, float]]:
    """Return epochs, from 1, and values of a validation metric from the training record of a run."""
    history = json.loads((run / "training.json").read_text(encoding="utf-8"))[stage]["history"]
    return [(entry["epoch"] + 1, entry[metric]) for entry in history if metric in entry]


def go_on(runs: Mapping[str, Path], data: Path, user: str) -> list[tuple[str, str]]:
    """Return three commands to go on with, each with its purpose."""
    place = Path(sys.executable).with_name("cllm4rec")
    inside = place.is_file() and place.is_relative_to(Path.cwd())
    program = os.path.relpath(place) if inside else "cllm4rec"
    first, second = (str(runs[name]) for name in (CLLM4REC, LCREC))
    return [
        ("Ten items for a user:", shlex.join([program, "recommend", "--model", first, "--users", user, "--k", "10"])),
        (
            "Search LC-Rec in your own words:",
            shlex.join([program, "recommend", "--model", second, "--query", "something for my desk", "--k", "5"]),
        ),
        (
            "Measure again, on the validation split, next to a baseline:",
            shlex.join(
                [program, "evaluate", "--model", first, "--data", str(data), "--split", "validation", "--baselines", "ease"]
            ),
        ),
    ]


def write_page(
    folder: Path, data: RecommendationData, runs: Mapping[str, Path], reports: Mapping[str, EvaluationReport], steps: Steps
) -> Path:
    """Write `report.html`: what was made, how accurate it is, what it recommends, and the folders."""
    models: dict[str, Any] = {name: load_recommender(run) for name, run in runs.items()}
    with steps.step("recommendations and the report"):
        users = [shown_user(models, data, index) for index in range(NUM_USERS)]
        search = models[LCREC].search
        found = [Found(query, shown_items(search([query], k=4), models[LCREC].require_catalogue())) for query in QUERIES]
    page = DemoPage(
        counts={
            "users": data.num_users,
            "items": data.num_items,
            "interactions": len(data.interactions),
            "of them in the test split": len(data.histories("test").items),
        },
        steps=steps.done,
        reports=reports,
        models=tuple(MODELS),
        about={**BASELINES, **MODELS},
        verdicts=sentences(reports),
        metric=METRIC,
        curves={
            CLLM4REC: curve(runs[CLLM4REC], "finetune", "validation/ndcg@100"),
            LCREC: curve(runs[LCREC], "align", "validation/ndcg@10"),
        },
        curves_metric={CLLM4REC: "ndcg@100", LCREC: "ndcg@10"},
        users=users,
        found=found,
        folders=[
            (str(folder / "data"), "the data folder: interactions by split, items, users, a card"),
            (str(folder / "backbone"), "the small language model that both systems start from"),
            *((str(run), f"{name}: weights, code, tokenizer, card (README.md)") for name, run in runs.items()),
            (str(runs[LCREC].with_name(runs[LCREC].name + "-index")), "the semantic IDs of the items"),
        ],
        commands=go_on(runs, folder / "data", users[0].user),
    )
    path = folder / "report.html"
    with atomic_file(path) as temporary:
        temporary.write_text(render(page), encoding="utf-8")
    return path


def run_demo(dataset: SyntheticDataset, folder: Path, seed: int) -> Path:
    """Run all steps on a synthetic data set; return the page."""
    steps = Steps()
    runs = {CLLM4REC: folder / "run", LCREC: folder / "lcrec"}
    with steps.step("data"):
        data = make_data(dataset, folder, seed)
    with steps.step("a small language model on the texts"):
        backbone = make_backbone(data, folder, seed)
    with steps.step(CLLM4REC):
        train_cllm4rec(data, backbone, runs[CLLM4REC], seed)
    with steps.step(LCREC):
        train_lcrec(data, backbone, runs[LCREC], seed)
    with steps.step("evaluation of models and baselines on the test split"):
        reports = measure({name: load_recommender(run) for name, run in runs.items()}, data)
        for name, run in runs.items():
            reports[name].save(run / "evaluation-test-given-train.json", overwrite=True)
            update_card(run, data)
    path = write_page(folder, data, runs, reports, steps)
    print("\n" + comparison_table(reports) + "\n\n" + "\n".join(sentences(reports)))
    print(f"\nThe report: {path}. It took {in_words(steps.seconds)}.")
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output", default="runs/demo", help="output folder, which is replaced")
    flags.add_argument("--seed", type=int, default=0, help="random seed")
    arguments = flags.parse_args(argv)
    show_log()
    folder = Path(arguments.output)
    if folder.exists() and any(folder.iterdir()) and not (folder / "run").exists():
        print(f"demo.py: error: --output {folder} is not empty and holds no demo; name another folder", file=sys.stderr)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    run_demo(make_synthetic_dataset(seed=arguments.seed), folder, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
