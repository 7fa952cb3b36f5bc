"""The stage `align` of LC-Rec (section III-C of arXiv 2311.09049): a language model is tuned on the alignment tasks.

The tasks are in `alignment_tasks`, their wording in `alignment_templates.yaml`, their documents in `alignment_corpus`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.baselines.soft_targets import fitted_teacher
from modeling_cllm4rec.core.catalogue import Catalogue, IdMap, KnownUsers, text_column
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.language_model import reject_adapter, tokenizer_of
from modeling_cllm4rec.core.ragged import RaggedRows
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.data_folder import RecommendationData, has_validation
from modeling_cllm4rec.corpora.history_order import warn_if_unordered
from modeling_cllm4rec.corpora.item_embeddings import read_item_embeddings
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.searching import SearchingRecommender
from modeling_cllm4rec.hub.finishing import save_finished
from modeling_cllm4rec.hub.loading import check_on_hub
from modeling_cllm4rec.lcrec.alignment_corpus import AlignmentCorpus
from modeling_cllm4rec.lcrec.alignment_templates import (
    load_templates,
    query_segments,
    recommendation_segments,
    separator_ids,
)
from modeling_cllm4rec.lcrec.arguments import INDEX_FILE, AlignArguments, AlignmentArguments
from modeling_cllm4rec.lcrec.indexing import EMBEDDINGS_FILE, SETTINGS_FILE
from modeling_cllm4rec.lcrec.intention_writer import write_intentions
from modeling_cllm4rec.lcrec.item_targets import IGNORE_INDEX, item_targets, level_shares, padded_histories
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.modeling_rqvae import INDEXER_FOLDER, RQVAEModel
from modeling_cllm4rec.lcrec.objectives import TaughtObjective, response_nll
from modeling_cllm4rec.lcrec.parameters import choose_semantic_id_rows
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.lcrec.token_rows import start_semantic_id_rows
from modeling_cllm4rec.systems import SYSTEMS
from modeling_cllm4rec.tokenization.tokenization_lcrec import add_semantic_id_tokens
from modeling_cllm4rec.training.backbones import untrained_backbone
from modeling_cllm4rec.training.estimates import LargestBatch
from modeling_cllm4rec.training.launch import start_processes
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.run_folder import check_folder
from modeling_cllm4rec.training.stages import Objective, Part, Step, step_batch_size
from modeling_cllm4rec.training.trainer import run

logger = logging.getLogger(__name__)

(SELECTION,) = SYSTEMS["lcrec"].selection


class AlignmentStage:
    """Documents, loss and validation of the alignment.

    Args:
        device: device of the intention writer, if there is one.
    """

    name = "align"
    scores_at_once = 0  # a search scores no catalogue

    def __init__(
        self,
        model: LCRecForRecommendation,
        tokenizer: PreTrainedTokenizerBase,
        data: RecommendationData,
        arguments: AlignmentArguments,
        is_main_process: bool = True,
        device: str = "cpu",
    ) -> None:
        self.model, self.data, self.arguments, self.is_main_process = model, data, arguments, is_main_process
        config, intentions = model.config, None
        if arguments.intention_writer:
            file = arguments.run_folder / "intentions.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            intentions = write_intentions(
                data,
                arguments.intention_writer,
                cache=file,
                seed=arguments.seed,
                max_history=config.max_history,
                device=device,
                progress=is_main_process,
            )
        if arguments.reorder < 1:
            warn_if_unordered(data, "LC-Rec reads it; reorder=1 shuffles every history in each epoch")
        self.corpus = AlignmentCorpus(
            data,
            tokenizer,
            model.semantic_ids,
            config.first_index_token,
            templates=load_templates(arguments.templates or None),
            tasks=arguments.task_weights,
            seed=arguments.seed,
            max_history=config.max_history,
            context_length=config.context_length,
            max_text_tokens=arguments.max_text_tokens,
            seqrec=arguments.seqrec,
            reorder=arguments.reorder,
            on_missing_text=arguments.on_missing_text,
            intentions=intentions,
            cache_folder=arguments.run_folder / "corpus",
        )
        logger.info("%d documents in the first epoch", len(self.corpus.documents(0)))
        self.teacher = fitted_teacher(arguments, data)
        if self.asks_items and "seqrec" not in self.corpus.tasks:
            raise InputError(
                f"the model has {'an' if model.item_head else 'no'} item head and teacher is {arguments.teacher!r}; both learn "
                "from seqrec, which has no documents here: leave both out"
            )
        self.validates = has_validation(data)

    @property
    def num_epochs(self) -> int:
        """Passes over the documents."""
        return self.arguments.num_train_epochs

    def documents(self, epoch: int) -> np.ndarray:
        """Return the numbers of an epoch's documents."""
        return self.corpus.documents(epoch)

    def steps(self, epoch: int) -> list[Step]:
        """Return the batches of an epoch, each of documents of similar length from all tasks."""
        arguments = self.arguments
        size = step_batch_size(arguments)
        numbers = self.documents(epoch)
        batches = plan_batches(self.corpus.lengths(numbers, epoch), size, arguments.seed, epoch)
        return [Step("align", numbers[batch]) for batch in batches]

    def largest_batches(self) -> dict[str, LargestBatch]:
        """Return the longest documents of the first epoch."""
        numbers = self.documents(0)
        lengths = self.corpus.lengths(numbers, 0)
        longest = numbers[np.argsort(lengths, kind="stable")][-self.arguments.per_device_train_batch_size :]
        words = int(self.corpus.rows(longest, 0)[1].values.sum())
        return {"align": LargestBatch(len(longest), int(lengths.max()), word_states=words)}

    def inputs(self, part: Part) -> dict[str, torch.Tensor]:
        """Return the documents of one part, with labels for the response tokens."""
        rows, counted = self.corpus.rows(part.documents, part.epoch)
        labels = np.full(rows.mask.shape, IGNORE_INDEX)
        labels[rows.mask] = np.where(counted.values, rows.values, IGNORE_INDEX)
        inputs = {
            "input_ids": torch.from_numpy(rows.padded(0)),
            "attention_mask": torch.from_numpy(rows.mask.astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }
        if self.asks_items:
            inputs |= self._item_inputs(part, rows, counted)
        return inputs

    @property
    def asks_items(self) -> bool:
        """Whether the loss reads which items documents predict."""
        return self.teacher is not None or self.model.item_head is not None

    def _item_inputs(self, part: Part, rows: RaggedRows, counted: RaggedRows) -> dict[str, torch.Tensor]:
        """Return the arguments of `TaughtObjective` about the items that documents of sequential recommendation predict."""
        sequential = self.corpus.tasks_of(part.documents) == "seqrec"
        counted = RaggedRows(counted.values & np.repeat(sequential, counted.lengths), counted.indptr)
        index, has_head = self.model.semantic_ids, self.model.item_head is not None
        targets = item_targets(index, rows, counted, self.model.config.first_index_token)
        inputs: dict[str, np.ndarray] = {"item_places": targets.places}
        if has_head:
            inputs |= {"item_labels": targets.items, "item_histories": padded_histories(targets.histories)}
        if self.teacher is not None:
            items, probs = self.teacher.soft_targets(targets.histories)
            inputs["soft_shares"] = level_shares(index.codes, items, probs, targets.items, index.codebook_size)
            if has_head:
                inputs |= {"soft_items": items, "soft_probs": probs}
        return {name: torch.from_numpy(value) for name, value in inputs.items()}

    def count_items(self, part: Part, inputs: dict[str, torch.Tensor]) -> int:
        """Return the number of response tokens."""
        return int(np.count_nonzero(inputs["labels"].numpy() != IGNORE_INDEX))

    def objective(self, part: Part) -> Objective:
        """Return the loss, which all tasks share."""
        if not self.asks_items:
            return response_nll
        return TaughtObjective(self.arguments.teacher_weight, self.arguments.item_head_weight)

    def validate(self, epoch: int) -> dict[str, float]:
        """Return HR@10 and NDCG@10 on validation, as the model recommends; NDCG@10 selects the epoch, not the loss."""
        if not self.validates or ((epoch + 1) % self.arguments.eval_every and epoch + 1 != self.num_epochs):
            return {}
        report = self.measure_validation()
        metrics = {f"validation/{name}": report.metrics[name] for name in report.metrics}
        return {**metrics, "selection": metrics[f"validation/{SELECTION}"]}

    def measure_validation(self) -> EvaluationReport:
        """Return HR@10 and NDCG@10 of `eval_users` users, shared out among the processes."""
        return evaluate(
            SearchingRecommender(self.model),
            self.data,
            "validation",
            metrics=["hit_rate@10", SELECTION],
            batch_size=self.arguments.per_device_eval_batch_size,
            progress=False,
            n_resamples=0,
            max_users=self.arguments.eval_users,
            distributed=True,
        )


def load_semantic_ids(folder: str | Path, data: RecommendationData) -> tuple[SemanticIds, RQVAEModel | None, dict[str, object]]:
    """Load an index folder: the semantic IDs of a data folder's items, their indexer, and the settings of the embeddings.

    Raises:
        MissingFileError: there is no index, or a part of it is missing.
        InputError: the index belongs to another catalogue, or a file is damaged.
    """
    file = Path(folder) / INDEX_FILE
    if not file.is_file():
        raise MissingFileError(f"index: there is no {file}; run `cllm4rec index-items` first, or name another folder")
    semantic_ids, ids = SemanticIds.load(file)
    if ids.fingerprint != IdMap(data.items["item_id"], "item_id").fingerprint:
        raise InputError(
            f"index: {folder} has the semantic IDs of another catalogue than {data.folder}: its item ids or their order differ; "
            "run `cllm4rec index-items` on this data"
        )
    settings_file, indexer_folder = Path(folder) / SETTINGS_FILE, Path(folder) / INDEXER_FOLDER
    if not settings_file.is_file():
        raise MissingFileError(f"index: there is no {settings_file}; the index is not finished: run `cllm4rec index-items` again")
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        indexer = RQVAEModel.from_pretrained(indexer_folder) if indexer_folder.is_dir() else None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"index: {folder} is damaged ({error}); run `cllm4rec index-items` again, or copy it again") from error
    if settings.get("codes_fingerprint") not in (None, semantic_ids.fingerprint):  # None: an index of an earlier version
        raise InputError(
            f"index: the codes in {file} are not those that {SETTINGS_FILE} was written with: they belong to another index of "
            "the same items; run `cllm4rec index-items` again, or copy the whole folder again"
        )
    return semantic_ids, indexer, dict(settings.get("item_encoder", {}))


def new_lcrec_model(
    data: RecommendationData, arguments: AlignArguments
) -> tuple[LCRecForRecommendation, PreTrainedTokenizerBase]:
    """Make a model and a tokenizer for a data folder and its index folder, with new rows for the tokens of semantic IDs.

    With `scratch_layers` the backbone is `backbones.untrained_backbone`; with the task seqrec alone that is similar to TIGER.

    Raises:
        MissingFileError: there is no such backbone, or no index.
        InputError: the index belongs to another catalogue, the backbone is an adapter alone, or `init_tokens` is `text` and no
            item has a text.
    """
    if data.num_items < 10:
        raise InputError(f"the catalogue has {data.num_items} items; {SELECTION} selects the epoch and needs 10 or more")
    if not arguments.scratch_layers:
        return _model_of_backbone(arguments.backbone, data, arguments)
    templates = load_templates(arguments.templates or None)
    prompts = [text for kinds in templates.groups.values() for group in kinds.values() for text in group]
    with TemporaryDirectory() as folder:
        untrained_backbone(
            data,
            folder,
            prompts,
            hidden_size=arguments.scratch_width,
            layers=arguments.scratch_layers,
            heads=arguments.scratch_heads,
            context_length=arguments.scratch_context,
            seed=arguments.seed,
        )
        return _model_of_backbone(folder, data, arguments)


def _model_of_backbone(
    backbone: str, data: RecommendationData, arguments: AlignArguments
) -> tuple[LCRecForRecommendation, PreTrainedTokenizerBase]:
    semantic_ids, indexer, item_encoder = load_semantic_ids(arguments.index, data)
    check_on_hub(backbone, "backbone")
    try:
        reject_adapter(backbone)
        tokenizer = tokenizer_of(backbone)
    except OSError as error:
        raise MissingFileError(
            f"backbone: {backbone} is no folder with a language model and could not be read from the Hub ({error})"
        ) from error
    if tokenizer is None:
        raise MissingFileError(f"backbone: {backbone} has no tokenizer; save it with the model's weights")
    templates = load_templates(arguments.templates or None)
    prompts: dict[str, Any] = {
        "recommendation_prompts": recommendation_segments(templates, tokenizer),
        "query_prompts": query_segments(templates, tokenizer),
        "separator": separator_ids(tokenizer),
    }
    try:
        first = add_semantic_id_tokens(tokenizer, semantic_ids.num_levels, semantic_ids.codebook_size)
    except ValueError as error:
        raise InputError(f"backbone: {backbone} has a tokenizer that takes no semantic IDs: {error}") from error
    train = data.histories("train")
    model = LCRecForRecommendation.from_backbone(
        backbone,
        semantic_ids=semantic_ids,
        first_index_token=first,
        catalogue=Catalogue(data.items),
        users=KnownUsers(data.users["user_id"], train.indptr, train.items),
        indexer=indexer,
        item_head=arguments.item_head != "none",
        item_inputs=arguments.item_head != "none" and arguments.item_inputs,
        embeddings=_head_embeddings(data, arguments),
        seed=arguments.seed,
        max_history=arguments.max_history,
        search_beams=arguments.num_beams,
        item_encoder=item_encoder,
        **prompts,
    )
    if arguments.init_tokens == "text":
        present = [name for name in arguments.init_columns if name in data.items.column_names]
        texts = [" ".join(words) for words in zip(*(text_column(data.items, name) for name in present), strict=True)]
        if not any(text.strip() for text in texts):
            raise InputError(f"init_tokens is 'text', but no item has any of {arguments.init_columns}; use init_tokens: random")
        words = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        start_semantic_id_rows(model, [np.array(ids, dtype=np.int64) for ids in words])
    return model, tokenizer


def _head_embeddings(data: RecommendationData, arguments: AlignArguments) -> np.ndarray | None:
    """Return the text embeddings of the index for the item head, None where it reads no texts.

    Raises:
        InputError: it reads texts, and the index was made without them.
    """
    if arguments.item_head != "text":
        return None
    file = Path(arguments.index) / EMBEDDINGS_FILE
    if not file.is_file():
        raise InputError(
            f"item_head is 'text', but {arguments.index} has no {EMBEDDINGS_FILE}: its codes come from no texts; set item_head: "
            "free, or make an index with method rqvae or rk-means"
        )
    return read_item_embeddings(file, data.items)


def align(arguments: AlignArguments) -> tuple[LCRecForRecommendation, Progress]:
    """Tune a language model on the alignment tasks and save the best epoch in `arguments.output`.

    Example:
        >>> align(AlignArguments(data="data", index="runs/index", output="runs/mine", backbone="gpt2"))  # doctest: +SKIP
    """
    processes = start_processes(arguments)
    data = RecommendationData.load(arguments.data)
    if processes.is_main_process:
        check_folder(AlignmentStage.name, arguments, data)
    model, tokenizer = new_lcrec_model(data, arguments)
    with processes.main_process_first():
        stage = AlignmentStage(model, tokenizer, data, arguments, processes.is_main_process, str(processes.device))
    adapted = choose_semantic_id_rows(model, arguments)
    progress = run(stage, processes)
    source = None if stage.corpus.intentions is None else stage.corpus.intentions.source
    notes = [] if source is None else [f"Intentions and preferences were written by: {source}."]
    earlier = Path(arguments.index)
    save_finished(stage, tokenizer, progress, processes, adapted, card_data=data, earlier=earlier, notes=notes)
    return model, progress
