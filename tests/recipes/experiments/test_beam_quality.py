"""The script `beam_quality.py`."""

from __future__ import annotations

import json
from pathlib import Path

import beam_quality
import numpy as np
import pytest
from transformers import AutoTokenizer

from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.evaluation.searching import SearchingRecommender
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.tokenization.tokenization_lcrec import add_semantic_id_tokens


@pytest.fixture(scope="module")
def model(data: RecommendationData, tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained LC-Rec: its beams disagree with exact scoring."""
    folder, train = tmp_path_factory.mktemp("lcrec"), data.histories("train")
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    numbers = np.random.default_rng(0).permutation(64)[: data.num_items]
    LCRecForRecommendation.from_backbone(
        tiny_backbones["gpt2"],
        semantic_ids=SemanticIds(np.stack([numbers // 3, numbers % 3], axis=1).astype(np.int32), 22),
        first_index_token=add_semantic_id_tokens(tokenizer, 2, 22),
        catalogue=Catalogue(data.items),
        users=KnownUsers(data.users["user_id"], train.indptr, train.items),
        recommendation_prompts=[[[1, 2], "items"]],
        separator=[3],
    ).save_pretrained(folder)
    return folder


def test_beams_against_exact_scoring(model: Path, data: RecommendationData, data_folder: Path, tmp_path: Path) -> None:
    flags = ["--test-history", "train", "--users", "30", "--batch-size", "7", "--output", str(tmp_path)]
    everything = str(data.num_items)
    assert beam_quality.main(["--model", str(model), "--data", str(data_folder), "--beams", "10", everything, *flags]) == 0
    report = json.loads((tmp_path / "beams.json").read_text())
    few, all_of_them, exact = report["rows"]
    assert [row["search"] for row in report["rows"]] == ["10 beams", f"{everything} beams", "exact"]
    assert all_of_them["found"] == exact["found"] == 1 > few["found"] > 0
    assert all_of_them["ndcg@10 - exact"] == exact["ndcg@10 - exact"] == [0, 0, 0]
    search = SearchingRecommender(LCRecForRecommendation.from_pretrained(model), {"num_beams": 10})
    again = evaluate(search, data, "test", metrics=["ndcg@10"], n_resamples=0, max_users=30, progress=False)
    assert few["ndcg@10"] == pytest.approx(again.metrics["ndcg@10"])
    assert few["ndcg@10 - exact"][0] == pytest.approx(few["ndcg@10"] - exact["ndcg@10"])
    assert f"| 10 beams | {few['hit_rate@10']:.4f} |" in (tmp_path / "beams.md").read_text()
    assert "30 users (a random sample" in report["protocol"]


def test_too_few_beams(model: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert beam_quality.main(["--model", str(model), "--data", str(data_folder), "--beams", "5"]) == 2
    assert "--beams has 5; 10 items are ranked, so each number must be 10 or more" in capsys.readouterr().err
