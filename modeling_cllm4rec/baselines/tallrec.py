"""A language model on titles alone that answers Yes or No for each candidate, after TALLRec (arXiv 2305.00447).

As in the paper, an instruction holds the titles of a history and of one candidate, LoRA is tuned on the answer, and the score of
the candidate is ln p(Yes) - ln p(No). Three things differ. The wording is not the paper's. Ratings are not used, so random items
without an interaction have the answer No. Any causal language model can be used, not LLaMA-7B alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from modeling_cllm4rec.baselines.early_stopping import (
    TrainingPrecision,
    autocast,
    check_above_zero,
    check_counts,
    device_named,
)
from modeling_cllm4rec.baselines.registry import baseline
from modeling_cllm4rec.baselines.yes_no_prompts import YesNoPrompts
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.prompt_assembly import pad_right
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.history_order import warn_if_unordered
from modeling_cllm4rec.corpora.interaction_matrix import check_items
from modeling_cllm4rec.corpora.item_texts import TITLE, item_texts

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

logger = logging.getLogger(__name__)

PROBE_PAIRS = 128
"""Largest number of pairs of a history and a candidate from which the cost of an evaluation is estimated."""


class Examples(NamedTuple):
    """Training examples of an epoch, each field of shape (n,).

    Attributes:
        users: user indices.
        lengths: number of items of the user's history in the prompt, the first ones.
        items: candidates.
        labels: 1 for the next item, 0 for an item without an interaction.
    """

    users: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    labels: npt.NDArray[np.float32]


@baseline(
    "tallrec",
    title="TALLRec-like",
    summary="language model on titles alone, Yes or No for each candidate",
    order=10,
)
class TALLRecRecommender:
    """Scores an item by ln p(Yes) - ln p(No) after a prompt with the titles of the history and its own.

    Each pair of a history and an item needs a forward pass over the item's title, so scoring all J items of a large catalogue is
    expensive. `score_candidates` scores some items only.

    Args:
        language_model: causal, in evaluation mode.
        prompts: of the catalogue, by its tokenizer.
        candidates_at_once: candidates of a history per batch; memory grows with it.
        precision: `"bf16"` computes in bfloat16.
        progress: show a progress bar of histories.
        max_hours: longest estimated time of one call in hours; longer calls are refused. None refuses nothing.

    Attributes:
        losses: mean binary cross-entropy of each epoch, in nats.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        prompts: YesNoPrompts,
        *,
        candidates_at_once: int = 64,
        precision: TrainingPrecision = "no",
        progress: bool = True,
        max_hours: float | None = None,
    ) -> None:
        check_counts(candidates_at_once=candidates_at_once)
        self.language_model, self.prompts, self.num_items = language_model, prompts, prompts.num_items
        self.candidates_at_once, self.precision, self.progress = candidates_at_once, precision, progress
        self.max_hours = max_hours
        self.seconds_of_a_pair: float | None = None
        self.losses: list[float] = []

    @classmethod
    def fit(
        cls,
        data: RecommendationData,
        *,
        seed: int = 0,
        backbone: str = "",
        positives: int = 2048,
        negatives: int = 1,
        max_history: int = 10,
        max_title_tokens: int = 24,
        epochs: int = 2,
        batch_size: int = 16,
        lr: float = 5e-4,
        lora_rank: int = 8,
        lora_alpha: int = 16,
        candidates_at_once: int = 64,
        precision: TrainingPrecision = "no",
        device: str = "auto",
        planned_pairs: int = 0,
        max_hours: float | None = 6.0,
        progress: bool = True,
    ) -> Self:
        """Tune on train histories: the next item has the answer Yes, random other items have No. Validation is not used.

        Args:
            data: the data folder; its items need titles.
            seed: start of all random numbers.
            backbone: name or path of a causal language model.
            positives: next items per epoch, a random sample of all.
            negatives: random other items for each of them.
            max_history: largest number of titles of a history, the last ones.
            max_title_tokens: longer titles are truncated to this number of tokens.
            epochs: passes, each over a new sample.
            batch_size: prompts per optimizer step.
            lr: learning rate of the LoRA matrices (AdamW).
            lora_rank, lora_alpha: rank and scale of the LoRA matrices.
            candidates_at_once, precision, progress: see the class.
            device: `"auto"` (a GPU if there is one), `"cpu"`, `"cuda"`, ...
            planned_pairs: (history, item) pairs that will be scored after the training; an evaluation of more than `max_hours`
                is refused before the training.

        Raises:
            InputError: no backbone, a setting out of its range, items without titles, prompts that exceed the context of the
                backbone, no user with two training items, or an evaluation of more than `max_hours`.
            MissingFileError: there is no such backbone.
        """
        import peft

        check_counts(positives=positives, negatives=negatives, max_history=max_history, max_title_tokens=max_title_tokens)
        check_counts(epochs=epochs, batch_size=batch_size, lora_rank=lora_rank, lora_alpha=lora_alpha)
        check_above_zero(lr=lr, **({} if max_hours is None else {"max_hours": max_hours}))
        autocast(on_device := device_named(device), precision)  # refuses an unknown precision before anything is loaded
        titles = item_texts(data.items, (TITLE,))[TITLE]
        model, tokenizer = _language_model(backbone)
        prompts = YesNoPrompts(
            tokenizer,
            titles,
            max_history=max_history,
            max_title_tokens=max_title_tokens,
            context_length=model.config.get_text_config().max_position_embeddings,
        )
        warn_if_unordered(data, "TALLRec reads it, as its positives are the next items; choose a baseline that reads sets")
        histories = data.histories("train")
        torch.nn.Module.to(model, on_device).eval()
        recommender = cls(
            model,
            prompts,
            candidates_at_once=candidates_at_once,
            precision=precision,
            progress=progress,
            max_hours=max_hours,
        )
        if planned_pairs:
            recommender.check_cost(planned_pairs, histories)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = peft.LoraConfig(r=lora_rank, lora_alpha=lora_alpha, target_modules="all-linear", lora_dropout=0.0)
            adapted = peft.get_peft_model(model, config)
            drawn = lru_cache(1)(partial(training_examples, histories, data.num_items, positives, negatives, seed))
            recommender._tune(histories, drawn, epochs, batch_size, seed, lr)
            adapted.merge_and_unload()
        return recommender

    def _tune(
        self, histories: Histories, drawn: Callable[[int], Examples], epochs: int, batch_size: int, seed: int, lr: float
    ) -> None:
        """Train the LoRA matrices on the examples of each epoch."""
        from modeling_cllm4rec.training.module_trainer import train_module

        model, prompts = self.language_model, self.prompts
        sizes: list[int] = []

        def batches(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
            examples, rows = drawn(epoch), []
            for user, length, item in zip(examples.users, examples.lengths, examples.items, strict=True):
                start = histories.indptr[user]
                rows.append(np.concatenate([prompts.prefix(histories.items[start : start + length]), prompts.suffix(int(item))]))
            plan = plan_batches(np.array([len(row) for row in rows]), batch_size, seed, epoch)
            sizes[:] = map(len, plan)
            for batch in tqdm(plan, desc=f"training TALLRec, epoch {epoch + 1}", unit="step", disable=not self.progress):
                ids, mask, last = _padded([rows[number] for number in batch], torch.device("cpu"))
                yield {"ids": ids, "mask": mask, "last": last, "labels": torch.from_numpy(examples.labels[batch])}

        def loss(ids: torch.Tensor, mask: torch.Tensor, last: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            with autocast(model.device, self.precision):
                hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True).last_hidden_state
                scores = self._answers(hidden[torch.arange(len(ids)), last])
            return F.binary_cross_entropy_with_logits(scores, labels)

        def end_epoch(epoch: int, losses: list[float]) -> bool:
            self.losses.append(float(np.average(np.array(losses), weights=sizes)))
            logger.info("TALLRec, epoch %d of %d: %.4f nats per answer", epoch + 1, epochs, self.losses[-1])
            return False

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]  # the LoRA matrices
        train_module(
            model,
            batches,
            loss,
            torch.optim.AdamW(trained, lr=lr, weight_decay=0.0),
            num_train_epochs=epochs,
            steps_per_epoch=-(-len(drawn(0).users) // batch_size),
            max_grad_norm=1.0,
            title="TALLRec",
            advice=f"lower lr (it is {lr})",
            end_epoch=end_epoch,
        )

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) scores of all items, one row per history.

        Raises:
            InputError: items of another catalogue, or more than `max_hours`.
        """
        check_items(histories, self.num_items)
        rows = len(histories.indptr) - 1
        self.check_cost(rows * self.num_items, histories)
        catalogue = np.tile(np.arange(self.num_items, dtype=np.int32), rows)
        return self._scores(histories, Histories(np.arange(rows + 1) * self.num_items, catalogue))

    def score_candidates(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, candidates: Histories
    ) -> npt.NDArray[np.float32]:
        """Return (batch, J) scores of the candidates of each history, -inf for the other items.

        Raises:
            InputError: items of another catalogue, or more than `max_hours`.
        """
        check_items(histories, self.num_items)
        check_items(candidates, self.num_items)
        self.check_cost(len(candidates.items), histories)
        return self._scores(histories, candidates)

    def check_cost(self, pairs: int, histories: Histories) -> None:
        """Estimate the time of pairs of a history and an item from a few of them; log it, or refuse it.

        Raises:
            InputError: it is more than `max_hours`.
        """
        if pairs <= 10 * PROBE_PAIRS:
            return
        if self.seconds_of_a_pair is None:
            self.seconds_of_a_pair = self._probe(histories)
        milliseconds, hours = 1e3 * self.seconds_of_a_pair, pairs * self.seconds_of_a_pair / 3600
        cost = f"{pairs} pairs of a history and an item at {milliseconds:.2f} ms each take about {hours:.2g} hours"
        if self.max_hours is not None and hours > self.max_hours:
            raise InputError(
                f"TALLRec: {cost}, more than max_hours ({self.max_hours:g}); rank fewer users (max_users), fewer items "
                "(score_candidates), or raise max_hours"
            )
        if hours > 0.1:
            logger.warning("TALLRec: %s", cost)

    @torch.no_grad()
    def score_items(self, history: npt.NDArray[np.integer], items: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Return (n,) scores of (n,) items after one history, whose keys and values are computed once for all items."""
        from transformers import DynamicCache

        from modeling_cllm4rec.core.language_model import CACHE

        device = self.language_model.device
        body = self.language_model.base_model
        prefix = torch.from_numpy(self.prompts.prefix(history)).to(device)[None]
        suffixes = [self.prompts.suffix(int(item)) for item in items]
        by_length = np.argsort([len(suffix) for suffix in suffixes], kind="stable")
        scores = np.zeros(len(items), dtype=np.float32)
        with autocast(device, self.precision):
            cache = DynamicCache()
            body(input_ids=prefix, use_cache=True, return_dict=True, **{CACHE: cache})
            for start in range(0, len(items), self.candidates_at_once):
                part = by_length[start : start + self.candidates_at_once]
                ids, mask, last = _padded([suffixes[number] for number in part], device)
                before = torch.ones(len(part), prefix.shape[1], dtype=mask.dtype, device=device)
                hidden = body(
                    input_ids=ids,
                    attention_mask=torch.cat([before, mask], dim=1),
                    position_ids=prefix.shape[1] + torch.arange(ids.shape[1], device=device).expand(len(part), -1),
                    use_cache=True,
                    return_dict=True,
                    **{CACHE: _repeated(cache, len(part))},
                ).last_hidden_state
                scores[part] = self._answers(hidden[torch.arange(len(part)), last]).cpu().numpy()
        return scores

    def _answers(self, states: torch.Tensor) -> torch.Tensor:
        """Return (n,) float32 differences of the logits of Yes and No after (n, K) states."""
        from modeling_cllm4rec.core.language_model import word_head

        logits = word_head(self.language_model)(states).float()
        return logits[:, self.prompts.answers[0]] - logits[:, self.prompts.answers[1]]

    def _scores(self, histories: Histories, candidates: Histories) -> npt.NDArray[np.float32]:
        rows = len(histories.indptr) - 1
        scores = np.full((rows, self.num_items), -np.inf, dtype=np.float32)
        for row in tqdm(range(rows), desc="scoring Yes or No", unit="history", disable=not self.progress, leave=False):
            history, items = (rows_of.items[rows_of.indptr[row] : rows_of.indptr[row + 1]] for rows_of in (histories, candidates))
            scores[row, items] = self.score_items(history, items)
        return scores

    def _probe(self, histories: Histories) -> float:
        """Measure the seconds of a pair on a history of median length, after a pass that warms up."""
        middle = int(np.argsort(np.diff(histories.indptr), kind="stable")[(len(histories.indptr) - 1) // 2])
        history = histories.items[histories.indptr[middle] : histories.indptr[middle + 1]]
        items = np.random.default_rng(0).permutation(self.num_items)[:PROBE_PAIRS]
        self.score_items(history, items[:8])
        start = time.perf_counter()
        self.score_items(history, items)
        return (time.perf_counter() - start) / len(items)


def training_examples(histories: Histories, num_items: int, positives: int, negatives: int, seed: int, epoch: int) -> Examples:
    """Draw the examples of an epoch: a random sample of all next items, and random items outside the history.

    Each prompt has the first `lengths` items of a history, at least one.

    Raises:
        InputError: no user has two items, or a user has all items of the catalogue.

    >>> histories = Histories(np.array([0, 3]), np.array([5, 6, 7], dtype=np.int32))
    >>> examples = training_examples(histories, 9, positives=2, negatives=0, seed=0, epoch=0)
    >>> examples.lengths.tolist(), examples.items.tolist()
    ([1, 2], [6, 7])
    """
    owners = np.repeat(np.arange(len(histories.indptr) - 1), np.diff(histories.indptr))
    before = np.arange(len(owners)) - histories.indptr[owners]
    positions = np.flatnonzero(before > 0)
    if not len(positions):
        raise InputError("no user has two training items, so there is no history with a next item; TALLRec needs some")
    generator = np.random.default_rng((seed, epoch))
    chosen = np.sort(generator.choice(positions, min(positives, len(positions)), replace=False))
    items = [histories.items[chosen]]
    for user in owners[chosen] if negatives else ():
        own = histories.items[histories.indptr[user] : histories.indptr[user + 1]]
        others = np.setdiff1d(np.arange(num_items), own)
        if not len(others):
            raise InputError(f"user {user} has all {num_items} items, so there is none with the answer No; remove this user")
        items.append(generator.choice(others, negatives))
    repeats = np.repeat(chosen, negatives)
    positions = np.concatenate([chosen, repeats])
    labels = np.concatenate([np.ones(len(chosen)), np.zeros(len(repeats))]).astype(np.float32)
    return Examples(owners[positions], before[positions], np.concatenate(items).astype(np.int64), labels)


def _language_model(backbone: str) -> tuple[PreTrainedModel, Any]:
    """Load the backbone and its tokenizer.

    Raises:
        InputError: none is named.
        MissingFileError: there is no such backbone.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from modeling_cllm4rec.hub.loading import check_on_hub

    if not backbone:
        raise InputError("tallrec: backbone is not set; name a causal language model")
    check_on_hub(backbone, "backbone")
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        return AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32), tokenizer
    except OSError as error:
        raise MissingFileError(
            f"backbone: {backbone} is no folder with a language model and could not be read from the Hub ({error})"
        ) from error


def _padded(rows: list[npt.NDArray[np.int64]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (n, T) token ids padded on the right, (n, T) attention masks, and (n,) positions of the last tokens."""
    ids = torch.from_numpy(pad_right(rows, 0)).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    return ids, mask, lengths - 1


def _repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache with the single row of `cache` expanded to several rows; `cache` is not changed."""
    from transformers import DynamicCache

    layers: list[Any] = cache.layers  # of full attention, each with (1, heads, T, width) keys and values
    return DynamicCache([(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in layers])
