"""Item-kNN and EASE on the CLLM4Rec authors' Beauty split, against figures that were measured with other code."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.evaluation.evaluator import evaluate

BEAUTY = Path(__file__).parents[2].parent / "shared" / "data" / "cllm4rec-beauty"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BEAUTY.is_dir(), reason=f"needs the Beauty split in {BEAUTY}"),
]


@pytest.fixture(scope="module")
def beauty(tmp_path_factory):
    tables = [pq.read_table(BEAUTY / f"{name}.parquet") for name in ("interactions", "items")]
    return prepare_tables(*tables, None, tmp_path_factory.mktemp("beauty") / "beauty", split="given")


@pytest.mark.parametrize(
    ("name", "settings", "expected", "spread"),
    [
        # Many items are equally similar: which of them come first differs from one implementation to the next.
        ("itemknn", {"shrink": 0.0}, (0.1377, 0.1850, 0.0941), 5e-4),
        ("itemknn", {"shrink": 5.0}, (0.1540, 0.1998, 0.1026), 5e-4),
        ("itemknn", {"shrink": 20.0}, (0.1634, 0.2113, 0.1083), 5e-4),
        ("ease", {"regularization": 100.0}, (0.1768, 0.2252, 0.1153), 6e-5),
        ("ease", {"regularization": 100.0, "precision": "float32"}, (0.1768, 0.2252, 0.1153), 6e-5),
    ],
)
def test_figures_measured_elsewhere(beauty, name, settings, expected, spread):
    report = evaluate(fit_baseline(name, beauty, **settings), beauty, split="test", progress=False, n_resamples=0)
    assert list(report.metrics) == ["recall@20", "recall@40", "ndcg@100"]
    assert list(report.metrics.values()) == pytest.approx(list(expected), abs=spread)
