"""Continue the alignment of a finished LC-Rec on new interactions, also with new users and new items."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.core.catalogue import Catalogue, IdMap, KnownUsers, text_column
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData, has_validation
from modeling_cllm4rec.corpora.id_checks import known_first, rows_of_ids
from modeling_cllm4rec.hub.finishing import save_finished
from modeling_cllm4rec.hub.loading import load_recommender, load_tokenizer
from modeling_cllm4rec.lcrec.alignment import AlignmentStage
from modeling_cllm4rec.lcrec.alignment_templates import load_templates, recommendation_segments
from modeling_cllm4rec.lcrec.arguments import AlignmentArguments
from modeling_cllm4rec.lcrec.catalogue_changes import text_embeddings, with_codes
from modeling_cllm4rec.lcrec.drift import CodeDrift, DriftReport, InteractionDrift, code_drift, interaction_drift
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.parameters import choose_semantic_id_rows
from modeling_cllm4rec.lcrec.prompts import check_index_tokens
from modeling_cllm4rec.training.argument_names import accepts_other_names
from modeling_cllm4rec.training.launch import start_processes
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.run_folder import check_folder, check_start
from modeling_cllm4rec.training.trainer import run

logger = logging.getLogger(__name__)

OLD_ITEMS_ENCODED = 500
"""Items of the model that are encoded again, a fixed random sample, to compare their quantization error with that of new ones."""


@accepts_other_names
@dataclass
class UpdateArguments(AlignmentArguments):
    """Arguments of an update: alignment on a data folder with all items of the model, and maybe more."""

    start: str = field(default="", metadata={"help": "folder of the LC-Rec model to continue from"})
    replay: float = field(
        default=1.0,
        metadata={
            "help": "share of the documents about nothing new that an epoch reads next to all others, drawn again in each epoch, "
            "so that the model does not forget"
        },
    )
    encoder: str = field(
        default="", metadata={"help": "place of the encoder of item texts (default: the one that the model names)"}
    )

    def __post_init__(self) -> None:
        if not self.start:
            raise InputError("start is not set; it must be the folder of the model to continue from")
        super().__post_init__()
        if not 0 <= self.replay <= 1:
            raise InputError(f"replay is {self.replay}; it must lie between 0 and 1")


class Growth(NamedTuple):
    """What changed when a model got the users and items of a data folder.

    Attributes:
        new_users, new_items: (I,) and (J,) whether the model did not know them.
        changed_users: (I,) whether a user has training interactions that the model has not seen.
    """

    interactions: InteractionDrift
    codes: CodeDrift
    new_users: npt.NDArray[np.bool_]
    new_items: npt.NDArray[np.bool_]
    changed_users: npt.NDArray[np.bool_]


def grow_to(model: LCRecForRecommendation, data: RecommendationData, *, encoder: str = "", progress: bool = False) -> Growth:
    """Give a model exactly the items and users of a data folder, in its order; known items keep their semantic IDs.

    New items are encoded by the model's own indexer and get the nearest semantic ID that is free.

    Args:
        model: changed in place; the training histories of the data replace its stored histories.
        data: the new data folder. It may lack users of the model, who have no weights, but no items.
        encoder: place of the encoder of item texts; empty for the one that the model names.
        progress: show a bar while texts are encoded.

    Raises:
        InputError: the data lacks items of the model or gives them other ids; or as `LCRecForRecommendation.add_items`.
    """
    old, codes = model.require_catalogue(), model.semantic_ids.codes
    items, users = IdMap(data.items["item_id"], "item_id"), IdMap(data.users["user_id"], "user_id")
    _check_renamed(old, items, data)
    item_rows = rows_of_ids(old.ids, items, data)
    new_items = np.ones(len(items), dtype=bool)
    new_items[item_rows] = False
    seen, user_rows = _seen_pairs(model, users, item_rows)
    new_users = np.ones(len(users), dtype=bool)
    new_users[user_rows[user_rows >= 0]] = False

    model.set_catalogue(with_codes(Catalogue(data.items.take(pa.array(item_rows))), codes))
    new = data.items.filter(pa.array(new_items))
    measured = {}
    if new.num_rows:
        model.require_indexer()
        sample = np.sort(np.random.default_rng(0).permutation(item_rows)[:OLD_ITEMS_ENCODED])
        old_texts = data.items.take(pa.array(sample))
        vectors = text_embeddings(model, pa.concat_tables([new, old_texts]), encoder or None, progress)
        measured = {"new_vectors": vectors[: new.num_rows], "old_items": sample, "old_vectors": vectors[new.num_rows :]}
        model.add_items(new, vectors[: new.num_rows])
    model.take_items(known_first(item_rows, new_items))
    train = data.histories("train")
    model.users = KnownUsers(data.users["user_id"], train.indptr, train.items)
    model.config.num_users = len(users)
    if not np.array_equal(model.semantic_ids.codes[item_rows], codes):
        raise AssertionError("an item of the model has lost its semantic ID")

    now = np.stack([np.repeat(np.arange(len(users)), np.diff(train.indptr)), train.items.astype(np.int64)], axis=1)
    drift, is_new = interaction_drift(seen, now, ~new_users, ~new_items, int((user_rows < 0).sum()))
    changed = np.zeros(len(users), dtype=bool)
    changed[now[is_new, 0]] = True
    of_codes = code_drift(model.semantic_ids.codes, new_items, model.config.codebook_size, model.indexer, **measured)
    return Growth(drift, of_codes, new_users, new_items, changed)


def _seen_pairs(
    model: LCRecForRecommendation, users: IdMap, item_rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the (n, 2) users and items that a model holds together, as indices of the data, and the row of each of its users.

    A user that the data lacks has the row -1 and no pairs. A model saved without users or histories has no pairs.
    """
    if model.users is None:
        return np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.int64)
    if model.users.ids.is_text != users.is_text:
        kinds = ["strings" if ids.is_text else "integers" for ids in (model.users.ids, users)]
        raise InputError(f"user_id: the model's ids are {kinds[0]}, those of the data {kinds[1]}; prepare it again by id_type")
    rows = np.asarray(users.indices_of(model.users.ids.array.to_pylist(), on_unknown="skip"))
    if not model.users.has_histories:
        return np.zeros((0, 2), dtype=np.int64), rows
    owner = np.repeat(rows, model.users.history_lengths(np.arange(len(rows))))
    pairs = np.stack([owner, item_rows[model.users.items]], axis=1).astype(np.int64)
    return pairs[owner >= 0], rows


def _check_renamed(old: Catalogue, items: IdMap, data: RecommendationData) -> None:
    """Check that no item of the model has another id in the data.

    Raises:
        InputError: items that the data lacks have the titles of items that the model does not know.
    """
    if "title" not in old.table.column_names or "title" not in data.items.column_names or old.ids.is_text != items.is_text:
        return
    missing = np.flatnonzero(items.indices_of(old.ids.array.to_pylist(), on_unknown="skip") < 0)
    if not len(missing):
        return
    known = set(old.ids.array.to_pylist())
    titles = zip(text_column(data.items, "title"), items.array.to_pylist(), strict=True)
    now = {title: item for title, item in titles if title and item not in known}
    before = zip(text_column(old.table.take(pa.array(missing)), "title"), old.ids.ids_of(missing), strict=True)
    renamed = [(item, now[title]) for title, item in before if title in now]
    if renamed:
        raise InputError(
            f"{data.folder} renames {len(renamed)} items of the model, which have the same titles under other ids: "
            f"{'; '.join(f'{one!r} is now {other!r}' for one, other in renamed[:5])}; an id belongs to its semantic ID for good: "
            "prepare the data with the ids that the model knows"
        )


class UpdateStage(AlignmentStage):
    """The alignment of a model that has grown.

    Args:
        growth: users and items with something new; the others are about nothing new, and a share of their documents is read.
    """

    name = "update"

    def __init__(
        self,
        model: LCRecForRecommendation,
        tokenizer: PreTrainedTokenizerBase,
        data: RecommendationData,
        arguments: UpdateArguments,
        growth: Growth,
        is_main_process: bool = True,
        device: str = "cpu",
    ) -> None:
        super().__init__(model, tokenizer, data, arguments, is_main_process, device)
        self.replay = arguments.replay
        users, items = self.corpus.subjects_of(np.arange(len(self.corpus)))
        self.is_new = ((users >= 0) & growth.changed_users[users]) | ((items >= 0) & growth.new_items[items])
        if not self.is_new.any() and not self.replay:
            raise InputError(
                "replay is 0 and the data has nothing new, so no documents are left; prepare all interactions up to now, or give "
                "replay above 0"
            )

    def documents(self, epoch: int) -> np.ndarray:
        """Return the numbers of an epoch's documents: those about something new, and a share of the others, at least one."""
        numbers = super().documents(epoch)
        draws = np.random.default_rng((self.arguments.seed, epoch, 5)).random(len(self.corpus))
        kept = numbers[self.is_new[numbers] | (draws[numbers] < self.replay)]
        return kept if len(kept) else numbers[:1]


def update(arguments: UpdateArguments) -> tuple[LCRecForRecommendation, Progress]:
    """Add the new items and users of a data folder to a model, align it further, and save the best epoch to OUTPUT.

    The model keeps its prompts, the length of histories and its beams, and its folder is not touched: to go back, use it again.
    `DRIFT_FILE` in OUTPUT says how the new interactions differ.

    Raises:
        MissingFileError: there is no such model.
        InputError: the model is of another system, its tokenizer or templates are others, or as `grow_to`.

    Example:
        >>> update(UpdateArguments(start="runs/mine", data="data/mine-now", output="runs/mine-now"))  # doctest: +SKIP
    """
    start = Path(arguments.start)
    check_start(arguments.start, arguments.run_folder)
    processes = start_processes(arguments)
    data = RecommendationData.load(arguments.data)
    if processes.is_main_process:
        check_folder(UpdateStage.name, arguments, data)
    model = load_recommender(arguments.start, "start", device="cpu")
    if not isinstance(model, LCRecForRecommendation):
        raise InputError(f"start: {arguments.start} is no LC-Rec model; its system has its own update")
    tokenizer = load_tokenizer(arguments.start, "start")
    check_index_tokens(tokenizer.get_vocab(), *model.config.index_tokens)
    if model.config.recommendation_prompts != recommendation_segments(load_templates(arguments.templates or None), tokenizer):
        raise InputError(
            f"templates: {arguments.start} was aligned with other templates than "
            f"{arguments.templates or 'the packaged ones'}; give the file that it was aligned with"
        )
    previous = {
        "folder": start.resolve().name,
        "num_items": model.num_items,
        "codes_fingerprint": model.config.codes_fingerprint,
    }
    growth = grow_to(model, data, encoder=arguments.encoder, progress=processes.is_main_process)
    report = DriftReport(previous, len(model.config.index_history), growth.interactions, growth.codes)
    for line in report.lines():
        logger.info("%s", line)
    with processes.main_process_first():
        stage = UpdateStage(model, tokenizer, data, arguments, growth, processes.is_main_process, str(processes.device))
    before = _metrics(stage, growth, processes)
    adapted = choose_semantic_id_rows(model, arguments)
    progress = run(stage, processes)
    if progress.finished:
        users, after = _metrics(stage, growth, processes)
        if users:
            report = replace(report, metrics={"users": users, "before": before[1], "after": after})
            logger.info("%s", report.lines()[-1])
        if processes.is_main_process:
            report.save(arguments.run_folder)
    notes = report.lines()
    if model.linear_parts is not None:
        notes.append("The linear models of this hybrid were fitted on the interactions before; run `cllm4rec hybrid` again.")
        logger.warning("%s", notes[-1])
    save_finished(
        stage, tokenizer, progress, processes, adapted, record=UpdateStage.name, card_data=data, earlier=start, notes=notes
    )
    return model, progress


def _metrics(stage: UpdateStage, growth: Growth, processes: PartialState) -> tuple[int, dict[str, float]]:
    """Return the users of a validation with new training interactions, and their mean metrics; 0 users where there are none.

    A sharded model is not measured, because its weights are whole within the trainer only.
    """
    if not has_validation(stage.data) or stage.arguments.fsdp:
        return 0, {}
    stage.model.to(processes.device)
    found = stage.measure_validation()
    changed = growth.changed_users[found.user_indices]
    if not changed.any():
        return 0, {}
    return int(changed.sum()), {name: float(values[changed].mean()) for name, values in found.per_user.items()}
