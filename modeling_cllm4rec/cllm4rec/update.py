"""Go on training a finished CLLM4Rec on new interactions, among them those of new users and with new items."""

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
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer
from modeling_cllm4rec.training.loop import make_accelerator
from modeling_cllm4rec.training.progress import Progress

logger = logging.getLogger(__name__)


@dataclass
class UpdateArguments(FinetuneArguments):
    """Go on finetuning a model on a data folder with all of its users and items, and maybe more."""

    start: str = field(default="", metadata={"help": "folder of the model to go on from (CLLM4Rec, pretrained or finetuned)"})
    start_items: Start = field(
        default="regression", metadata={"help": "rows of new items: what a regression from texts to trained rows says, or words"}
    )

    def __post_init__(self) -> None:
        if not self.start:
            raise InputError("start is not set; name the folder of the model to go on from by --start")
        super().__post_init__()


def grow_to(
    model: CLLM4RecForRecommendation,
    tokenizer: PreTrainedTokenizerBase,
    data: RecommendationData,
    start_items: Start = "regression",
) -> CLLM4RecTokenizer:
    """Give a model exactly the users and items of a data folder, in its order; who was there before keeps the rows.

    Args:
        model: changed in place; its users' histories become the training histories of the data.
        tokenizer: the model's.
        start_items: as `start` in `add_items`.

    Returns:
        The tokenizer of the grown model.

    Raises:
        InputError: the data lacks users or items of the model (they are named), or a new item has no text.
    """
    if model.catalogue is None or model.users is None:
        raise InputError("this model has no catalogue or no users: it cannot be told who is new; train it anew")
    items, users = IdMap(data.items["item_id"], "item_id"), IdMap(data.users["user_id"], "user_id")
    item_rows, user_rows = _rows_of(model.catalogue.ids, items, data), _rows_of(model.users.ids, users, data)
    is_new = np.ones(len(items), dtype=bool)
    is_new[item_rows] = False
    model.catalogue = Catalogue(data.items.take(pa.array(item_rows)))  # with all of the texts
    model.add_items(data.items.filter(pa.array(is_new)), start=start_items, tokenizer=tokenizer)
    model.take_items(_inverse(item_rows, is_new))
    is_new_user = np.ones(len(users), dtype=bool)
    is_new_user[user_rows] = False
    model.add_user_rows(int(is_new_user.sum()))
    train = data.histories("train")
    model.take_users(_inverse(user_rows, is_new_user), KnownUsers(data.users["user_id"], train.indptr, train.items))
    logger.info("%d new items and %d new users", is_new.sum(), is_new_user.sum())
    return resized_tokenizer(tokenizer, model)


def _rows_of(known: IdMap, now: IdMap, data: RecommendationData) -> np.ndarray:
    """(known,) where each id of the model stands in the data.

    Raises:
        InputError: ids of another type, or some that the data lacks.
    """
    if known.is_text != now.is_text:
        kinds = ["strings" if one.is_text else "integers" for one in (known, now)]
        raise InputError(
            f"{known.name}: the model's ids are {kinds[0]}, those of {data.folder} {kinds[1]}; prepare the data anew (--id-type)"
        )
    rows = now.indices_of(known.array.to_pylist(), on_unknown="skip")
    if (rows < 0).any():
        lost = known.ids_of(np.flatnonzero(rows < 0)[:5])
        hint = "leave their interactions in"
        if known.name == "item_id":
            hint = "prepare it with --keep-all-items, or take them out of the model by remove_items"
        raise InputError(
            f"{data.folder} lacks {int((rows < 0).sum())} {known.name} of the model: {lost!r}; it must hold all old ones: {hint}"
        )
    return rows


def _inverse(rows: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """For each row of the data, where it stands in the model: old ones as they were, new ones behind them, in order."""
    place = np.empty(len(is_new), dtype=np.int64)
    place[rows] = np.arange(len(rows))
    place[is_new] = len(rows) + np.arange(is_new.sum())
    return place


def update(arguments: UpdateArguments) -> tuple[CLLM4RecForRecommendation, Progress]:
    """Grow a model to a data folder, finetune it there, and save the best epoch to OUTPUT.

    The prompts and the longest prompt stay the model's, unless `prompts` and `max_history_tokens` say otherwise.

    Raises:
        MissingFileError: there is no such model.
        InputError: an LC-Rec model, or as `grow_to`.

    Example:
        >>> update(UpdateArguments(start="runs/mine", data="data/mine-now", output="runs/mine-now"))  # doctest: +SKIP
    """
    if not Path(arguments.start).is_dir():
        raise MissingFileError(f"start: there is no folder {arguments.start}; name a trained model")
    if Path(arguments.start).resolve() == arguments.run_folder.resolve():
        raise InputError(f"start and output are both {arguments.output}; choose another output, the old model stays as it is")
    accelerator = make_accelerator(arguments)
    data = RecommendationData.load(arguments.data)
    model = load_recommender(arguments.start)
    if not isinstance(model, CLLM4RecForRecommendation):
        raise InputError(
            f"start: {arguments.start} is no CLLM4Rec model; of LC-Rec make index and model anew on the new data, by `cllm4rec "
            "index-items` and `cllm4rec align`, or only add its new items, by `cllm4rec add-items`"
        )
    tokenizer = grow_to(model, CLLM4RecTokenizer.from_pretrained(arguments.start), data, arguments.start_items)
    if arguments.max_history_tokens is not None:
        model.config.max_history_tokens = arguments.max_history_tokens
    if arguments.prompts is not None or model.config.recommendation_prompts is None:
        model.config.recommendation_prompts = recommendation_segments(arguments.templates, tokenizer)
    return model, finetune_from(model, tokenizer, data, arguments, accelerator, "update", Path(arguments.start))
