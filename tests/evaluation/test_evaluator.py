"""One evaluation from end to end on a tiny world, by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from modeling_cllm4rec.baselines.popularity import PopularityRecommender, RandomRecommender
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate, parse_metrics, select_users
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

# (user, item): popularity in train: items 0 to 5 have 3, 2, 1, 1, 0, 0 users. User 3 has nothing in test.
TRAIN = [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (3, 1), (3, 3)]
VALIDATION = [(0, 2), (1, 1), (3, 0)]
TEST = [(0, 3), (1, 4), (1, 3), (2, 5)]


@pytest.fixture
def data():
    rows = [(*pair, "train") for pair in TRAIN]
    rows += [(*pair, "validation") for pair in VALIDATION]
    rows += [(*pair, "test") for pair in TEST]
    user_index, item_index, split = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
    return RecommendationData(
        users=pa.table({"user_id": ["u0", "u1", "u2", "u3"]}),
        items=pa.table({"item_id": [10, 11, 12, 13, 14, 15]}),
        interactions=pa.table(
            {
                "user_index": pa.array(user_index, pa.int32()),
                "item_index": pa.array(item_index, pa.int32()),
                "split": split,
            }
        ),
        info={"protocol": {"split": "random", "line": "random split, seed 7"}},
        folder=Path("data/tiny"),
    )


class Recorder:
    """Popularity that writes down what it was asked."""

    num_items = 6

    def __init__(self, data):
        self.popularity = PopularityRecommender.fit(data)
        self.asked = {}
        self.batches = []

    def score_histories(self, user_indices, histories):
        self.batches.append(user_indices.tolist())
        for row, user in enumerate(user_indices.tolist()):
            self.asked[user] = histories.items[histories.indptr[row] : histories.indptr[row + 1]].tolist()
        return self.popularity.score_histories(user_indices, histories)


def run(data, recommender=None, **changes):
    options = {"split": "test", "metrics": ["recall@2"], "progress": False, "n_resamples": 50} | changes
    return evaluate(recommender or PopularityRecommender.fit(data), data, **options)


@pytest.mark.filterwarnings("ignore:1 of 4 users have no test items")
class TestByHand:
    # Masking train, popularity ranks 2 3 4 5 for user 0, 1 3 4 5 for user 1, 1 2 3 4 5 for user 2.

    def test_values(self, data):
        report = run(data, metrics=["recall@1", "recall@2", "mrr@4", "hit_rate@2", "ndcg@3", "coverage@2"])
        assert report.user_indices.tolist() == [0, 1, 2]
        per_user = {name: values.tolist() for name, values in report.per_user.items()}
        assert per_user["recall@1"] == [0, 0, 0]
        assert per_user["recall@2"] == [1, 0.5, 0]
        assert per_user["mrr@4"] == [0.5, 0.5, 0]
        assert per_user["hit_rate@2"] == [1, 1, 0]
        second, third = 1 / np.log2(3), 1 / np.log2(4)
        assert per_user["ndcg@3"] == pytest.approx([second, (second + third) / (1 + second), 0])
        assert report.metrics["recall@2"] == 0.5
        assert report.metrics["coverage@2"] == 3 / 6
        assert "coverage@2" not in per_user and "coverage@2" not in report.intervals

    def test_protocol(self, data):
        protocol = run(data).protocol
        assert (protocol.dataset, protocol.splitting) == ("tiny", "random split, seed 7")
        assert (protocol.split, protocol.test_history, protocol.masked) == ("test", "train", "train")
        assert (protocol.items, protocol.users, protocol.excluded_users) == (6, 3, 1)

    def test_train_histories(self, data):
        recorder = Recorder(data)
        run(data, recorder)
        assert recorder.asked == {0: [0, 1], 1: [0, 2], 2: [0]}

    def test_train_and_validation_histories_are_masked_too(self, data):
        recorder = Recorder(data)
        report = run(data, recorder, test_history="train+validation")
        assert recorder.asked == {0: [0, 1, 2], 1: [0, 2, 1], 2: [0]}
        assert report.protocol.masked == "train+validation"
        # Now popularity ranks 3 4 5 for user 0, 3 4 5 for user 1.
        assert report.per_user["recall@2"].tolist() == [1, 1, 0]

    def test_mask_of_its_own(self, data):
        report = run(data, test_history="train+validation", mask="train")
        assert report.per_user["recall@2"].tolist() == [1, 0.5, 0]
        report = run(data, mask="none", metrics=["recall@4"])
        assert report.protocol.masked == "none"
        assert report.per_user["recall@4"].tolist() == [1, 0.5, 0]  # everyone is shown 0 1 2 3

    def test_k_of_the_whole_catalogue(self, data):
        assert run(data, metrics=["recall@6"]).metrics == {"recall@6": 1.0}

    @pytest.mark.parametrize("batch_size", [1, 2, 100])
    def test_batches_change_nothing(self, data, batch_size):
        recommender = RandomRecommender(6, seed=3)
        expected = run(data, recommender, metrics=["ndcg@3", "coverage@1"])
        report = run(data, recommender, metrics=["ndcg@3", "coverage@1"], batch_size=batch_size)
        assert report.metrics == expected.metrics
        assert report.intervals == expected.intervals

    def test_longest_histories_come_first(self, data):
        recorder = Recorder(data)
        run(data, recorder, batch_size=2)
        assert recorder.batches == [[0, 1], [2]]

    def test_intervals(self, data):
        report = run(data, n_resamples=500)
        low, high = report.intervals["recall@2"]
        assert 0 <= low < 0.5 < high <= 1
        assert run(data, n_resamples=500).intervals == report.intervals
        assert run(data, n_resamples=0).intervals == {}


def test_validation_split(data):
    with pytest.warns(UserWarning, match="1 of 4 users have no validation items and are excluded"):
        report = run(data, split="validation")
    assert report.user_indices.tolist() == [0, 1, 3]
    assert report.per_user["recall@2"].tolist() == [1, 1, 1]


def test_users_left_out_are_counted_once(data):
    with pytest.warns(UserWarning, match="1 of 4 users have no test items and are excluded") as caught:
        report = run(data)
    assert len(caught) == 1
    assert caught[0].filename.endswith("test_evaluator.py")
    assert report.protocol.excluded_users == 1


def test_nobody_to_evaluate(data):
    rest = data.interactions.filter(pc.not_equal(data.interactions["split"], "test"))
    data = dataclasses.replace(data, interactions=rest)
    with pytest.raises(ValueError, match="no user has interactions in the test split"):
        run(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["recall@40"]}, "recall@40 needs 40 items, the catalogue has 6"),
        ({"metrics": ["recal@2"]}, r"unknown metric 'recal@2': allowed are recall@k, .* did you mean 'recall@2'\?"),
        ({"metrics": ["recall"]}, "metric 'recall' needs a whole number of at least 1 after the @"),
        ({"metrics": ["recall@0"]}, "metric 'recall@0' needs a whole number"),
        ({"metrics": ["recall@-1"]}, "metric 'recall@-1' needs a whole number"),
        ({"metrics": ["recall@2", "recall@02"]}, "metrics names one twice"),
        ({"metrics": []}, "metrics must be a non-empty list"),
        ({"metrics": "recall@2"}, "metrics must be a non-empty list of names such as 'recall@20', got 'recall@2'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"n_resamples": -1}, "n_resamples must be 0 .* or more, got -1"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"split": "train"}, "split must be one of validation, test, got 'train'"),
        ({"test_history": "test"}, "test_history must be one of"),
        ({"mask": "all"}, "masked must be one of"),
        ({"split": "validation", "test_history": "train+validation"}, "the validation split is predicted"),
        ({"split": "validation", "mask": "train+validation"}, "the validation split is predicted"),
        ({"recommender": RandomRecommender(7)}, "the recommender scores 7 items, but the data has 6"),
    ],
)
def test_refuses(data, changes, message):
    with pytest.raises(ValueError, match=message):
        run(data, **changes)


@pytest.mark.filterwarnings("ignore:1 of 4 users have no test items")
def test_scores_of_a_wrong_shape(data):
    recommender = PopularityRecommender.fit(data)
    recommender.scores = recommender.scores[:5]
    with pytest.raises(ValueError, match=r"score_histories returned shape \(3, 5\) for 3 users and 6 items"):
        run(data, recommender)


def test_parse_metrics():
    assert [(request.metric, request.k) for request in parse_metrics(["hit_rate@1", "coverage@12"], 12)] == [
        ("hit_rate", 1),
        ("coverage", 12),
    ]


def test_select_users():
    histories = histories_from_lists([[5, 1], [], [3], [2, 0, 4]])
    chosen = select_users(histories, np.array([3, 1, 0]))
    assert chosen.indptr.tolist() == [0, 3, 3, 5]
    assert chosen.items.tolist() == [2, 0, 4, 5, 1]
    assert select_users(histories, np.array([], dtype=np.int64)).indptr.tolist() == [0]


class Beams:
    """A search with given results: lists of items for users 0, 1, 2."""

    num_items = 6
    decoding = "constrained search with 3 beams"

    def __init__(self, *found):
        self.found = np.array(found)

    def rank_histories(self, user_indices, histories, seen, k):
        return self.found[user_indices, :k]


@pytest.mark.filterwarnings("ignore:1 of 4 users have no test items")
class TestSearch:
    def test_values_by_hand(self, data):
        report = run(data, Beams([3, 2], [1, 4], [4, -1]), metrics=["recall@1", "recall@2"])
        # test items: user 0 {3}, user 1 {4, 3}, user 2 {5}
        assert report.per_user["recall@1"].tolist() == [1.0, 0.0, 0.0]
        assert report.per_user["recall@2"].tolist() == [1.0, 0.5, 0.0]
        assert str(report.protocol).endswith("constrained search with 3 beams")

    @pytest.mark.parametrize(
        ("found", "recall", "shown"),
        [([6, 3], 1.0, [1, 3, 4]), ([-2, 3], 1.0, [1, 3, 4]), ([3, 3], 1.0, [1, 3, 4]), ([1, 2], 0.0, [1, 2, 4])],
    )
    def test_items_that_are_none_or_twice_or_seen_are_counted(self, data, found, recall, shown):
        with pytest.warns(UserWarning, match="^1 recommendations are invalid, duplicate or seen items"):
            report = run(data, Beams(found, [1, 4], [4, -1]), metrics=["recall@1", "recall@2", "coverage@2"])
        assert report.illegal_items == 1
        assert report.per_user["recall@2"].tolist() == [recall, 0.5, 0.0]
        assert report.per_user["recall@1"][0] == (found[0] == 3)  # what is illegal keeps its place
        assert report.metrics["coverage@2"] == pytest.approx(len(shown) / 6)
        assert report.protocol_line.endswith("constrained search with 3 beams; illegal items 1")

    def test_none_of_them_is_said_too(self, data):
        report = run(data, Beams([3, 2], [1, 4], [4, -1]))
        assert report.illegal_items == 0 and report.to_dict()["illegal_items"] == 0
        assert report.to_markdown().endswith("illegal items 0.")
        assert run(data).illegal_items is None

    def test_users_without_a_list_are_counted_and_miss(self, data):
        with pytest.warns(UserWarning, match="^1 of 3 users got no items; they have 0 in all metrics"):
            report = run(data, Beams([3, 2], [-1, -1], [5, -1]), metrics=["recall@2"])
        assert report.per_user["recall@2"].tolist() == [1.0, 0.0, 1.0]
        assert report.protocol_line.endswith("illegal items 0; 1 users without a list")
        assert report.to_markdown().endswith("illegal items 0; 1 users without a list.")
        assert report.to_dict()["users_without_list"] == 1 and run(data).users_without_list == 0

    def test_shape(self, data):
        with pytest.raises(ValueError, match=r"rank_histories returned shape \(3, 1\) for 3 users and k 2"):
            run(data, Beams([3], [1], [4]))


@pytest.mark.filterwarnings("ignore:1 of 4 users have no test items")
class TestSample:
    def test_is_fixed_and_said(self, data):
        first, second = run(data, max_users=2), run(data, max_users=2)
        assert first.user_indices.tolist() == second.user_indices.tolist()
        assert len(first.user_indices) == 2 and set(first.user_indices) <= {0, 1, 2}
        assert "2 users (a random sample of 3, seed 0)" in str(first.protocol)
        whole = run(data)
        shown = np.isin(whole.user_indices, first.user_indices)
        assert first.per_user["recall@2"].tolist() == whole.per_user["recall@2"][shown].tolist()

    def test_of_more_users_than_there_are_is_all(self, data):
        assert run(data, max_users=99).protocol == run(data).protocol

    def test_must_be_positive(self, data):
        with pytest.raises(ValueError, match="max_users must be at least 1, got 0"):
            run(data, max_users=0)


@pytest.mark.filterwarnings("ignore:1 of 4 users have no test items")
def test_slices_are_metrics_over_the_true_items_of_one_kind(data):
    """A slice that holds all true items has the metrics of the report, and the parts of a slice hold all of them."""
    recommender = RandomRecommender(data.num_items, seed=3)
    shared = {"metrics": ["recall@2", "ndcg@3", "coverage@2"], "n_resamples": 0, "progress": False}
    train = data.histories("train")
    report = evaluate(recommender, data, "test", slice_by=train, **shared)
    plain = evaluate(recommender, data, "test", **shared)
    assert report.metrics == plain.metrics and plain.slices == {}
    counts = len(data.histories("test").items)
    for parts in report.slices.values():
        assert sum(one.targets for one in parts.values()) == counts
    by_length = report.slices["history_length"].values()
    assert sum(one.users for one in by_length) == report.users, "each user has one length"
    for metric in ("recall@2", "ndcg@3"):
        total = sum(one.users * one.metrics[metric] for one in by_length)
        assert total / report.users == pytest.approx(report.metrics[metric])
        for one in by_length:
            own = ~np.isnan(one.per_user[metric])
            assert one.per_user[metric][own].tolist() == report.per_user[metric][own].tolist() and own.sum() == one.users
    nobody = Histories(np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32))
    (never,) = evaluate(recommender, data, "test", slice_by=nobody, **shared).slices["relation"].values()
    assert never.metrics == {name: value for name, value in report.metrics.items() if name != "coverage@2"}
