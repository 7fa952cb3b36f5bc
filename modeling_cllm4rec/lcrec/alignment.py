"""The stage `align` of LC-Rec (section III-C of arXiv 2311.09049): a language model is tuned on the alignment tasks.

The tasks are in `alignment_tasks`, their wording in `alignment_templates.yaml`, their documents in `alignment_corpus`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
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
from modeling_cllm4rec.core.losses import word_nll
from modeling_cllm4rec.core.prompt_assembly import pad_right
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.data_folder import RecommendationData, has_validation
from modeling_cllm4rec.corpora.history_order import warn_if_unordered
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.evaluation.searching import SearchingRecommender
from modeling_cllm4rec.lcrec.alignment_corpus import AlignmentCorpus
from modeling_cllm4rec.lcrec.alignment_templates import (
    load_templates,
    query_segments,
    recommendation_segments,
    separator_ids,
)
from modeling_cllm4rec.lcrec.arguments import INDEX_FILE, AlignArguments
from modeling_cllm4rec.lcrec.indexing import SETTINGS_FILE
from modeling_cllm4rec.lcrec.intention_writer import write_intentions
from modeling_cllm4rec.lcrec.modeling_lcrec import INDEXER_FOLDER, LCRecForRecommendation
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.parameters import choose_semantic_id_rows
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.lcrec.soft_codes import soft_codes
from modeling_cllm4rec.systems import SYSTEMS
from modeling_cllm4rec.tokenization.tokenization_lcrec import add_semantic_id_tokens
from modeling_cllm4rec.training.backbones import untrained_backbone
from modeling_cllm4rec.training.estimates import LargestBatch
from modeling_cllm4rec.training.finishing import save_finished
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.run_folder import check_folder
from modeling_cllm4rec.training.stages import Objective, Part, Step, StepOutput, step_batch_size
from modeling_cllm4rec.training.trainer import run, start_processes

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100

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
        arguments: AlignArguments,
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
                max_history=arguments.max_history,
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
            max_history=arguments.max_history,
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
        self.validates = has_validation(data)

    @property
    def num_epochs(self) -> int:
        """Passes over the documents."""
        return self.arguments.num_train_epochs

    def steps(self, epoch: int) -> list[Step]:
        """Return the batches of an epoch, each of documents of similar length from all tasks."""
        arguments = self.arguments
        size = step_batch_size(arguments)
        numbers = self.corpus.documents(epoch)
        batches = plan_batches(self.corpus.lengths(numbers, epoch), size, arguments.seed, epoch)
        return [Step("align", numbers[batch]) for batch in batches]

    def largest_batches(self) -> dict[str, LargestBatch]:
        """Return the longest documents of the first epoch."""
        numbers = self.corpus.documents(0)
        lengths = self.corpus.lengths(numbers, 0)
        longest = numbers[np.argsort(lengths, kind="stable")][-self.arguments.per_device_train_batch_size :]
        words = sum(int(counted.sum()) for counted in self.corpus.rows(longest, 0)[1])
        return {"align": LargestBatch(len(longest), int(lengths.max()), word_states=words)}

    def inputs(self, part: Part) -> dict[str, torch.Tensor]:
        """Return the documents of one part, with labels for the response tokens."""
        rows, counted = self.corpus.rows(part.documents, part.epoch)
        labels = [np.where(counts, row, IGNORE_INDEX) for row, counts in zip(rows, counted, strict=True)]
        inputs = {
            "input_ids": torch.from_numpy(pad_right(rows, 0)),
            "attention_mask": torch.from_numpy(pad_right([np.ones(len(row), dtype=np.int64) for row in rows], 0)),
            "labels": torch.from_numpy(pad_right(labels, IGNORE_INDEX)),
        }
        if self.teacher is not None:
            taught = self.corpus.tasks_of(part.documents) == "seqrec"
            counted = [counts & read for counts, read in zip(counted, taught, strict=True)]
            config = self.model.config
            soft = soft_codes(self.teacher, self.model.semantic_ids, rows, counted, config.first_index_token)
            inputs |= {"soft_places": torch.from_numpy(soft.places), "soft_shares": torch.from_numpy(soft.shares)}
        return inputs

    def count_items(self, part: Part, inputs: dict[str, torch.Tensor]) -> int:
        """Return the number of response tokens."""
        return int((inputs["labels"] != IGNORE_INDEX).sum())

    def objective(self, part: Part) -> Objective:
        """Return the loss, which all tasks share."""
        return response_nll if self.teacher is None else TaughtObjective(self.arguments.teacher_weight)

    def validate(self, epoch: int) -> dict[str, float]:
        """Return HR@10 and NDCG@10 on validation by constrained search; NDCG@10 selects the epoch, not the loss."""
        if not self.validates or ((epoch + 1) % self.arguments.eval_every and epoch + 1 != self.num_epochs):
            return {}
        names = ["hit_rate@10", SELECTION]
        report = evaluate(
            SearchingRecommender(self.model, {"num_beams": self.arguments.num_beams}),
            self.data,
            "validation",
            metrics=names,
            batch_size=self.arguments.per_device_eval_batch_size,
            progress=False,
            n_resamples=0,
            max_users=self.arguments.eval_users,
            distributed=True,
        )
        metrics = {f"validation/{name}": report.metrics[name] for name in names}
        return {**metrics, "selection": metrics[f"validation/{SELECTION}"]}


def response_nll(
    model: LCRecForRecommendation,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int,
) -> StepOutput:
    """Compute a part's share of the mean NLL over all response tokens of a step (equation 10).

    Args:
        input_ids, attention_mask: (B, T) documents, padded on the right.
        labels: (B, T) response tokens at their own place, -100 elsewhere.
        num_items_in_batch: response tokens of the whole step: parts of different length then add up to the mean.
    """
    document, place = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    body = model.backbone.base_model
    # Only states before counted tokens go through the output layer, which is most of the memory of a large vocabulary.
    hidden = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True).last_hidden_state
    nll = word_nll(model.word_head, hidden[document, place - 1], labels[document, place]).sum()
    return StepOutput(nll / num_items_in_batch, nll.detach(), torch.tensor(len(document)))


@dataclass(frozen=True)
class TaughtObjective:
    """`response_nll`, plus the cross-entropy with a teacher's soft targets for the codes of items.

    Attributes:
        teacher_weight: weight of that cross-entropy, a sum over levels.
    """

    teacher_weight: float

    def __call__(
        self,
        model: LCRecForRecommendation,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int,
        soft_places: torch.Tensor,
        soft_shares: torch.Tensor,
    ) -> StepOutput:
        """Compute a part's share of the loss of a step.

        Args:
            soft_places, soft_shares: (S, 2) and (S, L, K), see `soft_codes.SoftCodes`.

        Returns:
            The loss; the reported nll is that of the true tokens.
        """
        levels, size = soft_shares.shape[1:]
        level = torch.arange(levels, device=labels.device)
        soft_document = soft_places[:, :1].expand(-1, levels)  # (S, L)
        soft_place = soft_places[:, 1:] + level
        plain = labels != IGNORE_INDEX
        plain[soft_document, soft_place] = False
        document, place = plain.nonzero(as_tuple=True)
        body = model.backbone.base_model
        hidden = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True).last_hidden_state
        nll = word_nll(model.word_head, hidden[document, place - 1], labels[document, place]).sum()
        logits = model.word_head(hidden[soft_document, soft_place - 1]).float()  # (S, L, N)
        partition = logits.logsumexp(-1)
        true = labels[soft_document, soft_place][..., None]
        nll = nll + (partition - logits.gather(-1, true)[..., 0]).sum()
        tokens = model.config.first_index_token + size * level[:, None] + torch.arange(size, device=labels.device)  # (L, K)
        of_codes = logits.gather(-1, tokens.expand(len(logits), -1, -1))
        soft = (soft_shares.sum(-1) * partition - (soft_shares * of_codes).sum(-1)).sum()
        counted = torch.tensor(len(document) + soft_place.numel())
        return StepOutput((nll + self.teacher_weight * soft) / num_items_in_batch, nll.detach(), counted)


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
        model.start_semantic_id_rows([np.array(ids, dtype=np.int64) for ids in words])
    return model, tokenizer


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
