"""From tables in memory to the data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import STEPS, prepare_tables, protocol_line

USERS = ["zoe", "zoe", "user_1", "zoe", "🙂 b", "user_1", "user_1", "🙂 b", "🙂 b"]
ITEMS = ["<item_3>", "b", "<item_3>", "c", "b", "b", "c", "c", "d"]
TIMES = [30, 10, 5, 20, 1, 7, 6, 3, 2]
REVIEWS = [f"words that only row {row} has" for row in range(9)]


def world(**columns: Any) -> pa.Table:
    return pa.table({"user_id": USERS, "item_id": ITEMS} | columns)


def prepare(tmp_path: Path, interactions: pa.Table, **arguments: Any) -> RecommendationData:
    tables = {name: arguments.pop(name, None) for name in ("items", "users")}
    order = "time" if "timestamp" in interactions.column_names else "rows"
    arguments = {"split": "leave-one-out", "order": order} | arguments
    return prepare_tables(interactions, tables["items"], tables["users"], tmp_path / "data", **arguments)


def test_indices_by_first_appearance_and_rows_by_time(tmp_path: Path) -> None:
    data = prepare(tmp_path, world(timestamp=TIMES))
    assert data.users.to_pydict() == {"user_id": ["zoe", "user_1", "🙂 b"]}
    assert data.items.to_pydict() == {"item_id": ["<item_3>", "b", "c", "d"]}
    assert data.interactions.to_pydict() == {
        "user_index": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "item_index": [1, 2, 0, 0, 2, 1, 1, 3, 2],
        "split": ["train", "validation", "test"] * 3,
        "timestamp": [10, 20, 30, 5, 6, 7, 1, 2, 3],
    }
    assert data.interactions.schema.field("user_index").type == pa.int32()


def test_without_times_rows_stay_in_order(tmp_path: Path) -> None:
    assert prepare(tmp_path, world()).interactions["item_index"].to_pylist() == [0, 1, 2, 0, 1, 2, 1, 2, 3]


def test_what_is_returned_is_what_is_loaded(tmp_path: Path) -> None:
    items = pa.table({"item_id": ["b", "<item_3>", "c", "d"], "title": list("BACD"), "price": [1.5, 2.0, None, 3.0]})
    made = prepare(tmp_path, world(timestamp=TIMES, rating=[5.0] * 9, review=REVIEWS), items=items)
    read = RecommendationData.load(tmp_path / "data")
    for table in ("users", "items", "interactions"):
        assert getattr(made, table).equals(getattr(read, table))
    assert (made.info, made.folder) == (read.info, read.folder)


def test_items_in_the_order_of_their_table(tmp_path: Path) -> None:
    items = pa.table({"title": list("DXBAC"), "item_id": ["d", "unseen", "b", "<item_3>", "c"]})
    data = prepare(tmp_path, world(), items=items)
    assert data.items.to_pydict() == {"item_id": ["d", "b", "<item_3>", "c"], "title": list("DBAC")}
    assert data.interactions["item_index"].to_pylist()[:3] == [2, 1, 3]
    data = prepare(tmp_path, world(), items=items, keep_all_items=True, overwrite=True)
    assert data.items["item_id"].to_pylist() == ["d", "unseen", "b", "<item_3>", "c"]
    assert data.interactions["item_index"].to_pylist()[:3] == [3, 2, 4]
    assert data.info["statistics"]["items_without_train"] == 3  # "d" and "c", always held out, and "unseen"


def test_items_and_users_without_texts(tmp_path: Path) -> None:
    items = pa.table({"item_id": ["c", "b"], "title": ["C", "B"]})
    users = pa.table({"user_id": ["stranger", "zoe"], "biography": ["?", "reads"]})
    with pytest.raises(ValueError, match="2 of 4 items .* not among the items: '<item_3>', 'd'; .* on_missing_item='keep'"):
        prepare(tmp_path, world(), items=items)
    with pytest.raises(ValueError, match="2 of 3 users .*: 'user_1', '🙂 b'; .* on_missing_user='keep'"):
        prepare(tmp_path, world(), users=users)
    data = prepare(tmp_path, world(), items=items, users=users, on_missing_item="keep", on_missing_user="keep")
    assert data.items.to_pydict() == {"item_id": ["c", "b", "<item_3>", "d"], "title": ["C", "B", None, None]}
    assert data.users.to_pydict() == {"user_id": ["zoe", "user_1", "🙂 b"], "biography": ["reads", None, None]}


def test_ids_keep_their_type(tmp_path: Path) -> None:
    pairs = pa.table({"user_id": pa.array([9, 9, 9], pa.int32()), "item_id": pa.array([5, 3, 4], pa.uint64())})
    items = pa.table({"item_id": pa.array([3, 4, 5], pa.int16())})
    data = prepare(tmp_path, pairs, items=items)
    assert data.users.schema.field("user_id").type == pa.int32()
    assert data.items.schema.field("item_id").type == pa.uint64()
    assert data.items["item_id"].to_pylist() == [3, 4, 5]
    with pytest.raises(ValueError, match="item_id is uint64 in the interactions, but large_string in the items"):
        prepare(tmp_path, pairs, items=pa.table({"item_id": ["3", "4", "5"]}), overwrite=True)


@pytest.mark.parametrize("split", ["random", "leave-one-out", "temporal", "given"])
def test_no_review_outside_train_is_in_any_file(tmp_path: Path, split: str) -> None:
    names = ["train", "test", "train", "validation", "train", "train", "test", "validation", "train"]
    raw = world(timestamp=TIMES, review=REVIEWS, split=names, summary=[f"sum {row}" for row in range(9)])
    raw = pa.concat_tables([raw.slice(0, 1).set_column(3, "review", [["a review that is replaced"]]), raw])
    data = prepare(tmp_path, raw, split=split, temporal_cuts=(0.4, 0.7))
    kept = {review for review in data.interactions["review"].to_pylist() if review}
    held = set(REVIEWS) - kept
    train = data.interactions["split"].to_pylist().count("train")
    assert len(kept) == train == data.info["statistics"]["reviews"]
    assert len(held) == 9 - train == data.info["statistics"]["reviews_withheld"]
    texts = b""
    for path in sorted((tmp_path / "data").iterdir()):
        texts += path.read_bytes()
        if path.suffix == ".parquet":  # once more as it is before compression
            plain = tmp_path / "plain.parquet"
            pq.write_table(pq.read_table(path), plain, compression="none", use_dictionary=False)
            texts += plain.read_bytes() + repr(pq.ParquetFile(path).metadata.to_dict()).encode()
    assert all(review.encode() in texts for review in kept)
    assert not any(review.encode() in texts for review in [*held, "a review that is replaced", "sum 0"])


def test_statistics_and_protocol(tmp_path: Path) -> None:
    raw = world(rating=[5, 4, 4, 4, 4, 4, 4, 4, 1], timestamp=TIMES, review=[*REVIEWS[:8], " "])
    raw = pa.concat_tables([raw, raw.slice(1, 1)])
    data = prepare(tmp_path, raw, min_rating=4, k_core=2, split="temporal", temporal_cuts=(0.6, 0.8), sources=[{"a": "b"}])
    assert data.info == {
        "format": 2,
        "statistics": {
            "users": 3,
            "items": 3,
            "interactions": 8,
            "train": 4,
            "validation": 2,
            "test": 2,
            "density": round(8 / 9, 9),
            "users_without_train": 1,
            "users_without_validation": 1,
            "users_without_test": 2,
            "items_without_train": 0,
            "reviews": 4,
            "reviews_withheld": 4,
        },
        "protocol": {
            "split": "temporal",
            "seed": None,
            "temporal_cuts": [0.6, 0.8],
            "cut_times": [7, 20],
            "filters": [
                {"filter": "duplicates", "value": "last", "removed": 1},
                {"filter": "min_rating", "value": 4, "removed": 1},
                {"filter": "k_core", "value": 2, "removed": 0},
            ],
            "line": "temporal split at the shares 0.6 and 0.8 of all interactions; last of repeated pairs kept; "
            "rating >= 4; 2-core",
        },
        "sources": [{"a": "b"}],
        "time_unit": "s",
    }
    assert data.info["protocol"]["line"] in (tmp_path / "data" / "README.md").read_text()


def test_the_first_of_repeated_purchases_changes_order_and_targets(tmp_path: Path) -> None:
    """Ann buys 1, 2, 3, 1: the last item is 1 if the last purchase counts, and 3 if the first does."""
    raw = pa.table({"user_id": ["ann"] * 4, "item_id": [1, 2, 3, 1], "timestamp": [1, 2, 3, 4]})
    for repeats, order in (("last", [2, 3, 1]), ("first", [1, 2, 3])):
        data = prepare(tmp_path / repeats, raw, split="leave-one-out", repeats=repeats)
        ids = data.items["item_id"].to_pylist()
        found = [ids[item] for split in ("train", "validation", "test") for item in data.histories(split).items.tolist()]
        assert found == order
        assert data.info["protocol"]["filters"][0] == {"filter": "duplicates", "value": repeats, "removed": 1}
        assert f"{repeats} of repeated pairs kept" in data.info["protocol"]["line"]


def test_protocol_lines() -> None:
    for split, line in (
        ("given", "given split"),
        ("leave-one-out", "leave-one-out split (last is test, last but one validation)"),
    ):
        assert protocol_line({"split": split, "seed": None, "filters": []}) == line


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)), max_size=40), st.integers(0, 9))
def test_every_pair_is_there_once(tmp_path: Path, rows: list[tuple[int, int, int]], seed: int) -> None:
    """Whatever goes in, the pairs in external ids come out, each once, in the order of time."""
    rows = [*rows, *((user, item, 0) for user in range(5) for item in (1, 3, 5))]
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    raw = pa.table({"user_id": [f"u{user}" for user in users], "item_id": items, "timestamp": times})
    data = prepare(tmp_path, raw, split="random", seed=seed, overwrite=True)
    indices = data.interactions.to_pydict()
    pairs = [
        (data.users["user_id"][user].as_py(), data.items["item_id"][item].as_py())
        for user, item in zip(indices["user_index"], indices["item_index"], strict=True)
    ]
    assert sorted(pairs) == sorted({(f"u{user}", item) for user, item, _ in rows})
    keys = np.array(indices["user_index"]) * 100 + np.array(indices["timestamp"])
    assert (np.diff(keys) >= 0).all()
    assert sum(len(data.histories(split).items) for split in ("train", "validation", "test")) == len(pairs)


def test_row_order_changes_indices_only(tmp_path: Path) -> None:
    splits = []
    for rows in (range(9), reversed(range(9))):
        data = prepare(tmp_path, world(timestamp=TIMES).take(pa.array(rows)), split="random", overwrite=True)
        table = data.interactions
        users = data.users["user_id"].take(table["user_index"]).to_pylist()
        items = data.items["item_id"].take(table["item_index"]).to_pylist()
        splits.append(dict(zip(zip(users, items, strict=True), table["split"].to_pylist(), strict=True)))
    assert splits[0] == splits[1]


def test_steps_are_announced(tmp_path: Path) -> None:
    steps: list[str] = []
    prepare(tmp_path, world(), on_step=steps.append)
    assert tuple(steps) == STEPS


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on_missing_item must be one of error, keep, got 'drop'"):
        prepare(tmp_path, world(), on_missing_item="drop")
    with pytest.raises(ValueError, match="keep_all_items needs a table of items"):
        prepare(tmp_path, world(), keep_all_items=True)
    assert not (tmp_path / "data").exists()
    prepare(tmp_path, world())
    with pytest.raises(FileExistsError, match="holds a data folder already"):
        prepare(tmp_path, pa.table({"nothing": [1]}))  # raised before any work


def test_the_licence_of_the_data_is_kept(tmp_path: Path) -> None:
    assert "license" not in prepare(tmp_path, world()).info
    assert prepare(tmp_path, world(), data_license="cc-by-4.0", overwrite=True).info["license"] == "cc-by-4.0"


def test_the_languages_of_the_texts_are_kept(tmp_path: Path) -> None:
    data = prepare(tmp_path, world(), data_language=["en", "deu"])
    assert data.info["language"] == ["en", "deu"]
    header = yaml.safe_load((data.folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert header["language"] == ["en", "deu"]
    for wrong in ("en", ["English"]):
        with pytest.raises(InputError, match="data_language is .*give a list of ISO 639 codes"):
            prepare(tmp_path, world(), data_language=wrong, overwrite=True)


def short() -> pa.Table:
    """One user of one interaction, one of two, and one of four; the last two items have one interaction each."""
    return pa.table({"user_id": list("abbcccc"), "item_id": [1, 1, 2, 1, 2, 3, 4], "timestamp": [1, 2, 3, 4, 5, 6, 7]})


def test_short_users_stay_in_train(tmp_path: Path) -> None:
    data = prepare(tmp_path, short())
    assert data.interactions["split"].to_pylist() == ["train"] * 5 + ["validation", "test"]
    assert data.info["statistics"]["short_users"] == 2
    assert data.info["protocol"]["short_users"] == {"fewer_than": 3, "users": 2, "in": "train"}
    assert "; 2 users with fewer than 3 interactions in train only; " in data.info["protocol"]["line"]


def test_short_users_are_dropped_without_their_items(tmp_path: Path) -> None:
    data = prepare(tmp_path, short(), short_users="drop")
    assert (data.users["user_id"].to_pylist(), data.num_items) == (["c"], 4)
    assert data.info["protocol"]["filters"][1] == {"filter": "short_users", "value": 3, "removed": 3}
    assert data.info["protocol"]["line"].endswith("; users with fewer than 3 interactions dropped")


def test_short_users_are_an_error(tmp_path: Path) -> None:
    message = "2 of 3 users have fewer: 'a', 'b'; pass short_users='train' to keep them in train, or 'drop'"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, short(), short_users="error")


@pytest.mark.parametrize(
    ("bounds", "users", "line"),
    [
        ({"min_user_interactions": 2}, ["b", "c"], "users with 2 or more interactions"),
        ({"max_user_interactions": 2}, ["a", "b"], "users with 2 or fewer interactions"),
        ({"min_item_interactions": 2}, ["a", "b", "c"], "items with 2 or more interactions"),
        ({"max_item_interactions": 2}, ["b", "c"], "items with 2 or fewer interactions"),
        (
            {"min_user_interactions": 1, "max_user_interactions": 3, "min_item_interactions": 2},
            ["a", "b"],
            "users with 1 or more and 3 or fewer interactions, items with 2 or more interactions",
        ),
    ],
)
def test_numbers_of_interactions(tmp_path: Path, bounds: dict[str, int], users: list[str], line: str) -> None:
    data = prepare(tmp_path, short(), **bounds)
    assert data.users["user_id"].to_pylist() == users
    assert data.info["protocol"]["line"].endswith(f"; {line}")


def test_order_of_rows_is_in_the_protocol(tmp_path: Path) -> None:
    raw = world(timestamp=list(reversed(range(9))))
    data = prepare(tmp_path, raw, order="rows")
    assert data.interactions["item_index"].to_pylist() == [0, 1, 2, 0, 1, 2, 1, 2, 3]
    assert data.interactions["timestamp"].to_pylist() == [8, 7, 5, 6, 3, 2, 4, 1, 0]
    line = "leave-one-out split (last is test, last but one validation) by the order of the rows"
    assert data.info["protocol"]["line"].startswith(line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "time"}, "'leave-one-out' needs a column of times; name it with timestamp_column"),
        ({"order": "file"}, "order must be one of time, rows, got 'file'"),
        ({"repeats": "both"}, "repeats must be one of first, last, got 'both'"),
        ({"short_users": "keep"}, "short_users must be one of train, drop, error, got 'keep'"),
        ({"k_core": -1}, "k_core must be at least 0"),
        ({"min_user_interactions": 0}, "min_user_interactions must be at least 1, got 0"),
        ({"k_core": 2, "min_item_interactions": 3}, "k_core is 2 and min_item_interactions is 3; .* give one of the two"),
        ({"min_user_interactions": 3, "max_user_interactions": 2}, "max_user_interactions is 2, below the least number 3"),
        ({"k_core": 9}, "no interaction is left of 9: .*k_core 9 removed 9; lower min_rating, k_core or the least numbers"),
        ({"min_rating": 4}, "min_rating 4 needs a column of ratings"),
    ],
)
def test_bad_filters(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, world(), **arguments)
    assert list(tmp_path.iterdir()) == []
