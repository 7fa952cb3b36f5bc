"""Check that a model and a data folder have the same users and items."""

from __future__ import annotations

from modeling_cllm4rec.core.catalogue import IdMap
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
        InputError: the items or the users differ.
    """
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
