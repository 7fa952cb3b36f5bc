"""Popularity on the CLLM4Rec authors' Beauty split, against figures that were measured with other code."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.baselines.popularity import PopularityRecommender
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.evaluation.evaluator import evaluate

BEAUTY = Path(__file__).parents[2].parent / "shared" / "data" / "cllm4rec-beauty"

pytestmark = pytest.mark.skipif(not BEAUTY.is_dir(), reason=f"needs the Beauty split in {BEAUTY}")


class PopularityWithRandomTies(PopularityRecommender):
    """Popularity, in which a random number below 1/2 decides between items of one count."""

    def break_ties(self, seed):
        self.scores = self.scores + np.random.default_rng(seed).random(self.num_items, dtype=np.float32) / 2
        return self


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tables = [pq.read_table(BEAUTY / f"{name}.parquet") for name in ("interactions", "items")]
    return prepare_tables(*tables, None, tmp_path_factory.mktemp("beauty") / "beauty", split="given")


def test_popularity_with_ties_by_index(data):
    """These belong to the order of the items in the folder: several are equally popular around the 40th place."""
    report = evaluate(PopularityRecommender.fit(data), data, split="test", progress=False, n_resamples=300)
    assert {name: round(value, 4) for name, value in report.metrics.items()} == {
        "recall@20": 0.0407,
        "recall@40": 0.0699,
        "ndcg@100": 0.0302,
    }
    assert (report.protocol.users, report.protocol.excluded_users, report.protocol.items) == (10_553, 0, 6_086)
    for name, (low, high) in report.intervals.items():
        assert low < report.metrics[name] < high
        assert high - low < 0.01


def test_popularity_equals_the_measured_figures_up_to_ties(data):
    """Measured elsewhere: .0407 / .0709 / .0303, with ties in whatever order a partial sort left them."""
    rankers = [PopularityWithRandomTies.fit(data).break_ties(seed) for seed in range(5)]
    reports = [evaluate(ranker, data, split="test", progress=False, n_resamples=0) for ranker in rankers]
    for name, expected, spread in (
        ("recall@20", 0.0407, 5e-5),
        ("recall@40", 0.0709, 5e-4),
        ("ndcg@100", 0.0303, 2e-4),
    ):
        mean = np.mean([report.metrics[name] for report in reports])
        assert mean == pytest.approx(expected, abs=spread), name
