"""Continue training a finished CLLM4Rec on new interactions, also with new users and new items."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments
from modeling_cllm4rec.cllm4rec.catalogue_changes import Start
from modeling_cllm4rec.cllm4rec.finetuning import finetune_from
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.new_item_training import resized_tokenizer
from modeling_cllm4rec.cllm4rec.prompts import recommendation_segments
from modeling_cllm4rec.core.catalogue import Catalogue, IdMap, KnownUsers
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.id_checks import known_first, rows_of_ids
from modeling_cllm4rec.hub.loading import load_recommender, load_tokenizer
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer
from modeling_cllm4rec.training.argument_names import accepts_other_names
from modeling_cllm4rec.training.launch import start_processes
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.run_folder import check_start

logger = logging.getLogger(__name__)


@accepts_other_names
@dataclass
class UpdateArguments(FinetuneArguments):
    """Arguments of an update: finetuning on a data folder with all users and items of the model, and maybe more."""

    start: str = field(default="", metadata={"help": "folder of the CLLM4Rec model to continue from, pretrained or finetuned"})
    start_items: Start = field(
        default="regression",
        metadata={"help": "initial rows of new items: by a regression from texts to trained rows, or from words"},
    )

    def __post_init__(self) -> None:
        if not self.start:
            raise InputError("start is not set; it must be the folder of the model to continue from")
        super().__post_init__()


def grow_to(
    model: CLLM4RecForRecommendation,
    tokenizer: PreTrainedTokenizerBase,
    data: RecommendationData,
    start_items: Start = "regression",
) -> CLLM4RecTokenizer:
    """Give a model exactly the users and items of a data folder, in its order; known users and items keep their rows.

    Args:
        model: changed in place; the training histories of the data replace its stored histories.
        tokenizer: tokenizer of the model.
        data: the new data folder.
        start_items: as `start` in `add_items`.

    Returns:
        The tokenizer of the changed model.

    Raises:
        InputError: the data lacks users or items of the model, which are listed, or a new item has no text.
    """
    if model.catalogue is None or model.users is None:
        raise InputError("this model has no catalogue or no users, so new ones cannot be recognized; train it again")
    items, users = IdMap(data.items["item_id"], "item_id"), IdMap(data.users["user_id"], "user_id")
    item_rows, user_rows = rows_of_ids(model.catalogue.ids, items, data), rows_of_ids(model.users.ids, users, data)
    is_new = np.ones(len(items), dtype=bool)
    is_new[item_rows] = False
    # A saved catalogue has only short texts; the regression for new items reads all of them.
    model.catalogue = Catalogue(data.items.take(pa.array(item_rows)))
    model.add_items(data.items.filter(pa.array(is_new)), start=start_items, tokenizer=tokenizer)
    model.take_items(known_first(item_rows, is_new))
    is_new_user = np.ones(len(users), dtype=bool)
    is_new_user[user_rows] = False
    model.add_user_rows(int(is_new_user.sum()))
    train = data.histories("train")
    model.take_users(known_first(user_rows, is_new_user), KnownUsers(data.users["user_id"], train.indptr, train.items))
    logger.info("%d new items and %d new users", is_new.sum(), is_new_user.sum())
    return resized_tokenizer(tokenizer, model)


def update(arguments: UpdateArguments) -> tuple[CLLM4RecForRecommendation, Progress]:
    """Add the new users and items of a data folder to a model, finetune it, and save the best epoch to OUTPUT.

    The model keeps its prompts and its longest prompt unless `prompts` and `max_history_tokens` are set.

    Raises:
        MissingFileError: there is no such model.
        InputError: the model is of another system, or as `grow_to`.

    Example:
        >>> update(UpdateArguments(start="runs/mine", data="data/mine-now", output="runs/mine-now"))  # doctest: +SKIP
    """
    check_start(arguments.start, arguments.run_folder)
    processes = start_processes(arguments)
    data = RecommendationData.load(arguments.data)
    model = load_recommender(arguments.start, "start", device="cpu")
    if not isinstance(model, CLLM4RecForRecommendation):
        raise InputError(
            f"start: {arguments.start} is no CLLM4Rec model; `cllm4rec update` continues a model of another system, and "
            "lcrec.update.update one of LC-Rec"
        )
    tokenizer = grow_to(model, load_tokenizer(arguments.start, "start"), data, arguments.start_items)
    if arguments.max_history_tokens is not None:
        model.config.max_history_tokens = arguments.max_history_tokens
    if arguments.prompts is not None or model.config.recommendation_prompts is None:
        model.config.recommendation_prompts = recommendation_segments(arguments.templates, tokenizer)
    return model, finetune_from(model, tokenizer, data, arguments, processes, "update", Path(arguments.start))
