"""From jobs to recommenders: stages that are shared and not run twice, LC-Rec, the head that was not finetuned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.validation import validate
from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Job, make_config
from modeling_cllm4rec.benchmark.measurement import measure
from modeling_cllm4rec.benchmark.training import finished, pairs_to_score, train, tune_baseline
from modeling_cllm4rec.cllm4rec.prompts import Prompts, next_item_segments, tokenize_template
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.searching import SearchingRecommender


def cllm4rec(backbone: Path) -> dict[str, Any]:
    return {
        "pretrain": {
            "backbone": str(backbone),
            "num_train_epochs": 1,
            "warmup_epochs": 0,
            "content_share": 0.0,
            "max_text_tokens": 12,
        },
        "finetune": None,
    }


def test_without_finetuning_the_next_item_head_ranks(
    data: RecommendationData, setting: BenchmarkConfig, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    job = Job("LLM-PreRec", "cllm4rec", 1, cllm4rec(tiny_backbones["gpt2"]))
    trained = train(job, setting, data, tmp_path)
    model = trained.recommender
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    prompts = next_item_segments(Prompts(), tokenizer)
    assert model.config.recommendation_prompts == prompts
    assert prompts["known"] == tokenize_template("{user} chose: {items}", tokenizer) and prompts["known"][-1] == "items"
    history = Histories(np.array([0, 2]), np.array([3, 5], dtype=np.int32))
    (row,) = model.build_prompts(np.array([4]), [history.items])
    assert row[-1] == model.config.id_offset + model.config.num_users + 5  # the state of the last item ranks what is next
    again = train(job, setting, data, tmp_path)
    assert again.cost == trained.cost  # found, not trained again
    assert np.array_equal(again.recommender.score_histories(None, history), model.score_histories(None, history))


def test_a_hybrid_adds_linear_models_to_the_same_training(
    data: RecommendationData, setting: BenchmarkConfig, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    alone = Job("LLM-PreRec", "cllm4rec", 1, cllm4rec(tiny_backbones["gpt2"]))
    settings = {"baselines": "ease", "settings": {"ease": {"regularization": 5.0}}}
    hybrid = dataclasses.replace(alone, model="hybrid", recipe={**alone.recipe, "hybrid": settings})
    plain = train(alone, setting, data, tmp_path)
    folders = sorted(tmp_path.iterdir())
    summed = train(hybrid, setting, data, tmp_path)
    assert sorted(tmp_path.iterdir()) == folders, "the model was there"
    assert plain.recommender.linear_parts is None and list(summed.recommender.linear_parts.weights) == ["ease"]
    assert (summed.cost.seconds or 0) > (plain.cost.seconds or 0) and summed.settings["hybrid"] == settings


def test_lcrec_is_indexed_aligned_and_searched_wide_enough(
    data: RecommendationData, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    recipe = {
        "index": {"method": "random", "num_levels": 2, "codebook_size": 8},
        "align": {
            "backbone": str(tiny_backbones["gpt2"]),
            "num_train_epochs": 1,
            "per_device_train_batch_size": 32,
            "tasks": ["seqrec"],
            "max_history": 4,
            "num_beams": 10,
            "eval_users": 5,
            "on_missing_text": "title-only",
        },
    }
    setting = make_config(data, metrics=("recall@20",))
    trained = train(Job("lcrec", "lcrec", 1, recipe), setting, data, tmp_path)
    assert isinstance(trained.recommender, SearchingRecommender)
    assert trained.recommender.settings["num_beams"] == 20 and trained.batch_size == 64
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["index", "lcrec"]
    assert (trained.cost.seconds or 0) > 0 and (trained.cost.peak_bytes or 0) > 10**8
    headed = {**recipe, "align": {**recipe["align"], "item_head": "free"}}
    scored = train(Job("head", "lcrec", 1, headed), setting, data, tmp_path).recommender
    assert "item head" in scored.decoding and "beam" not in scored.decoding, "as recommend does"


def test_tiger_trains_from_scratch_on_an_index(data: RecommendationData, setting: BenchmarkConfig, tmp_path: Path) -> None:
    recipe = {
        "index": {"method": "co-occurrence", "num_levels": 3, "codebook_size": 8},
        "align": {
            "scratch_layers": 1,
            "scratch_width": 16,
            "scratch_heads": 2,
            "scratch_context": 96,
            "tune": "full",
            "num_train_epochs": 1,
            "tasks": ["seqrec"],
            "max_history": 4,
            "num_beams": 10,
            "eval_users": 5,
            "init_tokens": "random",
        },
    }
    trained = train(Job("tiger", "tiger", 1, recipe), setting, data, tmp_path)
    config = trained.recommender.model.config
    assert config.text_config.n_layer == 1 and config.text_config.n_embd == 16 and config.item_encoder == {}
    assert config.codebook_size == 8 and config.num_levels <= 3


def test_text_only_is_fitted_and_asked_about_candidates_only(
    data: RecommendationData, tiny_backbones: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_config(data, metrics=("recall@5",), sampled_negatives=7, max_users=3)
    assert pairs_to_score(setting, data) == 3 * data.num_items + 3 * 8
    settings = {
        "backbone": str(tiny_backbones["gpt2"]),
        "positives": 8,
        "epochs": 1,
        "max_history": 2,
        "max_title_tokens": 6,
        "progress": False,
    }
    trained = train(Job("tallrec", "baseline", 1, {"name": "tallrec", "settings": settings}), setting, data, tmp_path)
    assert trained.settings["lora_rank"] == 8 and "planned_pairs" not in trained.settings
    train_histories = data.histories("train")
    whole = measure(trained.recommender, data, setting, setting.conditions[0], train_histories)
    assert whole.protocol.users == 3
    monkeypatch.setattr(trained.recommender, "score_histories", None)  # every item of the catalogue: not needed here
    sampled = measure(trained.recommender, data, setting, setting.conditions[1], train_histories)
    assert sampled.protocol.candidates.startswith("SAMPLED") and sampled.metrics["recall@5"] >= whole.metrics["recall@5"]


def test_a_trained_folder_of_other_users_is_refused(
    data: RecommendationData, setting: BenchmarkConfig, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    from modeling_cllm4rec.benchmark.strong_generalization import hold_out_users

    train(Job("x", "cllm4rec", 1, cllm4rec(tiny_backbones["gpt2"])), setting, data, tmp_path / "runs")
    folder = next((tmp_path / "runs").glob("*/pretrained"))
    known = hold_out_users(data, 0.2, tmp_path / "data")[0]
    with pytest.raises(ValueError, match="is a checkpoint of other users"):
        train(Job("mine", "folder", 1, {"path": str(folder), "sha256": ""}), setting, known, tmp_path)


def test_a_search_keeps_recipe_values_outside_the_space(data: RecommendationData, setting: BenchmarkConfig) -> None:
    """As the training will: of what no trial draws, the recipe's value, not the default."""
    recipe = {"name": "itemknn", "settings": {"fit_on": "train+validation", "shrink": 8.0}}
    setting = dataclasses.replace(setting, tune=2, tune_metric="ndcg@5")
    found = tune_baseline(Job("itemknn", "baseline", 1, recipe), setting, data)
    assert "fit_on" not in found["settings"] and "shrink" in found["settings"]
    for trial in found["trials"]:
        settings = json.loads(trial["settings"])
        values = [
            validate(fit_baseline("itemknn", data, fit_on=splits, **settings), data, "ndcg@5")
            for splits in ("train", "train+validation")
        ]
        assert trial["ndcg@5"] == pytest.approx(values[1]) != values[0]


def test_a_stage_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    first = finished(tmp_path, lambda: 2.5)
    assert first.seconds == 2.5 and first.peak_bytes
    assert not (tmp_path / "checkpoints").exists()
    assert finished(tmp_path, lambda: 9.0) == first
