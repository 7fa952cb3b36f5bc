"""The rulers that read text and transitions, on real data, against figures that were measured with other code and settings.

The other code keeps all equally near neighbours, so a row with text differs by up to a few users.
"""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.released_files import read_lcrec_files
from modeling_cllm4rec.evaluation.evaluator import evaluate

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TITLES = {"fields": ["title", "brand", "categories"]}
LAST, HISTORY = {**TITLES, "neighbours": None}, {**TITLES, "recency": 1.0}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real data in {DATA}")]


@pytest.fixture(scope="module")
def scientific(tmp_path_factory):
    tables = read_lcrec_files(DATA / "lcrec-scientific")
    return prepare_tables(
        tables.interactions,
        tables.items,
        None,
        tmp_path_factory.mktemp("scientific") / "data",
        split="leave-one-out",
        order="rows",
    )


@pytest.fixture(scope="module")
def beauty(tmp_path_factory):
    tables = [pq.read_table(DATA / "cllm4rec-beauty" / f"{name}.parquet") for name in ("interactions", "items")]
    return prepare_tables(*tables, None, tmp_path_factory.mktemp("beauty") / "data", split="given")


@pytest.fixture(scope="module")
def instruments(tmp_path_factory):
    table = pq.read_table(DATA / "amazon14-musical-instruments" / "reviews.parquet")
    return prepare_tables(table, None, None, tmp_path_factory.mktemp("instruments") / "data", split="random", seed=42)


@pytest.mark.parametrize(
    ("name", "settings", "expected", "spread"),
    [
        ("ease-recency", {}, (0.0492, 0.0899, 0.1119, 0.0699, 0.0770), 6e-5),
        (
            "textknn-last+textknn",
            {"textknn-last": LAST, "textknn": HISTORY},
            (0.0405, 0.0822, 0.1040, 0.0624, 0.0695),
            5e-4,
        ),
        ("transition-graph+two-hop-graph", {"weights": {"two-hop-graph": 0.3}}, (0.0562, 0.0904, 0.1101, 0.0741, 0.0805), 2e-4),
        (
            "transition-graph+two-hop-graph+textknn-last+textknn",
            {"textknn-last": LAST, "textknn": HISTORY, "weights": {"two-hop-graph": 0.3, "textknn-last": 0.8, "textknn": 0.3}},
            (0.0606, 0.1011, 0.1264, 0.0814, 0.0895),
            2e-4,
        ),
        (
            "ease-recency+transition-graph+textknn-last+textknn",
            {"textknn-last": LAST, "textknn": HISTORY, "weights": {"transition-graph": 0.4, "textknn-last": 0.9, "textknn": 0.3}},
            (0.0602, 0.1064, 0.1347, 0.0840, 0.0931),
            2e-4,
        ),
    ],
)
def test_scientific(scientific, name, settings, expected, spread):
    names = ["hit_rate@1", "hit_rate@5", "hit_rate@10", "ndcg@5", "ndcg@10"]
    fitted = fit_baseline(name, scientific, **settings)
    report = evaluate(fitted, scientific, "test", "train+validation", metrics=names, progress=False, n_resamples=0)
    assert list(report.metrics.values()) == pytest.approx(list(expected), abs=spread)


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("textknn", None, (0.1313, 0.1885, 0.0873)),
        ("ease+textknn", 1.2, (0.1990, 0.2591, 0.1325)),
    ],
)
def test_beauty(beauty, name, weights, expected):
    fitted = fit_baseline(name, beauty, **({} if weights is None else {"weights": {"textknn": weights}}))
    report = evaluate(fitted, beauty, "test", progress=False, n_resamples=0)
    assert list(report.metrics.values()) == pytest.approx(list(expected), abs=6e-4)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("textknn", {}, (0.1763, 0.2625, 0.1146)),
        ("ease+textknn", {"ease": {"regularization": 1490.0}, "weights": {"textknn": 0.6}}, (0.2226, 0.3024, 0.1361)),
    ],
)
def test_instruments(instruments, name, settings, expected):
    """The texts are the training reviews without markup, in the other code as well."""
    report = evaluate(fit_baseline(name, instruments, **settings), instruments, "test", progress=False, n_resamples=0)
    assert list(report.metrics.values()) == pytest.approx(list(expected), abs=6e-5)
