"""Users held out of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modeling_cllm4rec.benchmark.strong_generalization import hold_out_users, sample_users
from modeling_cllm4rec.corpora.data_folder import RecommendationData


def test_users_are_split_and_the_catalogue_stays(data: RecommendationData, tmp_path: Path) -> None:
    known, unseen = hold_out_users(data, 0.2, tmp_path)
    assert (known.num_users, unseen.num_users) == (48, 12)
    assert known.items.equals(data.items) and unseen.items.equals(data.items)
    everyone = [str(one) for one in data.users["user_id"].to_pylist()]
    parts = [[str(one) for one in part.users["user_id"].to_pylist()] for part in (known, unseen)]
    assert sorted(parts[0] + parts[1]) == sorted(everyone)
    for part, ids in zip((known, unseen), parts, strict=True):
        part.validate()
        for split in ("train", "validation", "test"):
            whole, own = data.histories(split), part.histories(split)
            for place, user in enumerate(ids):
                old = everyone.index(user)
                theirs = whole.items[whole.indptr[old] : whole.indptr[old + 1]]
                assert np.array_equal(own.items[own.indptr[place] : own.indptr[place + 1]], theirs)
    assert "12 of 60 people, drawn with seed 0" in unseen.info["protocol"]["line"]  # codespell:ignore people


def test_what_is_there_is_read_again(data: RecommendationData, tmp_path: Path) -> None:
    first = hold_out_users(data, 0.2, tmp_path)[1]
    assert hold_out_users(data, 0.2, tmp_path)[1].users.equals(first.users)


@pytest.mark.parametrize(
    ("share", "message"),
    [(1.0, "must lie between 0 and 1"), (0.0, "must lie between 0 and 1"), (0.001, "which is 0 of 60 users; choose another")],
)
def test_shares_that_are_not_allowed(data: RecommendationData, tmp_path: Path, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hold_out_users(data, share, tmp_path)


def test_a_sample_of_users_is_independent_of_the_others(data: RecommendationData) -> None:
    few = sample_users(data, 25)
    few.validate()
    assert (few.num_users, few.num_items, few.folder.name) == (25, data.num_items, "small-world-25-people")
    assert few.info["statistics"]["train"] == len(few.histories("train").items) < len(data.histories("train").items)
    assert "25 of 60 people, drawn with seed 0" in few.info["protocol"]["line"]  # codespell:ignore people
    assert sample_users(data, 25).users.equals(few.users)
    for count in (0, 60):
        with pytest.raises(ValueError, match=f"train_users is {count}; it must be 1 or more and below the 60 users"):
            sample_users(data, count)
