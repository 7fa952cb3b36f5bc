"""Random people of a data folder: those who are kept out of training whole and met when they ask, or the only ones there are."""

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
"""Start of the random numbers that draw the people: the same for every model."""


def hold_out_people(data: RecommendationData, share: float, folder: Path) -> tuple[RecommendationData, RecommendationData]:
    """Part a data folder by people: those to train on, and those to recommend to. Both keep the whole catalogue.

    Only people with train and test interactions are drawn. An item that nobody else interacted with stays in the catalogue.

    Args:
        data: the data folder.
        share: of the people, between 0 and 1, both excluded.
        folder: where the two data folders are written, as `known` and `unseen`; what is there already is read.

    Returns:
        The data of the known people, and of the unseen ones.

    Raises:
        InputError: the share leaves nobody on one side.
    """
    if not 0 < share < 1:
        raise InputError(f"hold_out_users is {share}; it must lie between 0 and 1, both excluded")
    places = (folder / "known", folder / "unseen")
    if all(place.is_dir() for place in places):
        return RecommendationData.load(places[0]), RecommendationData.load(places[1])
    lengths = [np.diff(data.histories(split).indptr) for split in ("train", "test")]
    candidates = np.flatnonzero((lengths[0] > 0) & (lengths[1] > 0))
    count = round(share * len(candidates))
    if not 0 < count < data.num_users:
        raise InputError(f"hold_out_users is {share}, which is {count} of {data.num_users} people; choose another share")
    drawn = np.zeros(data.num_users, dtype=bool)
    drawn[np.random.default_rng(DRAW_SEED).choice(candidates, count, replace=False)] = True
    known, unseen = (_people(data, chosen).save(place, True) for chosen, place in zip((~drawn, drawn), places, strict=True))
    return known, unseen


def draw_people(data: RecommendationData, count: int) -> RecommendationData:
    """The data of some people, drawn at random, as if there were no others. The whole catalogue stays.

    Args:
        data: the data folder.
        count: of people.

    Returns:
        Data named after the folder and the count, not written yet.

    Raises:
        InputError: `count` is below 1, or leaves nobody out.
    """
    if not 0 < count < data.num_users:
        raise InputError(f"train_users is {count}; it must be 1 or more and below the {data.num_users} people of the data")
    drawn = np.zeros(data.num_users, dtype=bool)
    drawn[np.random.default_rng(DRAW_SEED).choice(data.num_users, count, replace=False)] = True
    people = _people(data, drawn)
    return dataclasses.replace(people, folder=(place := data.folder.resolve()).with_name(f"{place.name}-{count}-people"))


def _people(data: RecommendationData, chosen: np.ndarray) -> RecommendationData:
    """The data of some people, whose indices become 0, 1, ...; the catalogue stays as it is."""
    users = data.interactions["user_index"].to_numpy()
    table = data.interactions.filter(pa.array(chosen[users]))
    renumbered = (np.cumsum(chosen) - 1).astype(np.int32)[table["user_index"].to_numpy()]
    table = table.set_column(table.column_names.index("user_index"), "user_index", pa.array(renumbered))
    people = data.users.filter(pa.array(chosen))
    statistics: dict[str, Any] = count_statistics(table, people.num_rows, data.num_items)
    if "review" in table.column_names:
        statistics["reviews"] = table.num_rows - table["review"].null_count
    line = f"{data.info['protocol']['line']}; {people.num_rows} of {data.num_users} people, drawn with seed {DRAW_SEED}"
    info = {**data.info, "statistics": statistics, "protocol": {**data.info["protocol"], "line": line}}
    return RecommendationData(people, data.items, table, info, data.folder)
