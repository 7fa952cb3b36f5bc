"""Alignment of LC-Rec (section III-C of arXiv 2311.09049): a language model learns to speak in item indices."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_cllm4rec.core.catalogue import Catalogue, IdMap, KnownUsers, text_column
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.language_model import reject_adapter
from modeling_cllm4rec.core.losses import word_nll
from modeling_cllm4rec.core.prompt_assembly import pad_right
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.evaluation.searching import SearchingRecommender
from modeling_cllm4rec.lcrec.alignment_corpus import (
    AlignmentCorpus,
    load_templates,
    query_pieces,
    recommendation_pieces,
    separator_ids,
)
from modeling_cllm4rec.lcrec.arguments import INDEX_FILE, AlignArguments
from modeling_cllm4rec.lcrec.indexing import SETTINGS_FILE
from modeling_cllm4rec.lcrec.intention_writer import write_intentions
from modeling_cllm4rec.lcrec.modeling_lcrec import INDEXER_FOLDER, LCRecForRecommendation
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.parameters import choose_semantic_id_rows
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.systems import SYSTEMS
from modeling_cllm4rec.tokenization.tokenization_lcrec import add_semantic_id_tokens
from modeling_cllm4rec.training.backbones import untrained_backbone
from modeling_cllm4rec.training.estimates import LargestBatch
from modeling_cllm4rec.training.finishing import save_finished
from modeling_cllm4rec.training.loop import (
    Step,
    broadcast_from_main,
    check_folder,
    make_accelerator,
    run,
    step_batch_size,
)
from modeling_cllm4rec.training.progress import Progress

logger = logging.getLogger(__name__)

(SELECTION,) = SYSTEMS["lcrec"].selection


class AlignmentStage:
    """Documents, loss and validation of the alignment.

    Args:
        device: where the intention writer runs, if one is asked for.
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
        if not len(data.histories("validation").items):
            raise InputError("the data has no validation interactions: prepare it with a split that has them")

    @property
    def num_epochs(self) -> int:
        """Passes over the documents."""
        return self.arguments.epochs

    def steps(self, epoch: int) -> list[Step]:
        """Batches of like length, all tasks mixed."""
        arguments = self.arguments
        size = step_batch_size(arguments)
        numbers = self.corpus.documents(epoch)
        batches = plan_batches(self.corpus.lengths(numbers, epoch), size, arguments.seed, epoch)
        return [Step("align", numbers[batch]) for batch in batches]

    def largest_batches(self) -> dict[str, LargestBatch]:
        """The longest documents of the first epoch."""
        numbers = self.corpus.documents(0)
        lengths = self.corpus.lengths(numbers, 0)
        longest = numbers[np.argsort(lengths, kind="stable")][-self.arguments.batch_size :]
        words = sum(int(counted.sum()) for counted in self.corpus.rows(longest, 0)[1])
        return {"align": LargestBatch(len(longest), int(lengths.max()), word_states=words)}

    def loss(self, step: Step, part: np.ndarray, epoch: int, generator: torch.Generator) -> tuple[torch.Tensor, float, int]:
        """This part's share of the step's loss: the mean over all response tokens of the step (NLL, equation 10)."""
        rows, counted = self.corpus.rows(part, epoch)
        everyone = counted if len(part) == len(step.documents) else self.corpus.rows(step.documents, epoch)[1]
        tokens = sum(int(one.sum()) for one in everyone)
        device = self.model.device
        ids = torch.from_numpy(pad_right(rows, 0)).to(device)
        mask = torch.from_numpy(pad_right([np.ones(len(row), dtype=np.int64) for row in rows], 0)).to(device)
        predicted = torch.from_numpy(pad_right([one.astype(np.int64) for one in counted], 0)).to(device).bool()
        document, place = predicted.nonzero(as_tuple=True)
        body = self.model.backbone.base_model
        hidden = body(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True).last_hidden_state
        nll = word_nll(self.model.word_head, hidden[document, place - 1], ids[document, place]).sum()
        return nll / tokens, float(nll.detach()), len(document)

    def validate(self, epoch: int) -> dict[str, float]:
        """HR@10 and NDCG@10 on validation by constrained search; NDCG@10 selects, not the loss."""
        if (epoch + 1) % self.arguments.eval_every and epoch + 1 != self.num_epochs:
            return {}
        names = ["hit_rate@10", SELECTION]
        values = [0.0] * len(names)
        if self.is_main_process:
            report = evaluate(
                SearchingRecommender(self.model, {"num_beams": self.arguments.num_beams}),
                self.data,
                "validation",
                metrics=names,
                batch_size=self.arguments.eval_batch_size,
                progress=False,
                n_resamples=0,
                max_users=self.arguments.eval_users,
            )
            values = [report.metrics[name] for name in names]
        values = broadcast_from_main(values, self.model.device)
        metrics = {f"validation/{name}": value for name, value in zip(names, values, strict=True)}
        return {**metrics, "selection": metrics[f"validation/{SELECTION}"]}


def load_semantic_ids(folder: str | Path, data: RecommendationData) -> tuple[SemanticIds, RQVAEModel | None, dict[str, object]]:
    """The index of a data folder's items, what made it, and how their texts were encoded.

    Raises:
        MissingFileError: there is no index.
        InputError: it is the index of another catalogue.
    """
    file = Path(folder) / INDEX_FILE
    if not file.is_file():
        raise MissingFileError(f"index: there is no {file}; run `cllm4rec index-items` first, or name another folder")
    index, ids = SemanticIds.load(file)
    if ids.fingerprint != IdMap(data.items["item_id"], "item_id").fingerprint:
        raise InputError(
            f"index: {folder} is the index of another catalogue than {data.folder}: its item ids or their order differ; "
            "run `cllm4rec index-items` on this data"
        )
    indexer = RQVAEModel.from_pretrained(Path(folder) / INDEXER_FOLDER) if (Path(folder) / INDEXER_FOLDER).is_dir() else None
    settings = json.loads((Path(folder) / SETTINGS_FILE).read_text(encoding="utf-8"))
    return index, indexer, dict(settings.get("item_encoder", {}))


def new_lcrec_model(
    data: RecommendationData, arguments: AlignArguments
) -> tuple[LCRecForRecommendation, PreTrainedTokenizerBase]:
    """Model and tokenizer for a data folder and its index, with the backbone's weights and fresh rows of index tokens.

    With `scratch_layers` the backbone is `backbones.untrained_backbone`; with the task seqrec alone that is near to TIGER.

    Raises:
        MissingFileError: there is no such backbone, or no index.
        InputError: the index is that of another catalogue, the backbone an adapter alone, or `init_tokens` is `text` and no
            item has a text.
    """
    if data.num_items < 10:
        raise InputError(f"the catalogue has {data.num_items} items; {SELECTION} selects the epoch and needs 10 or more")
    if not arguments.scratch_layers:
        return _model_around(arguments.backbone, data, arguments)
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
        return _model_around(folder, data, arguments)


def _model_around(
    backbone: str, data: RecommendationData, arguments: AlignArguments
) -> tuple[LCRecForRecommendation, PreTrainedTokenizerBase]:
    index, indexer, item_encoder = load_semantic_ids(arguments.index, data)
    try:
        reject_adapter(backbone)
        tokenizer = AutoTokenizer.from_pretrained(backbone)
    except OSError as error:
        raise MissingFileError(
            f"backbone: {backbone} is no folder with a language model and could not be read from the Hub ({error})"
        ) from error
    templates = load_templates(arguments.templates or None)
    pieces: dict[str, Any] = {
        "recommendation_prompts": recommendation_pieces(templates, tokenizer),
        "query_prompts": query_pieces(templates, tokenizer),
        "separator": separator_ids(tokenizer),
    }
    first = add_semantic_id_tokens(tokenizer, index.num_levels, index.codebook_size)
    train = data.histories("train")
    model = LCRecForRecommendation.from_backbone(
        backbone,
        semantic_ids=index,
        first_index_token=first,
        catalogue=Catalogue(data.items),
        users=KnownUsers(data.users["user_id"], train.indptr, train.items),
        indexer=indexer,
        seed=arguments.seed,
        max_history=arguments.max_history,
        search_beams=arguments.num_beams,
        item_encoder=item_encoder,
        **pieces,
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
    """Tune a language model on the alignment tasks and save the best epoch to OUTPUT.

    Example:
        >>> align(AlignArguments(data="data", index="runs/index", output="runs/mine", backbone="gpt2"))  # doctest: +SKIP
    """
    accelerator = make_accelerator(arguments)
    data = RecommendationData.load(arguments.data)
    if accelerator.is_main_process:
        check_folder(AlignmentStage.name, arguments, data)
    model, tokenizer = new_lcrec_model(data, arguments)
    with accelerator.main_process_first():
        stage = AlignmentStage(model, tokenizer, data, arguments, accelerator.is_main_process, str(accelerator.device))
    adapted = choose_semantic_id_rows(model, arguments)
    progress = run(stage, accelerator)
    source = None if stage.corpus.intentions is None else stage.corpus.intentions.source
    notes = [] if source is None else [f"Intentions and preferences were written by: {source}."]
    earlier = Path(arguments.index)
    save_finished(stage, tokenizer, progress, accelerator, adapted, card_data=data, earlier=earlier, notes=notes)
    return model, progress
