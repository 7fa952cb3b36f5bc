"""Pairwise accuracy against three kinds of negatives, by hand and through the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from lcrec_models import HISTORIES, ITEMS, USERS, new_lcrec
from pairwise_accuracy import KINDS, main, negatives, pairs_of, wins

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables


def test_negatives_and_wins_by_hand() -> None:
    similarities = np.array([[9.0, 2.0, 3.0, 3.0], [0.0, 9.0, 0.0, 0.0]])
    owned = np.array([[True, False, False, False], [False, True, False, False]])
    targets = np.array([0, 1])
    assert negatives(similarities, targets, owned).tolist() == [2, -1]
    scores = np.array([[1.0, 0.0, 0.5, 9.0], [1.0, 2.0, 3.0, 4.0]])
    assert wins(scores, targets, np.array([2, 2])).tolist() == [1, 0]
    assert wins(scores, targets, np.array([3, 1])).tolist() == [0, 0.5]
    assert np.isnan(wins(scores, targets, np.array([-1, 2]))).tolist() == [True, False]


def world(folder: Path) -> RecommendationData:
    """Return the users and items of the tiny model; the last item of each history is the true one."""
    rows = [(user, item) for user, history in enumerate(([0, 3, 5], [1, 11, 2], HISTORIES[2])) for item in history]
    pairs = pa.table({"user_id": [USERS[user] for user, _ in rows], "item_id": [ITEMS[item] for _, item in rows]})
    items = pa.table({"item_id": ITEMS, "title": [f"lamp kind{number // 3}" for number in range(12)]})
    return prepare_tables(pairs, items, None, folder, split="leave-one-out", order="rows", keep_all_items=True)


def test_negatives_of_a_data_folder(tmp_path: Path) -> None:
    """Training: 0; 1; 2, 3, 4, 5. Targets: 5, 2, 7. Item 5 shares its user with 2, 3 and 4, item 2 with 3, 4 and 5."""
    users, targets, against = pairs_of(world(tmp_path / "data"), "test", "tfidf", seed=0)
    assert users.tolist() == [0, 1, 2] and targets.tolist() == [5, 2, 7]
    assert against["collaborative"].tolist() == [2, 3, -1]  # user 0 has 3; no training history has 7
    assert against["language"].tolist() == [4, 0, 8]  # the kinds are 3 to 5, 0 to 2 and 6 to 8
    assert list(against) == list(KINDS)
    few, of_few, against_few = pairs_of(world(tmp_path / "again"), "test", "tfidf", seed=0, max_users=2)
    rows = np.searchsorted(users, few)
    assert len(few) == 2 and np.array_equal(of_few, targets[rows])
    assert all(np.array_equal(against_few[kind], against[kind][rows]) for kind in ("language", "collaborative"))
    with pytest.raises(InputError, match="max_users is 0; it must be 1 or more"):
        pairs_of(world(tmp_path / "none"), "test", "tfidf", seed=0, max_users=0)
    owned = [{0, 3, 5}, {1, 11, 2}, {2, 3, 4, 5, 6, 7}]
    for kind in KINDS:
        assert not any(item in own for item, own in zip(against[kind].tolist(), owned, strict=True))


def test_command(tmp_path: Path, tiny_backbones: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data = world(tmp_path / "data")
    model, tokenizer = new_lcrec(tiny_backbones["llama"])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--baselines", "popularity"]
    assert main([*words, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert list(table) == ["popularity", "LC-Rec"] and table["LC-Rec"]["collaborative"][3] == 2
    users, targets, against = pairs_of(data, "test", "tfidf", seed=0)
    scores = model.score_histories(users, data.histories("train"))
    expected = np.nanmean(wins(scores, targets, against["random"]))
    assert table["LC-Rec"]["random"][0] == pytest.approx(expected)
    assert main([*words, "--batch-size", "1"]) == 0
    assert "| LC-Rec | " in capsys.readouterr().out


def test_all_items_owned(tmp_path: Path) -> None:
    pairs = pa.table({"user_id": ["a"] * 3, "item_id": [1, 2, 3]})
    items = pa.table({"item_id": [1, 2, 3], "title": ["red lamp", "red tea", "tea lamp"]})
    data = prepare_tables(pairs, items, None, tmp_path / "data", split="leave-one-out", order="rows")
    with pytest.raises(InputError, match="a user has all items, so there is no negative"):
        pairs_of(data, "test", "tfidf", seed=0)
