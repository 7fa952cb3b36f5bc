"""An offline end-to-end run on synthetic data: data, backbone, both systems, evaluation, recommendations.

python recipes/demo.py
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from modeling_cllm4rec.baselines.popularity import PopularityRecommender, RandomRecommender
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.cllm4rec.pretraining import pretrain
from modeling_cllm4rec.cllm4rec.prompts import Prompts
from modeling_cllm4rec.commands.stage_arguments import parse_arguments
from modeling_cllm4rec.core.catalogue import Catalogue, Recommendations
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.synthetic import make_synthetic_dataset
from modeling_cllm4rec.evaluation.evaluator import comparison_table, evaluate
from modeling_cllm4rec.evaluation.searching import SearchingRecommender
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.hub.model_card import update_card
from modeling_cllm4rec.lcrec.alignment import align
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.training.backbones import train_backbone

CONFIGS = Path(__file__).parent / "configs"
METRICS = ("recall@10", "recall@20", "ndcg@10", "coverage@10")
BEAMS = 40
"""Beam size of LC-Rec in the table: twice the length of the longest list, 20."""
QUERY = "something for a quiet evening"


def make_data(folder: Path, seed: int) -> tuple[RecommendationData, Path]:
    """Write a synthetic data set as a data folder and train a small language model on its texts."""
    dataset = make_synthetic_dataset(seed=seed)
    data = prepare_tables(dataset.interactions, dataset.items, dataset.users, folder / "data", split="random", seed=seed)
    return data, train_backbone(data, folder / "backbone", seed=seed)


def train_cllm4rec(data: RecommendationData, backbone: Path, run: Path, seed: int) -> None:
    """Pretrain and finetune."""
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


def write_review(run: Path, data: RecommendationData) -> tuple[str, str]:
    """Generate a review for the first validation pair by the content LM; return the prompt in words and the review."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    writer = AutoModelForCausalLM.from_pretrained(run).eval()
    validation = data.histories("validation")
    user = int((validation.indptr[1:] > validation.indptr[:-1]).argmax())
    item = int(validation.items[validation.indptr[user]])
    prompt = Prompts().review.format(user=f"<user_{user}>", item=f"<item_{item}>")
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    closing = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    written = writer.generate(ids, max_new_tokens=60, do_sample=False, **closing)
    words = f"{data.users['user_id'][user]} reviews {data.items['title'][item]!s}"
    return words, str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def report(runs: dict[str, Path], data: RecommendationData) -> None:
    """Print metrics of both systems and of the popularity and random baselines, recommendations, and a generated review."""
    loaded: list[Any] = [load_recommender(run) for run in runs.values()]
    cllm4rec, lcrec = loaded
    recommenders: dict[str, Any] = {
        "random": RandomRecommender(data.num_items),
        "popularity": PopularityRecommender.fit(data),
        "CLLM4Rec": cllm4rec,
        "LC-Rec": SearchingRecommender(lcrec, {"num_beams": BEAMS}),
    }
    reports = {name: evaluate(one, data, "test", metrics=METRICS, progress=False) for name, one in recommenders.items()}
    for name, run in runs.items():
        reports[name].save(run / "evaluation-test-given-train.json", overwrite=True)
        update_card(run, data)
    print("\n" + comparison_table(reports))
    for name in runs:
        ratio = reports[name].metrics["ndcg@10"] / reports["popularity"].metrics["ndcg@10"]
        print(f"\n{name} reaches {ratio:.1f} x the NDCG@10 of popularity.", end="")
    user = cllm4rec.users.ids.ids_of([0])[0]
    last = cllm4rec.catalogue.titles(cllm4rec.users.history(0)[-5:])
    print(f"\n\n{user!r} chose: " + "; ".join(str(title) for title in last) + "\nrecommendations by")
    for name, model in zip(runs, (cllm4rec, lcrec), strict=True):
        print(f"  {name}:")
        show(model.recommend(users=[user], k=5), model.catalogue)
    print(f"\nLC-Rec for the query {QUERY!r}:")
    show(lcrec.search([QUERY], k=3), lcrec.catalogue)
    words, review = write_review(runs["CLLM4Rec"], data)
    print(f"\nCLLM4Rec generates: {words}\n  {review}")


def show(recommendations: Recommendations, catalogue: Catalogue) -> None:
    """Print recommendations with titles."""
    for row in recommendations.to_pylist():
        title = catalogue.titles(catalogue.ids.indices_of([row["item"]]))[0]
        print(f"    {row['rank']}. {title}   ({row['item']!r}, score {row['score']:.2f})")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output", default="runs/demo", help="output folder, which is replaced")
    flags.add_argument("--seed", type=int, default=0, help="random seed")
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    disable_progress_bar()
    started, folder = time.perf_counter(), Path(arguments.output)
    if folder.exists() and any(folder.iterdir()) and not (folder / "run").exists():
        print(f"demo.py: error: --output {folder} is not empty and holds no demo; name another folder", file=sys.stderr)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    data, backbone = make_data(folder, arguments.seed)
    runs = {"CLLM4Rec": folder / "run", "LC-Rec": folder / "lcrec"}
    train_cllm4rec(data, backbone, runs["CLLM4Rec"], arguments.seed)
    train_lcrec(data, backbone, runs["LC-Rec"], arguments.seed)
    report(runs, data)
    places = ", ".join(f"{run} (card: {run / 'README.md'})" for run in runs.values())
    print(f"\nThe checkpoints are in {places}. Time: {time.perf_counter() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
