"""Files of ranked lists as recommenders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.baselines import baseline_settings, fit_baseline, get_baseline
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate, top_k
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

METRICS = ["recall@10", "ndcg@10", "coverage@10"]


@pytest.fixture(scope="module")
def table(data: RecommendationData) -> pa.Table:
    """Ten items of popularity for each user, with rank and score, in random order."""
    popularity: Any = fit_baseline("popularity", data)
    histories = data.histories("train")
    best, scores = top_k(popularity.score_histories(None, histories), 10, histories)
    users = np.repeat(np.arange(data.num_users), 10)
    table = pa.table(
        {
            "user_id": data.users["user_id"].take(pa.array(users)),
            "item_id": data.items["item_id"].take(pa.array(best.ravel())),
            "rank": np.tile(np.arange(1, 11), data.num_users),
            "score": scores.ravel(),
        }
    )
    return table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))


def write(table: pa.Table, path: Path) -> str:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pa_csv.write_csv(table, path)
    else:
        table.to_pandas().to_json(path, orient="records", lines=True)
    return f"lists:{path}"


def metrics_of(recommender: Any, data: RecommendationData) -> dict[str, float]:
    return evaluate(recommender, data, "test", metrics=METRICS, n_resamples=0, progress=False).metrics


@pytest.mark.parametrize("by", ["rank", "score"])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_lists_have_the_metrics_of_their_recommender(
    data: RecommendationData, table: pa.Table, tmp_path: Path, by: str, suffix: str
) -> None:
    """Popularity has many equal scores, so the order of ties is part of this test."""
    name = write(table.select(["user_id", "item_id", by]), tmp_path / f"a+b.{suffix}")
    lists = fit_baseline(name, data)
    assert metrics_of(lists, data) == metrics_of(fit_baseline("popularity", data), data)
    assert lists.decoding == f"ranked lists of a+b.{suffix}"  # type: ignore[union-attr]


def test_row_of_a_file(table: pa.Table, tmp_path: Path) -> None:
    name = write(table, tmp_path / "a.parquet")
    row = get_baseline(name)
    assert row.deterministic and not row.space and row.source == str(tmp_path / "a.parquet")
    assert baseline_settings(name) == {}
    with pytest.raises(InputError, match="fixes path="):
        fit_baseline(name, None, path="b")  # type: ignore[arg-type]


def test_seen_and_repeated_items_are_counted(data: RecommendationData, tmp_path: Path) -> None:
    history = data.histories("train")
    first = history.items[history.indptr[:-1]]
    unseen = [np.setdiff1d(np.arange(data.num_items), row)[0] for row in np.split(history.items, history.indptr[1:-1])]
    items = np.stack([first, unseen, unseen], axis=1)  # seen, legal, repeated
    table = pa.table(
        {
            "user_id": data.users["user_id"].take(pa.array(np.repeat(np.arange(data.num_users), 3))),
            "item_id": data.items["item_id"].take(pa.array(items.ravel())),
            "rank": np.tile([1, 2, 3], data.num_users),
        }
    )
    lists = fit_baseline(write(table, tmp_path / "a.parquet"), data)
    with pytest.warns(UserWarning, match="illegal|is no item|seen"):
        report = evaluate(lists, data, "test", metrics=["recall@3"], n_resamples=0, progress=False)
    assert report.illegal_items == 2 * report.protocol.users


def test_short_lists_are_padded_with_a_warning(data: RecommendationData, table: pa.Table, tmp_path: Path) -> None:
    lists: Any = fit_baseline(write(table, tmp_path / "a.parquet"), data)
    with pytest.warns(UserWarning, match="a.parquet has lists of fewer than 12 items; empty ranks count as misses"):
        ranked = lists.rank_histories(np.array([3, 0]), histories_from_lists([[], []]), None, 12)
    assert ranked.shape == (2, 12) and (ranked[:, 10:] == -1).all() and (ranked[:, :10] >= 0).all()


def test_users_without_lists(data: RecommendationData, table: pa.Table, tmp_path: Path) -> None:
    known = data.users["user_id"].to_pylist()[:50]
    few = table.filter(pa.array([user in known for user in table["user_id"].to_pylist()]))
    lists: Any = fit_baseline(write(few, tmp_path / "few.parquet"), data)
    with pytest.raises(InputError, match=r"few.parquet has no list for 10 of all 60 users, and 10 of them are evaluated in one"):
        metrics_of(lists, data)
    with pytest.raises(InputError, match="few.parquet has lists by user; it cannot rank for histories without users"):
        lists.rank_histories(None, histories_from_lists([[1]]), None, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": None}, "has the columns user_id, item_id; ranked lists also need rank or score"),
        ({"user_id": ["nobody"] * 3}, r"the data has no user_id 'nobody' \(1 unknown\); remove their rows"),
        ({"item_id": ["a", "b", "c"]}, r"the data has no item_id 'a', 'b', 'c' \(3 unknown\)"),
        ({"item_id": [None, "b", "c"]}, "item_id is empty in 1 rows"),
        ({"rank": [1, 2, 2]}, r"user .* has the rank 2 twice; ranks must be unique"),
        ({"rank": [1.0, None, 3.0]}, "rank is empty or not finite in 1 rows, first in row 2"),
        ({"rank": ["1", "2", "third"]}, "rank holds a value that is no number"),
    ],
)
def test_tables_that_are_refused(
    data: RecommendationData, tmp_path: Path, change: dict[str, list[Any] | None], message: str
) -> None:
    user, items = str(data.users["user_id"][0]), list(map(str, data.items["item_id"].to_pylist()[:3]))
    columns = {"user_id": [user] * 3, "item_id": items, "rank": [1, 2, 3], **change}
    path = tmp_path / "a.csv"
    if None in [value for column in columns.values() if column for value in column]:
        path = tmp_path / "a.parquet"
    name = write(pa.table({key: column for key, column in columns.items() if column is not None}), path)
    with pytest.raises(InputError, match=message):
        fit_baseline(name, data)


def test_files_that_are_missing(data: RecommendationData) -> None:
    with pytest.raises(MissingFileError, match="none.parquet: there is no such file"):
        fit_baseline("lists:none.parquet", data)
    with pytest.raises(InputError, match="'lists:' names no file; write lists:FILE"):
        fit_baseline("lists:", data)
