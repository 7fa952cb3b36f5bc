"""Strong generalization: data folders without some random users, or with these users only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import count_statistics

DRAW_SEED = 0
"""Seed of the random users, the same for every model."""


def hold_out_users(data: RecommendationData, share: float, folder: Path) -> tuple[RecommendationData, RecommendationData]:
    """Split a data folder by users, into training users and held-out users. Both parts keep the whole catalogue.

    Only users with train and test interactions are held out. An item without further interactions stays in the catalogue.

    Args:
        data: the data folder.
        share: share of the held-out users, between 0 and 1, both excluded.
        folder: folder for the two data folders `known` and `unseen`; existing ones are loaded.

    Returns:
        The data of the training users, and of the held-out users.

    Raises:
        InputError: the share leaves no user on one side.
    """
    if not 0 < share < 1:
        raise InputError(f"hold_out_users is {share}; it must lie between 0 and 1, both excluded")
    known_folder, unseen_folder = folder / "known", folder / "unseen"
    if known_folder.is_dir() and unseen_folder.is_dir():
        return RecommendationData.load(known_folder), RecommendationData.load(unseen_folder)
    lengths = [np.diff(data.histories(split).indptr) for split in ("train", "test")]
    candidates = np.flatnonzero((lengths[0] > 0) & (lengths[1] > 0))
    count = round(share * len(candidates))
    if not 0 < count < data.num_users:
        raise InputError(f"hold_out_users is {share}, which is {count} of {data.num_users} users; choose another share")
    drawn = np.zeros(data.num_users, dtype=bool)
    drawn[np.random.default_rng(DRAW_SEED).choice(candidates, count, replace=False)] = True
    return _of_users(data, ~drawn).save(known_folder, True), _of_users(data, drawn).save(unseen_folder, True)


def sample_users(data: RecommendationData, count: int) -> RecommendationData:
    """Return the data of random users, as if there were no others. The whole catalogue stays.

    Args:
        data: the data folder.
        count: number of users.

    Returns:
        Data named after the folder and the count, not saved yet.

    Raises:
        InputError: `count` is below 1, or leaves no user out.
    """
    if not 0 < count < data.num_users:
        raise InputError(f"train_users is {count}; it must be 1 or more and below the {data.num_users} users of the data")
    drawn = np.zeros(data.num_users, dtype=bool)
    drawn[np.random.default_rng(DRAW_SEED).choice(data.num_users, count, replace=False)] = True
    sample = _of_users(data, drawn)
    folder = data.folder.resolve()
    # The name and the line of the protocol are part of existing reports.
    return dataclasses.replace(sample, folder=folder.with_name(f"{folder.name}-{count}-people"))  # codespell:ignore people


def _of_users(data: RecommendationData, chosen: np.ndarray) -> RecommendationData:
    """Return the data of chosen users, whose indices become 0, 1, ...; the catalogue is not changed."""
    users = data.interactions["user_index"].to_numpy()
    table = data.interactions.filter(pa.array(chosen[users]))
    renumbered = (np.cumsum(chosen) - 1).astype(np.int32)[table["user_index"].to_numpy()]
    table = table.set_column(table.column_names.index("user_index"), "user_index", pa.array(renumbered))
    kept = data.users.filter(pa.array(chosen))
    statistics: dict[str, Any] = count_statistics(table, kept.num_rows, data.num_items)
    if "review" in table.column_names:
        statistics["reviews"] = table.num_rows - table["review"].null_count
    sample = f"{kept.num_rows} of {data.num_users} people, drawn with seed {DRAW_SEED}"  # codespell:ignore people
    info = {
        **data.info,
        "statistics": statistics,
        "protocol": {**data.info["protocol"], "line": f"{data.info['protocol']['line']}; {sample}"},
    }
    return RecommendationData(kept, data.items, table, info, data.folder)
