"""External ids and dense indices, the catalogue, the known users, and their files."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.core.catalogue import CATALOGUE_FILE, USERS_FILE, Catalogue, IdMap, KnownUsers, Recommendations

TEXT_IDS = st.text(st.characters(exclude_categories=["Cs"]))
INTEGER_IDS = st.integers(-(2**63), 2**63 - 1)
AWKWARD = ["user 1", "<item_3>", "🎸", "", " ", "nan", "None", "0", "a\nb", "ä"]


@given(st.one_of(st.lists(TEXT_IDS, unique=True, min_size=1), st.lists(INTEGER_IDS, unique=True, min_size=1)))
def test_ids_and_indices_are_inverse(ids):
    id_map = IdMap(ids, "item_id")
    assert len(id_map) == len(ids)
    assert id_map.indices_of(ids).tolist() == list(range(len(ids)))
    assert id_map.indices_of(reversed(ids)).tolist() == list(reversed(range(len(ids))))
    given_back = id_map.ids_of(range(len(ids)))
    assert given_back == ids
    assert [type(value) for value in given_back] == [type(value) for value in ids]


def test_ids_of_awkward_shape():
    id_map = IdMap(AWKWARD, "item_id")
    assert id_map.indices_of(AWKWARD).tolist() == list(range(len(AWKWARD)))


@pytest.mark.parametrize("ids", [pa.array([7, 3]), pa.chunked_array([[7], [3]]), np.array([7, 3]), pd.Series([7, 3]), (7, 3)])
def test_ids_come_in_any_container(ids):
    id_map = IdMap(ids, "item_id")
    assert id_map.indices_of([3, 7]).tolist() == [1, 0]
    assert id_map.indices_of(np.array([3, 7], np.int32)).tolist() == [1, 0]


def test_no_ids():
    assert IdMap(["a"], "item_id").indices_of([]).tolist() == []
    assert IdMap(["a"], "item_id").ids_of([]) == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", 1], "item_id mixes types .*; give all strings or all integers"),
        (["a", float("nan")], "item_id mixes types .*; give all strings or all integers"),
        ([1, 2.5], "item_id has type double; external ids are strings or integers"),
        ([True, False], "item_id has type bool; external ids are strings or integers"),
        (["a", None], "item_id has 1 empty ids; give every row an id"),
        (["a", "b", "a", "b"], r"item_id names some ids twice: \['a', 'b'\]; ids must be unique"),
        ("abc", r"item_id is the string 'abc'; give a list of ids, as \['abc'\]"),
    ],
)
def test_ids_that_are_none(ids, message):
    with pytest.raises(ValueError, match=message):
        IdMap(ids, "item_id")


def test_unknown_ids_are_named_or_skipped():
    id_map = IdMap(["a", "b"], "item_id")
    with pytest.raises(
        ValueError, match=r"6 unknown item_id: \['u', 'v', 'w', 'x', 'y'\]; the model knows 2\..*on_unknown='skip'"
    ):
        id_map.indices_of(["u", "v", "a", "w", "u", "x", "y", "z"])
    assert id_map.indices_of(["b", "u", "a"], "skip").tolist() == [1, -1, 0]
    with pytest.raises(ValueError, match="on_unknown is 'ignore'; allowed are 'raise' and 'skip'"):
        id_map.indices_of(["a"], "ignore")


@pytest.mark.parametrize("unknown", [2**40, -1, 2**63, 2**70])
def test_an_integer_of_any_size_may_be_unknown(unknown):
    id_map = IdMap(pa.array([7, 3], pa.int32()), "item_id")
    assert id_map.indices_of([3, unknown], "skip").tolist() == [1, -1]
    with pytest.raises(ValueError, match=rf"1 unknown item_id: \[{unknown}\]"):
        id_map.indices_of([unknown])


def test_integers_beyond_64_bits_with_sign():
    id_map = IdMap(pa.array([2**63 + 1, 2**63, 3], pa.uint64()), "item_id")
    assert id_map.indices_of([3, 2**63 + 1, 2**63]).tolist() == [2, 0, 1]
    assert id_map.indices_of([-1, 2**63 + 2, 2**63], "skip").tolist() == [-1, -1, 1]


@pytest.mark.parametrize("on_unknown", ["raise", "skip"])
def test_ids_of_another_type_are_never_only_unknown(on_unknown):
    with pytest.raises(ValueError, match=r"item_id: got \[1\], but the ids of this catalogue are strings; convert"):
        IdMap(["1"], "item_id").indices_of(["1", 1], on_unknown)
    with pytest.raises(ValueError, match=r"item_id: got \['1', True, 1.0\], but the ids of this catalogue are integers"):
        IdMap([1], "item_id").indices_of(["1", True, 1.0], on_unknown)


def test_ids_from_a_command_line():
    assert IdMap(["1"], "user_id").parse(["1", "x"]) == ["1", "x"]
    assert IdMap([1], "user_id").parse(["1", "-2"]) == [1, -2]
    with pytest.raises(ValueError, match="user_id: .*'x'.*; the ids of this catalogue are integers"):
        IdMap([1], "user_id").parse(["x"])


def test_the_fingerprint_knows_ids_order_and_type():
    fingerprints = [IdMap(ids, "item_id").fingerprint for ids in (["1", "2"], ["2", "1"], [1, 2], ["12"], ["1", "2", ""])]
    assert len(set(fingerprints)) == len(fingerprints)
    assert IdMap(pa.array(["1", "2"], pa.large_string()), "item_id").fingerprint == fingerprints[0]
    assert IdMap(pa.array([1, 2], pa.int32()), "item_id").fingerprint == fingerprints[2]


def test_catalogue_round_trip(tmp_path):
    table = pa.table({"item_id": AWKWARD, "title": [None, *AWKWARD[1:]], "price": range(len(AWKWARD))})
    Catalogue(table).save(tmp_path)
    loaded = Catalogue.load(tmp_path / CATALOGUE_FILE)
    assert loaded.table.column_names == ["item_id", "title"]
    assert loaded.table["item_id"].to_pylist() == AWKWARD
    assert loaded.titles([0, 2]) == [None, "🎸"]
    assert loaded.ids.fingerprint == Catalogue(AWKWARD).ids.fingerprint


def test_catalogue_of_ids_alone(tmp_path):
    catalogue = Catalogue([30, 10])
    catalogue.save(tmp_path)
    loaded = Catalogue.load(tmp_path / CATALOGUE_FILE)
    assert loaded.ids.ids_of([1, 0]) == [10, 30]
    assert loaded.titles([0, 1]) == [None, None]
    assert len(loaded) == 2


def test_catalogue_without_ids():
    with pytest.raises(ValueError, match=r"the catalogue has no column 'item_id', only \['asin'\]"):
        Catalogue(pa.table({"asin": ["a"]}))


HISTORIES = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), min_size=1, max_size=6)


@given(HISTORIES)
def test_users_round_trip(tmp_path_factory, histories):
    folder = tmp_path_factory.mktemp("users")
    indptr = np.cumsum([0, *[len(history) for history in histories]])
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    users = KnownUsers([f"user {number}" for number in range(len(histories))], indptr, items)
    users.save(folder)
    loaded = KnownUsers.load(folder / USERS_FILE)
    assert loaded.has_histories
    assert [loaded.history(user).tolist() for user in range(len(loaded))] == histories
    assert loaded.ids.ids_of(range(len(loaded))) == users.ids.ids_of(range(len(users)))


def test_users_of_many_row_groups(tmp_path):
    table = pa.table({"user_id": [5, 6, 7], "history": [[1], [], [2, 3]]})
    pq.write_table(table, tmp_path / USERS_FILE, row_group_size=1)
    loaded = KnownUsers.load(tmp_path / USERS_FILE)
    assert [loaded.history(user).tolist() for user in range(3)] == [[1], [], [2, 3]]


def test_users_without_histories(tmp_path):
    users = KnownUsers(["ann", "bob"], np.array([0, 1, 3]), np.array([4, 5, 6]))
    users.without_histories().save(tmp_path)
    assert pq.read_table(tmp_path / USERS_FILE).column_names == ["user_id"]
    loaded = KnownUsers.load(tmp_path / USERS_FILE)
    assert len(loaded) == 2
    assert not loaded.has_histories
    with pytest.raises(ValueError, match="saved without its users' histories; pass histories= together with users="):
        loaded.history(0)


@pytest.mark.parametrize("histories", [(np.array([0, 1]), None), (None, np.array([1])), (np.array([0]), np.array([]))])
def test_half_of_the_histories(histories):
    with pytest.raises(ValueError, match=r"histories: give indptr \(users \+ 1,\) and items together, or neither"):
        KnownUsers(["ann"], *histories)


@pytest.mark.parametrize("load", [Catalogue.load, KnownUsers.load])
def test_a_file_that_is_cut_off(load, tmp_path):
    Catalogue(AWKWARD).save(tmp_path)
    path = tmp_path / CATALOGUE_FILE
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"catalogue.parquet is no readable Parquet file .*; it may be cut off"):
        load(path)


@pytest.fixture
def recommendations() -> Recommendations:
    return Recommendations(
        pa.table(
            {
                "user": ["ann", "ann", "bob"],
                "item": [30, 10, 10],
                "rank": pa.array([1, 2, 1], pa.int32()),
                "score": pa.array([0.5, 0.25, 1.0], pa.float32()),
            }
        )
    )


def test_recommendations_as_lists_frames_and_files(recommendations, tmp_path):
    assert len(recommendations) == 3
    assert recommendations.to_pylist()[1] == {"user": "ann", "item": 10, "rank": 2, "score": 0.25}
    assert recommendations.items("ann") == [30, 10]
    assert recommendations.items("cid") == []
    assert list(recommendations.to_pandas().columns) == ["user", "item", "rank", "score"]
    recommendations.to_parquet(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(recommendations.table)
    assert repr(recommendations).startswith("Recommendations(3 rows)\n")
    assert "0.25" in repr(recommendations)
