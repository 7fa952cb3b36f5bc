"""Examples of a model card: what a model recommends after popular items of its data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.json_objects import read_json
from modeling_cllm4rec.core.questions import QuestionError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.corpora.data_folder import RecommendationData

logger = logging.getLogger(__name__)

EXAMPLES_FILE = "examples.json"
"""What a model recommended for the histories of the card, in the folder of its run."""
DELETE = "delete it: the next evaluation writes it again"
LENGTHS = (1, 2, 1)
"""Items in each history."""
MOST_RECOMMENDED = 5


def recommend_examples(model: RecommenderModel, data: RecommendationData) -> dict[str, Any]:
    """Return what a model recommends after the most popular items of its training data.

    The histories are made of popular items, and are none of a real user, so that a card shows nobody's history.

    Args:
        model: recommends items of `data`.

    Returns:
        `histories`: pairs of `history` and `recommended`, lists of `item` and `title`; `query`: a text that a model that reads
        queries can be asked, or None. Empty where the catalogue is too small, or the model's search finds too few items.
    """
    counts = np.bincount(data.histories("train").items, minlength=data.num_items)
    popular = np.argsort(-counts, kind="stable")[: sum(LENGTHS)]
    k = min(MOST_RECOMMENDED, data.num_items - max(LENGTHS))
    if len(popular) < sum(LENGTHS) or k < 1 or model.catalogue is None:
        return {}
    catalogue = model.catalogue
    histories = [catalogue.ids.ids_of(part) for part in np.split(popular, np.cumsum(LENGTHS)[:-1])]
    try:
        answers = model.recommend(histories=histories, k=k).to_pylist()
    except QuestionError as error:  # such as fewer beams than items; the model is trained, and its card does without
        logger.warning("the card has no sample recommendations: %s", error)
        return {}
    titles = dict(zip(catalogue.ids.ids_of(popular), catalogue.titles(popular), strict=True))
    found = catalogue.ids.indices_of([answer["item"] for answer in answers])
    titles |= dict(zip(catalogue.ids.ids_of(found), catalogue.titles(found), strict=True))
    return {
        "histories": [
            {
                "history": [{"item": item, "title": titles[item]} for item in history],
                "recommended": [
                    {"item": answer["item"], "title": titles[answer["item"]]} for answer in answers if answer["user"] == number
                ],
            }
            for number, history in enumerate(histories)
        ],
        "query": catalogue.titles(popular[:1])[0] if model.reads_queries else None,
    }


def save_examples(folder: Path, examples: dict[str, Any]) -> None:
    """Write the examples of a run, from which its card is made."""
    with atomic_file(folder / EXAMPLES_FILE) as temporary:
        temporary.write_text(json.dumps(examples, indent=1, ensure_ascii=False), encoding="utf-8")


def load_examples(folder: Path) -> dict[str, Any]:
    """Return the examples of a run, empty where there are none.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / EXAMPLES_FILE
    if not path.is_file():
        return {}
    examples = read_json(path, DELETE)
    try:
        whole = all(
            {"item", "title"} <= set(item)
            for row in examples.get("histories", [])
            for item in row["history"] + row["recommended"]
        )
    except (KeyError, TypeError):
        whole = False
    if not whole or not isinstance(examples.get("query"), str | None):
        raise InputError(f"{path} holds no histories and recommendations of items with titles; {DELETE}")
    return examples


__all__ = ["EXAMPLES_FILE", "load_examples", "recommend_examples", "save_examples"]
