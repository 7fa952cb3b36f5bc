"""Classes of a user's own and files of ranked lists in a benchmark."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.baselines import BASELINES, fit_baseline
from modeling_cllm4rec.benchmark.models import make_jobs
from modeling_cllm4rec.benchmark.recipes import Recipes, read_recipes
from modeling_cllm4rec.benchmark.results import read_tables
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import top_k

Quality = Callable[..., int]
NONE = Recipes({}, {})
MODULE = """
import numpy as np
from modeling_cllm4rec.baselines.popularity import PopularityRecommender
from modeling_cllm4rec.baselines.registry import baseline

SPACE = {"power": {"choice": [1.0, 2.0]}}

@baseline("own-powered", title="powered popularity", summary="a test", deterministic=True, space=SPACE)
class Powered(PopularityRecommender):
    @classmethod
    def fit(cls, data, *, power=2.0):
        made = super().fit(data)
        made.scores = made.scores**power
        return made
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a class of a user's own; its order of items is that of popularity."""
    module = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(BASELINES)
    yield f"{module}:Powered"
    BASELINES.clear()
    BASELINES.update(before)
    sys.modules.pop(module, None)


@pytest.fixture
def lists(data: RecommendationData, tmp_path: Path) -> Path:
    """Ten items of popularity for each user, in a path with characters that have a meaning in other names."""
    popularity, histories = fit_baseline("popularity", data), data.histories("train")
    best = top_k(popularity.score_histories(None, histories), 10, histories)[0]  # type: ignore[union-attr]
    users = np.repeat(np.arange(data.num_users), 10)
    columns = {
        "user_id": data.users["user_id"].take(pa.array(users)),
        "item_id": data.items["item_id"].take(pa.array(best.ravel())),
        "rank": np.tile(np.arange(1, 11), data.num_users),
    }
    path = tmp_path / "other+lr=0.1.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_both_in_a_report(quality: Quality, own: str, lists: Path, in_process: list[str], tmp_path: Path) -> None:
    """The numbers are those of popularity, whose order of items both have."""
    models = f"popularity,{own},ease+{own},lists:{lists}"
    assert quality("--models", models, "--tune", "2", "--seeds", "2") == 0
    rows = {row.model: row for row in read_tables(tmp_path / "report", 20)[1][0].rows}
    assert set(rows) == {"popularity", own, f"ease+{own}", f"lists:{lists.name}"}
    for name in (own, f"lists:{lists.name}"):
        assert rows[name].means == rows["popularity"].means and rows[name].is_baseline and rows[name].seeds == [1]
    assert rows[f"lists:{lists.name}"].protocol.decoding == f"ranked lists of {lists.name}"  # type: ignore[union-attr]
    text = (tmp_path / "report" / "report.md").read_text()
    assert str(tmp_path) not in text and f"| {lists.name} | 1 |" in text and f"| EASE + {own} | 1 |" in text
    assert rows[own].chosen == "tuned on validation, 2 trials by recall@5"
    assert sum("seed" not in name for name in in_process) == 3, "of EASE, of the class, and of the weights of their sum"
    in_process.clear()
    assert quality("--models", models, "--tune", "2", "--seeds", "2") == 0
    assert in_process == []
    table = pq.read_table(lists)
    pq.write_table(table.slice(0, table.num_rows), lists, compression="none")
    assert quality("--models", models, "--tune", "2", "--seeds", "2") == 0
    assert in_process == [f"lists-{lists.name.replace('+', '-').replace('=', '-')}-seed1"], "a changed file is evaluated again"


def test_settings_of_a_class_in_the_yaml_file(own: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"baselines: {{'{own}': {{power: 3.0}}}}")
    (job,) = make_jobs([own], [1], read_recipes(tmp_path / "a.yaml"))
    assert job.recipe["settings"] == {"power": 3.0} and list(job.recipe["sha256"]) == [own]
    (tmp_path / "a.yaml").write_text(f"baselines: {{'{own}': {{powr: 3.0}}}}")
    with pytest.raises(ValueError, match="has no setting 'powr'; did you mean 'power'"):
        read_recipes(tmp_path / "a.yaml")


def test_lists_have_no_held_out_users(own: str, lists: Path) -> None:
    jobs = make_jobs([own, f"lists:{lists}"], [1], NONE, hold_out=True)
    assert [(job.model.partition(":")[0] == "lists", job.case) for job in jobs] == [
        (False, "everyone"),
        (True, "everyone"),
        (False, "unseen-people"),
    ]


def test_names_that_are_refused(own: str, tmp_path: Path) -> None:
    for name, message in (
        ("nowhere:A", "the module 'nowhere' cannot be imported from here"),
        (f"{own}s", "has no 'Powereds'; did you mean 'Powered'"),
        (f"lists:{tmp_path}/none.parquet", "models: .*none.parquet cannot be read"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            make_jobs([name], [1], NONE)


def test_lists_cannot_rank_sampled_items(quality: Quality, lists: Path, tmp_path: Path) -> None:
    assert quality("--models", f"lists:{lists}", "--sampled-negatives", "5") == 1
    (path,) = (tmp_path / "report" / "jobs").glob("*.json")
    assert "sampled_negatives: ranked lists of other" in json.loads(path.read_text())["error"]
