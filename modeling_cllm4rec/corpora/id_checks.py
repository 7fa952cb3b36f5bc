"""Compare the users and items of a model with those of a data folder."""

from __future__ import annotations

import numpy as np

from modeling_cllm4rec.core.catalogue import CATALOGUE_FILE, USERS_FILE, IdMap
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.data_folder import RecommendationData


def check_same_ids(model: RecommenderModel, data: RecommendationData, name: str) -> None:
    """Check that a model has the items and users of the data, in the same order.

    Item and user indices have the same meaning only then.

    Args:
        model: the model.
        data: the data folder.
        name: name of the model in the message.

    Raises:
        InputError: the items or the users differ, or the model has none.
    """
    for part, file in ((model.catalogue, CATALOGUE_FILE), (model.users, USERS_FILE)):
        if part is None:
            raise InputError(f"{name} has no {file}, so its rows cannot be compared with {data.folder}; copy its folder again")
    items, users = IdMap(data.items["item_id"], "item_id"), IdMap(data.users["user_id"], "user_id")
    if model.catalogue is None or model.catalogue.ids.fingerprint != items.fingerprint:
        raise InputError(
            f"{name} is a checkpoint of another catalogue than {data.folder}: its item ids or their order differ; "
            "use the data folder that it was trained on, or train on this one"
        )
    if model.users is None or model.users.ids.fingerprint != users.fingerprint:
        raise InputError(
            f"{name} is a checkpoint of other users than {data.folder}: its user ids or their order differ; "
            "use the data folder that it was trained on, or train on this one"
        )


def rows_of_ids(known: IdMap, now: IdMap, data: RecommendationData) -> np.ndarray:
    """Return the (known,) row in the data of each id of the model.

    Raises:
        InputError: ids of another type, or some that the data lacks.
    """
    if known.is_text != now.is_text:
        kinds = ["strings" if ids.is_text else "integers" for ids in (known, now)]
        raise InputError(
            f"{known.name}: the model's ids are {kinds[0]}, those of {data.folder} {kinds[1]}; prepare it again by id_type"
        )
    rows = now.indices_of(known.array.to_pylist(), on_unknown="skip")
    if (rows < 0).any():
        missing = known.ids_of(np.flatnonzero(rows < 0)[:5])
        hint = "keep their interactions in it"
        if known.name == "item_id":
            hint = "prepare it with keep_all_items=True, or remove them from the model with remove_items"
        raise InputError(
            f"{data.folder} lacks {(rows < 0).sum()} {known.name} of the model: {missing!r}; it must hold all of them: {hint}"
        )
    return rows


def known_first(rows: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """Return the position in the model of each row of the data: known ones first, new ones after them, in order."""
    positions = np.empty(len(is_new), dtype=np.int64)
    positions[rows] = np.arange(len(rows))
    positions[is_new] = len(rows) + np.arange(is_new.sum())
    return positions
