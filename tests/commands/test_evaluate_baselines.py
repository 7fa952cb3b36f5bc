"""`cllm4rec evaluate --baselines` with a sum, a class of a user's own and a file of ranked lists."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, next_item_segments
from modeling_cllm4rec.commands.evaluate import main
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import top_k

MODULE = """
from modeling_cllm4rec.baselines.popularity import PopularityRecommender

class Own(PopularityRecommender):
    pass
"""


@pytest.fixture(scope="module")
def model(data: RecommendationData, tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    made = CLLM4RecForRecommendation.from_backbone(
        tiny_backbones["gpt2"], users=data.users["user_id"].to_pylist(), catalogue=data.items["item_id"].to_pylist()
    )
    made.config.recommendation_prompts = next_item_segments(Prompts(), AutoTokenizer.from_pretrained(tiny_backbones["gpt2"]))
    made.save_pretrained(folder)
    return str(folder)


def test_all_kinds_of_baselines(
    model: str,
    data: RecommendationData,
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own_of_evaluate.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    popularity, histories = fit_baseline("popularity", data), data.histories("train")
    best = top_k(popularity.score_histories(None, histories), 10, histories)[0]  # type: ignore[union-attr]
    users = data.users["user_id"].take(pa.array(np.repeat(np.arange(data.num_users), 10)))
    items = data.items["item_id"].take(pa.array(best.ravel()))
    pq.write_table(
        pa.table({"user_id": users, "item_id": items, "rank": np.tile(np.arange(10), data.num_users)}), tmp_path / "a.parquet"
    )
    names = ["popularity", "own_of_evaluate:Own", f"lists:{tmp_path / 'a.parquet'}", "ease+own_of_evaluate:Own"]
    words = ["--model", model, "--data", str(data_folder), "--metrics", "recall@10", "--json", "--output", str(tmp_path / "out")]
    assert main([*words, "--baselines", *names]) == 0
    sys.modules.pop("own_of_evaluate", None)
    reports = json.loads(capsys.readouterr().out)
    assert list(reports)[:4] == names
    recalls = [reports[name]["metrics"]["recall@10"] for name in names]
    assert recalls[0] == recalls[1] == recalls[2] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("popularty", "there is no baseline 'popularty'; did you mean 'popularity'?"),
        ("nowhere:A", "nowhere:A: the module 'nowhere' cannot be imported from here"),
        ("lists:none.parquet", "none.parquet: there is no such file"),
    ],
)
def test_a_wrong_name_is_one_line(
    model: str, data_folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert main(["--model", model, "--data", str(data_folder), "--baselines", name]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line
