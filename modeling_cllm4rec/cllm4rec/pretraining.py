"""Pretraining (sections 3.2, 3.3): content warm-up, then alternating L and C passes with mutual regularization."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from modeling_cllm4rec.cllm4rec.arguments import PretrainArguments
from modeling_cllm4rec.cllm4rec.documents import HistoryCorpus, TextCorpus, initial_item_rows
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation, Side
from modeling_cllm4rec.cllm4rec.objectives import PretrainingObjective, RegularizationConfig, next_word_terms
from modeling_cllm4rec.cllm4rec.parameters import choose_trainable
from modeling_cllm4rec.cllm4rec.prompts import next_item_segments, recommendation_segments, tokenize_template
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.core.errors import CLLM4RecError, InputError, MissingFileError
from modeling_cllm4rec.core.language_model import reject_adapter, tokenizer_of
from modeling_cllm4rec.core.losses import ItemLoss
from modeling_cllm4rec.core.processes import shared_out, sum_over_processes
from modeling_cllm4rec.core.prompt_assembly import build_batch_ids, build_input_ids
from modeling_cllm4rec.core.ragged import RaggedRows
from modeling_cllm4rec.corpora.batches import Batch, collate, plan_batches
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.history_order import warn_if_unordered
from modeling_cllm4rec.corpora.text_vectors import text_vectors, whitened_rows
from modeling_cllm4rec.hub.finishing import save_finished
from modeling_cllm4rec.hub.loading import check_on_hub
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer
from modeling_cllm4rec.training.estimates import FEWER_ROWS, LargestBatch, check_memory, id_table_memory
from modeling_cllm4rec.training.launch import start_processes
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.run_folder import check_folder
from modeling_cllm4rec.training.stages import Part, Step, item_seed, step_batch_size
from modeling_cllm4rec.training.trainer import run

logger = logging.getLogger(__name__)


class PretrainingStage:
    """Documents, losses and validation of pretraining.

    A warm-up epoch reads the text documents (C pass, no regularization). A later epoch reads the interactions (L pass), then
    the texts (C pass); in each pass the rows of the trained side are pulled towards those of the other side, which is fixed.
    """

    name = "pretrain"
    scores_at_once = 128

    def __init__(
        self,
        model: CLLM4RecForRecommendation,
        tokenizer: PreTrainedTokenizerBase,
        data: RecommendationData,
        arguments: PretrainArguments,
    ) -> None:
        self.model, self.data, self.arguments = model, data, arguments
        prompts = arguments.templates
        self.texts = TextCorpus(
            data,
            tokenizer,
            prompts,
            context_length=model.config.context_length,
            max_text_tokens=arguments.max_text_tokens,
            cache_folder=arguments.run_folder / "corpus",
        )
        self.histories = HistoryCorpus(data.histories("train"), arguments.seed, arguments.reorder)
        if not arguments.reorder:
            warn_if_unordered(data, "CLLM4Rec reads it with reorder=False; reorder=True draws new orders in each epoch")
        self.segments = tokenize_template(prompts.interactions, tokenizer)
        self.anonymous_segments = tokenize_template(prompts.anonymous_interactions, tokenizer)
        both = (self.segments, self.anonymous_segments)
        self.prompt_lengths = np.array([len(build_input_ids(segments, user=0)) for segments in both])
        self.max_length = model.config.prompt_limit
        order = np.random.default_rng(arguments.seed).permutation(len(self.texts))
        num_held_out = int(np.ceil(arguments.text_validation_share * len(order)))
        self.text_validation, self.text_train = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
        self.truth = data.histories("validation")
        self.warmup = arguments.warmup_epochs if len(self.texts) else 0
        if self.num_epochs:  # a recipe without epochs makes the model and its item rows, and reads no document
            self.texts.check_lengths()
        if len(self.texts) == 0:
            logger.warning("the data has no texts: the content LM is not trained")
        logger.info("%d text documents, %d histories", len(self.texts), len(self.histories.users))

    @property
    def num_epochs(self) -> int:
        """Return the number of warm-up and alternating epochs."""
        return self.warmup + self.arguments.num_train_epochs

    def steps(self, epoch: int) -> list[Step]:
        """Return the steps of an L pass and a C pass; in a warm-up epoch of the C pass alone."""
        arguments = self.arguments
        size = step_batch_size(arguments)
        steps: list[Step] = []
        if epoch >= self.warmup:
            users = self.histories.users
            batches = plan_batches(self.histories.lengths[users], size, arguments.seed, epoch)
            steps += [Step("collaborative", users[batch]) for batch in batches]
        batches = plan_batches(self.texts.lengths[self.text_train], size, arguments.seed, epoch)
        if epoch >= self.warmup:
            batches = batches[: int(np.ceil(arguments.content_share * len(batches)))]
        return steps + [Step("content", self.text_train[batch]) for batch in batches]

    def largest_batches(self) -> dict[str, LargestBatch]:
        """Return a batch of the longest histories that fit the context, and one of the longest texts."""
        histories, prompt_length = self._longest_histories()
        length, states = int(histories[-1]) + prompt_length, int(histories.sum())
        batches = {"collaborative": LargestBatch(len(histories), length, states, item_loss=self.item_loss)}
        texts = np.sort(self.texts.lengths[self.text_train])[-self.arguments.per_device_train_batch_size :]
        if len(texts):
            batches["content"] = LargestBatch(len(texts), int(texts[-1]), word_states=int(texts.sum()))
        return batches

    @cached_property
    def item_loss(self) -> ItemLoss:
        """Return the loss of the L steps, `auto` resolved."""
        return self.arguments.item_loss_of(int(self._longest_histories()[0].sum()), self.data.num_items)

    def _longest_histories(self) -> tuple[np.ndarray, int]:
        """Return the numbers of items in a batch of the longest histories, ascending, and the tokens before each of them."""
        size, prompt_length = self.arguments.per_device_train_batch_size, int(self.prompt_lengths[0])
        longest = np.sort(self.histories.lengths[self.histories.users])[-size:]
        return np.minimum(longest, self.max_length - prompt_length), prompt_length

    def inputs(self, part: Part) -> dict[str, torch.Tensor]:
        """Return the documents of one part of an L or a C step."""
        return self._batch(part.kind, part.documents, part.epoch).tensors()

    def count_items(self, part: Part, inputs: dict[str, torch.Tensor]) -> int:
        """Return the number of documents."""
        return len(part.documents)

    def objective(self, part: Part) -> PretrainingObjective:
        """Return the loss of an L or a C step (equations of section 3.3); the warm-up has no regularization."""
        weights = self.arguments.weights
        if part.epoch < self.warmup:
            weights = dataclasses.replace(weights, lambda_c=0.0)
        side: Side = "content" if part.kind == "content" else "collaborative"
        return PretrainingObjective(side, weights, self.item_loss, item_seed(self.arguments.seed, part.number))

    def _batch(self, kind: str, documents: np.ndarray, epoch: int) -> Batch:
        if kind == "content":
            return collate(*self.texts.rows(documents))
        users = self.histories.user_tokens(documents, epoch, self.arguments.drop_user)
        return self._interactions(users, self.histories.reordered(documents, epoch))

    def _interactions(self, users: np.ndarray, items: RaggedRows) -> Batch:
        """Build the interaction documents of users (-1: without the user's token) and their items."""
        first_user = self.model.config.id_offset
        first_item = first_user + self.model.config.num_users
        anonymous = (users < 0).astype(np.int64)
        rows = build_batch_ids(
            (self.segments, self.anonymous_segments),
            anonymous,
            users=first_user + users,
            items=RaggedRows(items.values + first_item, items.indptr),
            max_length=self.max_length,
        )
        return collate(rows, self.prompt_lengths[anonymous])

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        """Return the nll, in nats, of a validation item after the training history, and of a word of the held-out texts."""
        metrics: dict[str, float] = {}
        if len(self.text_validation):
            parts = np.array_split(self.text_validation, np.ceil(len(self.text_validation) / 32))
            metrics["validation/word_nll"] = self._mean_over_processes(self._word_nll, parts)
        users = np.flatnonzero(np.diff(self.truth.indptr) > 0)
        if epoch >= self.warmup and len(users):
            # Sorted by length, so that a batch has little padding.
            users = users[np.argsort(self.histories.lengths[users], kind="stable")]
            parts = np.array_split(users, np.ceil(len(users) / self.scores_at_once))
            metrics["validation/item_nll"] = self._mean_over_processes(self._item_nll, parts)
            metrics["selection"] = -metrics["validation/item_nll"]
        return metrics

    def _mean_over_processes(self, nll: Callable[[np.ndarray], tuple[float, int]], parts: list[np.ndarray]) -> float:
        """Return the mean nll of all parts; each process computes every n-th one."""
        total, count = sum_over_processes(sum(np.multiply(nll(part), counts) for part, counts in shared_out(parts)))
        return float(total / max(count, 1))

    def _word_nll(self, documents: np.ndarray) -> tuple[float, int]:
        """Return the nll of the words of text documents, and their number."""
        batch = collate(*self.texts.rows(documents)).to(self.model.item_content.weight.device)
        terms = next_word_terms(self.model, batch, RegularizationConfig(lambda_c=0.0))
        return float(terms.nll.sum()), terms.tokens

    def _item_nll(self, users: np.ndarray) -> tuple[float, int]:
        """Return the nll of the validation items of users, and their number."""
        device = self.model.item_content.weight.device
        batch = self._interactions(users, self.histories.rows(users)).to(device)
        hidden = self.model.prompt_state(batch.input_ids, batch.attention_mask)
        logits = self.model.item_logits(hidden).float().log_softmax(-1)
        nll, count = 0.0, 0
        for row, user in enumerate(users):
            truth = self.truth.items[self.truth.indptr[user] : self.truth.indptr[user + 1]]
            nll -= float(logits[row, torch.from_numpy(truth).long().to(device)].sum())
            count += len(truth)
        return nll, count


def new_model(data: RecommendationData, arguments: PretrainArguments) -> tuple[CLLM4RecForRecommendation, CLLM4RecTokenizer]:
    """Build the model and the tokenizer for a data folder: the backbone's weights, and new ID rows.

    Raises:
        MissingFileError: there is no such backbone, or it has no tokenizer.
        InputError: the backbone has an unsupported architecture or is only an adapter, its tokenizer is no fast one, has ID
            tokens already or no token to pad with, or `init_ids` is `text` and no item has a text.
        MemoryLimitError: the ID tables need more memory than `max_memory`.
    """
    train = data.histories("train")
    width = check_backbone(arguments.backbone)
    rows = id_table_memory(data.num_users, data.num_items, width, bool(arguments.average_decay), arguments.sparse_rows)
    check_memory(rows, arguments.max_memory, FEWER_ROWS)
    with _readable(arguments.backbone):
        model = CLLM4RecForRecommendation.from_backbone(
            arguments.backbone,
            users=KnownUsers(data.users["user_id"], train.indptr, train.items),
            catalogue=Catalogue(data.items),
            seed=arguments.seed,
            max_history_tokens=arguments.max_history_tokens,
        )
    tokenizer = _new_tokenizer(arguments.backbone, data, model.config.id_offset)
    model.config.recommendation_prompts = recommendation_segments(arguments.templates, tokenizer)
    if arguments.backbone_weights == "random":
        _randomize_backbone(model, arguments.seed)
    if arguments.init_ids == "text":
        _initialize_item_rows(model, tokenizer, data, arguments)
    elif arguments.init_ids == "text_vectors":
        _initialize_item_rows_by_vectors(model, data, arguments)
    return model, tokenizer


def check_backbone(backbone: str) -> int:
    """Check from its configuration that a backbone can be read, and return its width; no weights are loaded.

    Raises:
        MissingFileError: there is no such backbone.
        InputError: it is only an adapter, or no language model that transformers can load.
    """
    check_on_hub(backbone, "backbone")
    with _readable(backbone):
        reject_adapter(backbone)
        try:
            return int(AutoConfig.from_pretrained(backbone).get_text_config().hidden_size)
        except (ValueError, AttributeError) as error:
            raise InputError(f"backbone: {backbone} is no causal language model that transformers can load ({error})") from error


@contextlib.contextmanager
def _readable(backbone: str) -> Iterator[None]:
    """Turn the error of a backbone that cannot be read into one that names the argument."""
    try:
        yield
    except CLLM4RecError:
        raise
    except OSError as error:
        raise MissingFileError(
            f"backbone: {backbone} is no folder with a language model and could not be read from the Hub ({error})"
        ) from error


def _new_tokenizer(backbone: str, data: RecommendationData, id_offset: int) -> CLLM4RecTokenizer:
    """Return the backbone's tokenizer with ID tokens.

    The tokenizer's file is used alone, without `core.errors`, so it raises ValueError; here all of its causes are the backbone.
    """
    if tokenizer_of(backbone) is None:
        raise MissingFileError(f"backbone: {backbone} has no tokenizer; save it with the model's weights")
    try:
        return CLLM4RecTokenizer.from_backbone(backbone, num_users=data.num_users, num_items=data.num_items, id_offset=id_offset)
    except ValueError as error:
        raise InputError(f"backbone: {backbone} has a tokenizer that cannot be used: {error}") from error


def _randomize_backbone(model: CLLM4RecForRecommendation, seed: int) -> None:
    """Replace the weights of the backbone by random ones (LLM-Scratch of the paper's ablation)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = AutoModelForCausalLM.from_config(copy.deepcopy(model.config.text_config))
    model.backbone.load_state_dict(fresh.state_dict())


@torch.no_grad()
def _initialize_item_rows(
    model: CLLM4RecForRecommendation, tokenizer: CLLM4RecTokenizer, data: RecommendationData, arguments: PretrainArguments
) -> None:
    """Initialize the item rows of both sides with the mean word row of the item's texts.

    User rows stay random: initialized from their items, they would leak the held-out items in finetuning.
    """
    word_table: Any = model.get_input_embeddings()
    words = word_table.weight.detach().float().cpu().numpy()
    item_rows = initial_item_rows(data, tokenizer, words, arguments.init_columns)
    has_text = ~np.isnan(item_rows[:, 0])
    if not has_text.any():
        raise InputError(f"init_ids is 'text', but no item has any of {arguments.init_columns}; use init_ids: random")
    for side in SIDES:
        model.tables(side)[1].weight[has_text] = torch.from_numpy(item_rows[has_text])
    logger.info("%d of %d item rows initialized from words", has_text.sum(), len(has_text))


@torch.no_grad()
def _initialize_item_rows_by_vectors(
    model: CLLM4RecForRecommendation, data: RecommendationData, arguments: PretrainArguments
) -> None:
    """Initialize the item rows of both sides with whitened vectors of the item's texts, as large as word rows.

    Mean word rows all point the same way, because the common words of a catalogue dominate them; whitened vectors do not.
    """
    columns = [name for name in arguments.init_columns if name in data.items.column_names]
    vectors = text_vectors(data, encoder=arguments.init_encoder, fields=columns or None, progress=False)
    item_rows = torch.from_numpy(whitened_rows(vectors, model.config.hidden_size, arguments.seed))
    has_text = item_rows.any(dim=1)
    word_table: Any = model.get_input_embeddings()
    size = float(word_table.weight.float().std())  # of one element
    scale = size / item_rows[has_text].square().mean().sqrt()
    for side in SIDES:
        table = model.tables(side)[1].weight
        table[has_text] = (item_rows[has_text] * scale).to(table)
        table[~has_text] *= size / model.config.initializer_range  # or the others would be drowned by rows with a text
    logger.info("%d of %d item rows initialized from text vectors (%s)", has_text.sum(), len(has_text), arguments.init_encoder)


def pretrain(arguments: PretrainArguments) -> tuple[CLLM4RecForRecommendation, Progress]:
    """Pretrain on a data folder and save the best epoch to OUTPUT/pretrained.

    Raises:
        CLLM4RecError: as `new_model`, `TextCorpus` and `training.trainer.run`.

    Example:
        >>> pretrain(PretrainArguments(data="data/mine", output="runs/mine", backbone="gpt2"))  # doctest: +SKIP
    """
    processes = start_processes(arguments)
    data = RecommendationData.load(arguments.data)
    if processes.is_main_process:
        check_folder(PretrainingStage.name, arguments, data)
    model, tokenizer = new_model(data, arguments)
    with processes.main_process_first():
        stage = PretrainingStage(model, tokenizer, data, arguments)
    adapted = choose_trainable(model, arguments, texts=len(stage.texts) > 0)
    progress = run(stage, processes) if stage.num_epochs else Progress(finished=True)
    save_finished(stage, tokenizer, progress, processes, adapted, folder=arguments.run_folder / "pretrained")
    return model, progress


def recommend_early(model: CLLM4RecForRecommendation, settings: Mapping[str, Any], folder: str | Path) -> None:
    """Make a pretrained model recommend by its next-item head, without finetuning (LLM-PreRec of the paper's ablation).

    Args:
        settings: arguments of the pretraining; their templates are used.
        folder: folder of the model and its tokenizer.
    """
    prompts = PretrainArguments(**settings, data="data", output="output").templates
    model.config.recommendation_prompts = next_item_segments(prompts, AutoTokenizer.from_pretrained(folder))
