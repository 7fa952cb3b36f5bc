"""Finetuning for recommendation (section 3.4): held-out items under the multinomial likelihood, tied item head."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.baselines.soft_targets import fitted_teacher
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments
from modeling_cllm4rec.cllm4rec.documents import HistoryCorpus, TextCorpus
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.objectives import HoldoutObjective, PretrainingObjective
from modeling_cllm4rec.cllm4rec.parameters import choose_trainable
from modeling_cllm4rec.cllm4rec.prompts import recommendation_segments
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.losses import ItemLoss
from modeling_cllm4rec.core.ragged import RaggedRows
from modeling_cllm4rec.corpora.batches import collate, plan_batches
from modeling_cllm4rec.corpora.data_folder import RecommendationData, has_validation
from modeling_cllm4rec.corpora.history_order import warn_if_unordered
from modeling_cllm4rec.corpora.id_checks import check_same_ids
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.hub.finishing import save_finished
from modeling_cllm4rec.hub.loading import load_recommender, load_tokenizer
from modeling_cllm4rec.systems import SYSTEMS
from modeling_cllm4rec.training.estimates import LargestBatch
from modeling_cllm4rec.training.launch import start_processes
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.run_folder import check_folder
from modeling_cllm4rec.training.stages import Part, Step, item_seed, step_batch_size
from modeling_cllm4rec.training.trainer import run

logger = logging.getLogger(__name__)

SELECTION = SYSTEMS["cllm4rec"].selection


class FinetuningStage:
    """Documents, losses and validation of finetuning.

    Each step masks a share of each history, drawn again each epoch, and predicts it from the last state of the prompt. With
    `content_every` = n, a C step follows every n-th recommendation step. Both have mutual regularization.

    Raises:
        InputError: the data has no texts although `content_every` is set.
    """

    name = "finetune"

    def __init__(
        self,
        model: CLLM4RecForRecommendation,
        tokenizer: PreTrainedTokenizerBase,
        data: RecommendationData,
        arguments: FinetuneArguments,
    ) -> None:
        self.model, self.data, self.arguments = model, data, arguments
        self.histories = HistoryCorpus(data.histories(*arguments.train_on.split("+")), arguments.seed, arguments.reorder)
        if not arguments.reorder:
            warn_if_unordered(data, "CLLM4Rec reads it with reorder=False; reorder=True draws new orders in each epoch")
        self.teacher = fitted_teacher(arguments, data, arguments.train_on)
        self.texts: TextCorpus | None = None
        if arguments.content_every:
            self.texts = TextCorpus(
                data,
                tokenizer,
                arguments.templates,
                context_length=model.config.context_length,
                max_text_tokens=arguments.max_text_tokens,
                cache_folder=arguments.run_folder / "corpus",
            )
            if not len(self.texts):
                raise InputError("content_every is set, but the data has no texts; set content_every: 0")
            self.texts.check_lengths()
        self.metrics = tuple(name for name in SELECTION if int(name.split("@")[1]) <= data.num_items) or (
            f"ndcg@{data.num_items}",
        )
        self.validates = has_validation(data)

    @property
    def num_epochs(self) -> int:
        """Return the number of passes over the users."""
        return self.arguments.num_train_epochs

    def steps(self, epoch: int) -> list[Step]:
        """Return the recommendation steps of an epoch, with C steps between them if `content_every` is set."""
        arguments = self.arguments
        size = step_batch_size(arguments)
        users = self.histories.users
        batches = plan_batches(self.histories.lengths[users], size, arguments.seed, epoch)
        steps = [Step("recommendation", users[batch]) for batch in batches]
        if self.texts is None:
            return steps
        every = arguments.content_every
        texts = plan_batches(self.texts.lengths, size, arguments.seed, epoch)
        mixed: list[Step] = []
        for number, step in enumerate(steps):
            mixed.append(step)
            if (number + 1) % every == 0:
                mixed.append(Step("content", texts[(number // every) % len(texts)]))
        return mixed

    @property
    def scores_at_once(self) -> int:
        """Return the number of users per validation batch."""
        return min(self.arguments.per_device_eval_batch_size, self.data.num_users)

    def largest_batches(self) -> dict[str, LargestBatch]:
        """Return a batch of the longest histories, and one of the longest texts if there are C steps."""
        users = self.histories.users
        last = users[np.argsort(self.histories.lengths[users], kind="stable")][-self.arguments.per_device_train_batch_size :]
        prompts = self.model.build_prompts(last, self.histories.rows(last))
        longest = max(map(len, prompts))
        batches = {"recommendation": LargestBatch(len(prompts), longest, len(prompts), item_loss=self.item_loss)}
        if self.texts is not None:
            texts = np.sort(self.texts.lengths)[-self.arguments.per_device_train_batch_size :]
            batches["content"] = LargestBatch(len(texts), int(texts[-1]), word_states=int(texts.sum()))
        return batches

    @cached_property
    def item_loss(self) -> ItemLoss:
        """Return the loss of the recommendation steps, `auto` resolved."""
        states = min(self.arguments.per_device_train_batch_size, len(self.histories.users))
        return self.arguments.item_loss_of(states, self.data.num_items)

    def inputs(self, part: Part) -> dict[str, torch.Tensor]:
        """Return the documents of one part of a recommendation step or a C step."""
        if part.kind == "content":
            assert self.texts is not None
            return collate(*self.texts.rows(part.documents)).tensors()
        kept, targets = self._masked(part.documents, part.epoch)
        users = self.histories.user_tokens(part.documents, part.epoch, self.arguments.drop_user)
        prompts = self.model.build_prompts(users, kept)
        batch = collate(prompts, prompts.lengths, targets)
        if self.teacher is not None:
            # The teacher reads the prompt, not the whole history, because items that it reads get no probability.
            items, probs = self.teacher.soft_targets(list(kept))
            batch.soft_target_items, batch.soft_target_probs = torch.from_numpy(items), torch.from_numpy(probs)
        return batch.tensors()

    def count_items(self, part: Part, inputs: dict[str, torch.Tensor]) -> int:
        """Return the number of users or text documents."""
        return len(part.documents)

    def objective(self, part: Part) -> PretrainingObjective | HoldoutObjective:
        """Return the loss of a recommendation step or a C step."""
        arguments, weights = self.arguments, self.arguments.weights
        if part.kind == "content":
            return PretrainingObjective("content", weights)
        seed = item_seed(arguments.seed, part.number)
        return HoldoutObjective(weights, self.item_loss, arguments.average_holdout, arguments.teacher_weight, seed)

    def _masked(self, users: np.ndarray, epoch: int) -> tuple[RaggedRows, RaggedRows]:
        """Return the item indices of the prompts and of the targets."""
        if self.arguments.target == "next":
            return self.histories.split_next(users, epoch)
        kept, held = self.histories.split_holdout(users, epoch, self.arguments.mask_share)
        return kept, self.histories.rows(users) if self.arguments.target == "all" else held

    def validate(self, epoch: int) -> dict[str, float]:
        """Return Recall@20, Recall@40, NDCG@100 on validation, and their sum as `selection` (released code, A4)."""
        if not self.validates or ((epoch + 1) % self.arguments.eval_every and epoch + 1 != self.num_epochs):
            return {}
        report = evaluate(
            self.model,
            self.data,
            "validation",
            metrics=self.metrics,
            batch_size=self.arguments.per_device_eval_batch_size,
            progress=False,
            n_resamples=0,
            distributed=True,
        )
        metrics = {f"validation/{name}": report.metrics[name] for name in self.metrics}
        return {**metrics, "selection": sum(metrics.values())}


def load_start(
    arguments: FinetuneArguments, data: RecommendationData
) -> tuple[CLLM4RecForRecommendation, PreTrainedTokenizerBase]:
    """Load the pretrained model and its tokenizer, and check that they fit the data.

    Raises:
        MissingFileError: there is no pretrained model in the folder.
        InputError: the folder holds another kind of model, or the model has another catalogue or other users than the data.
    """
    if not Path(arguments.start).is_dir():
        raise MissingFileError(f"start: there is no folder {arguments.start}; run `cllm4rec pretrain` first, or name another")
    if not (Path(arguments.start) / "config.json").is_file():
        raise MissingFileError(f"start: {arguments.start} holds no model (no config.json); name the folder of a pretrained model")
    model = load_recommender(arguments.start, "start", device="cpu")
    if not isinstance(model, CLLM4RecForRecommendation):
        raise InputError(f"start: {arguments.start} holds a {type(model).__name__}; name a folder written by `cllm4rec pretrain`")
    check_same_ids(model, data, f"start: {arguments.start}")
    return model, load_tokenizer(arguments.start, "start")


def finetune(arguments: FinetuneArguments) -> tuple[CLLM4RecForRecommendation, Progress]:
    """Finetune a pretrained model and save the best epoch to OUTPUT.

    Raises:
        CLLM4RecError: as `load_start`, `FinetuningStage` and `training.trainer.run`.

    Example:
        >>> finetune(FinetuneArguments(data="data/mine", output="runs/mine"))  # doctest: +SKIP
    """
    processes = start_processes(arguments)
    data = RecommendationData.load(arguments.data)
    model, tokenizer = load_start(arguments, data)
    model.config.max_history_tokens = arguments.max_history_tokens
    model.config.recommendation_prompts = recommendation_segments(arguments.templates, tokenizer)
    return model, finetune_from(model, tokenizer, data, arguments, processes, earlier=Path(arguments.start).parent)


def finetune_from(
    model: CLLM4RecForRecommendation,
    tokenizer: PreTrainedTokenizerBase,
    data: RecommendationData,
    arguments: FinetuneArguments,
    processes: PartialState,
    record: str = FinetuningStage.name,
    earlier: Path | None = None,
) -> Progress:
    """Finetune a model with the users and items of the data, and save the best epoch to OUTPUT.

    Args:
        record: name of the run in the model card.
        earlier: folder with the records of earlier training, which are kept in the model card.
    """
    if processes.is_main_process:
        check_folder(FinetuningStage.name, arguments, data)
    with processes.main_process_first():
        stage = FinetuningStage(model, tokenizer, data, arguments)
    adapted = choose_trainable(model, arguments, texts=arguments.content_every > 0)
    progress = run(stage, processes)
    save_finished(stage, tokenizer, progress, processes, adapted, record=record, card_data=data, earlier=earlier)
    return progress
