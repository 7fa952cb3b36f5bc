"""The whole job on a generated world, offline: data, backbone, pretraining, finetuning, evaluation, recommendations.

    python recipes/demo.py
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.prompts import Prompts
from modeling_cllm4rec.corpora.small_world import make_small_world
from modeling_cllm4rec.evaluation.baselines import PopularityRecommender, RandomRecommender
from modeling_cllm4rec.evaluation.evaluator import comparison_table, evaluate
from modeling_cllm4rec.hub.model_card import update_card
from modeling_cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.training.arguments import FinetuneArguments, PretrainArguments, parse_arguments
from modeling_cllm4rec.training.backbones import train_backbone
from modeling_cllm4rec.training.finetuning import finetune
from modeling_cllm4rec.training.pretraining import pretrain

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
METRICS = ("recall@10", "recall@20", "ndcg@10", "coverage@10")


def train(folder: Path, seed: int) -> tuple[RecommendationData, Path]:
    """Generate, prepare, pretrain and finetune; the data and the folder of the finished model."""
    world = make_small_world(seed=seed)
    data = prepare_tables(world.interactions, world.items, world.users, folder / "data", split="random", seed=seed)
    run = folder / "run"
    backbone = train_backbone(data, folder / "backbone", seed=seed)
    common = ["--config", str(CONFIG), "--data", str(data.folder), "--output", str(run), "--seed", str(seed)]
    pretrain(parse_arguments(PretrainArguments, "pretrain", [*common, "--backbone", str(backbone)]))
    finetune(parse_arguments(FinetuneArguments, "finetune", common))
    return data, run


def write_review(run: Path, data: RecommendationData) -> tuple[str, str]:
    """What the content LM writes for the first validation pair: the prompt in words, and the review."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    writer = AutoModelForCausalLM.from_pretrained(run).eval()
    held = data.histories("validation")
    user = int((held.indptr[1:] > held.indptr[:-1]).argmax())
    item = int(held.items[held.indptr[user]])
    prompt = Prompts().review.format(user=f"<user_{user}>", item=f"<item_{item}>")
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    closing = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    written = writer.generate(ids, max_new_tokens=60, do_sample=False, **closing)
    words = f"{data.users['user_id'][user]} reviews {data.items['title'][item]!s}"
    return words, str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def report(run: Path, data: RecommendationData) -> None:
    """Metrics beside popularity and random, five recommendations with titles, one written review."""
    model = CLLM4RecForRecommendation.from_pretrained(run)
    recommenders = {"random": RandomRecommender(data.num_items), "popularity": PopularityRecommender.fit(data), "CLLM4Rec": model}
    reports = {name: evaluate(one, data, "test", metrics=METRICS, progress=False) for name, one in recommenders.items()}
    reports["CLLM4Rec"].save(run / "evaluation-test-given-train.json", overwrite=True)
    update_card(run, data)
    print("\n" + comparison_table(reports))
    ratio = reports["CLLM4Rec"].metrics["ndcg@10"] / reports["popularity"].metrics["ndcg@10"]
    print(f"\nCLLM4Rec reaches {ratio:.1f} x the NDCG@10 of popularity.")
    assert model.catalogue is not None and model.users is not None
    user = model.users.ids.ids_of([0])[0]
    print(f"\n{user!r} chose: " + "; ".join(str(title) for title in model.catalogue.titles(model.users.history(0)[-5:])))
    print("and might like:")
    for row in model.recommend(users=[user], k=5).to_pylist():
        title = model.catalogue.titles(model.catalogue.ids.indices_of([row["item"]]))[0]
        print(f"  {row['rank']}. {title}   ({row['item']!r}, score {row['score']:.2f})")
    words, review = write_review(run, data)
    print(f"\n{words}:\n  {review}")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output", default="runs/demo", help="folder for everything; what is in it is replaced")
    flags.add_argument("--seed", type=int, default=0, help="start of all random numbers")
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    disable_progress_bar()
    started, folder = time.perf_counter(), Path(arguments.output)
    if folder.exists() and any(folder.iterdir()) and not (folder / "run").exists():
        print(f"demo.py: error: --output {folder} holds something else than a demo; name another folder", file=sys.stderr)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    data, run = train(folder, arguments.seed)
    report(run, data)
    print(f"\nThe checkpoint lies in {run} (card: {run / 'README.md'}); all of this took {time.perf_counter() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
