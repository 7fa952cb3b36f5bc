"""A language model that reads titles only and answers Yes or No for each candidate, after TALLRec (arXiv 2305.00447).

As there: an instruction with the titles of a history and of one candidate, tuned through LoRA on the answer, and the candidate's
score is how much likelier Yes is than No. Otherwise: the wording is ours, ratings are not read, so items that a user did
not choose count as disliked, and any causal language model serves, not LLaMA-7B alone.
"""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import peft
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from modeling_cllm4rec.baselines.early_stopping import (
    TrainingPrecision,
    autocast,
    check_above_zero,
    check_counts,
    device_named,
)
from modeling_cllm4rec.baselines.registry import baseline
from modeling_cllm4rec.baselines.yes_no_prompts import YesNoPrompts
from modeling_cllm4rec.core.errors import DivergedError, InputError, MissingFileError
from modeling_cllm4rec.core.language_model import word_head
from modeling_cllm4rec.core.prompt_assembly import pad_right
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.interaction_matrix import check_items
from modeling_cllm4rec.corpora.item_texts import TITLE, item_texts

logger = logging.getLogger(__name__)

PROBE_PAIRS = 128
"""Most pairs of the history and the candidates that the cost of a long evaluation is estimated from."""


class Examples(NamedTuple):
    """What is asked in an epoch: (n,) the place in the histories that the candidate follows, the candidate, and its label."""

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

    Each pair of a history and an item is a pass of the language model over the item's title, so all J items of a large catalogue
    cost much; `score_candidates` scores some of them only.

    Args:
        language_model: causal, in evaluation mode.
        prompts: of the catalogue, by its tokenizer.
        candidates_at_once: items that go on from one history at a time; memory grows with it.
        precision: `"bf16"` computes in bfloat16.
        progress: show a bar of histories.
        max_hours: what would take longer in one call is refused; None refuses nothing.

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
        """Tune on train histories: the next item of each against items outside it. Validation is not looked at.

        Args:
            data: the data folder; its items need titles.
            seed: start of all random numbers.
            backbone: name or path of a causal language model.
            positives: next items that an epoch reads, a random sample of all; negatives: random items for each.
            max_history: most titles of a history, the last ones; max_title_tokens: longer titles are cut.
            epochs: passes over a new sample each.
            batch_size: prompts of a step.
            lr: learning rate of the LoRA matrices (AdamW); lora_rank, lora_alpha: their rank and scale.
            candidates_at_once, precision, progress: see the class.
            device: `"auto"` (a GPU where there is one), `"cpu"`, `"cuda"`, ...
            planned_pairs: (history, item) pairs that will be scored afterwards, so that what would take longer than `max_hours`
                is refused before the training; None refuses nothing.

        Raises:
            InputError: no backbone, a setting out of its range, items without titles, prompts that do not fit into the
                backbone's context, nobody with two training items, or an evaluation that would take longer than `max_hours`.
            MissingFileError: there is no such backbone.
        """
        check_counts(positives=positives, negatives=negatives, max_history=max_history, max_title_tokens=max_title_tokens)
        check_counts(epochs=epochs, batch_size=batch_size, lora_rank=lora_rank, lora_alpha=lora_alpha)
        check_above_zero(lr=lr, **({} if max_hours is None else {"max_hours": max_hours}))
        computing = autocast(place := device_named(device), precision)
        titles = item_texts(data.items, (TITLE,))[TITLE]
        model, tokenizer = _language_model(backbone)
        prompts = YesNoPrompts(
            tokenizer,
            titles,
            max_history=max_history,
            max_title_tokens=max_title_tokens,
            context_length=model.config.get_text_config().max_position_embeddings,
        )
        histories = data.histories("train")
        torch.nn.Module.to(model, place).eval()
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
            optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=lr, weight_decay=0.0)
            for epoch in range(epochs):
                model.train()
                examples = training_examples(histories, data.num_items, positives, negatives, seed, epoch)
                recommender.losses.append(
                    _train_epoch(recommender, histories, examples, optimizer, computing, batch_size, (seed, epoch))
                )
                logger.info("TALLRec, epoch %d of %d: %.4f nats an answer", epoch + 1, epochs, recommender.losses[-1])
            adapted.merge_and_unload()
        model.eval()
        return recommender

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """(batch, J) scores of all items, one row per history.

        Raises:
            InputError: items of another catalogue, or it would take longer than `max_hours`.
        """
        check_items(histories, self.num_items)
        rows = len(histories.indptr) - 1
        self.check_cost(rows * self.num_items, histories)
        everything = np.tile(np.arange(self.num_items, dtype=np.int32), rows)
        return self._scores(histories, Histories(np.arange(rows + 1) * self.num_items, everything))

    def score_candidates(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, candidates: Histories
    ) -> npt.NDArray[np.float32]:
        """(batch, J) scores of some items for each history, -inf for the others.

        Raises:
            InputError: items of another catalogue, or it would take longer than `max_hours`.
        """
        check_items(histories, self.num_items)
        check_items(candidates, self.num_items)
        self.check_cost(len(candidates.items), histories)
        return self._scores(histories, candidates)

    def check_cost(self, pairs: int, histories: Histories) -> None:
        """Estimate how long some pairs of a history and an item take, from a few of them, and tell or refuse.

        Raises:
            InputError: longer than `max_hours`.
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
        """(n,) scores of (n,) items after one history, which is read once: its keys and values are shared by all."""
        device = self.language_model.device
        body = self.language_model.base_model
        prefix = torch.from_numpy(self.prompts.prefix(history)).to(device)[None]
        suffixes = [self.prompts.suffix(int(item)) for item in items]
        by_length = np.argsort([len(suffix) for suffix in suffixes], kind="stable")
        scores = np.zeros(len(items), dtype=np.float32)
        with autocast(device, self.precision):
            cache = DynamicCache()
            body(input_ids=prefix, past_key_values=cache, use_cache=True, return_dict=True)
            for start in range(0, len(items), self.candidates_at_once):
                part = by_length[start : start + self.candidates_at_once]
                ids, mask, last = _padded([suffixes[number] for number in part], device)
                before = torch.ones(len(part), prefix.shape[1], dtype=mask.dtype, device=device)
                hidden = body(
                    input_ids=ids,
                    attention_mask=torch.cat([before, mask], dim=1),
                    position_ids=prefix.shape[1] + torch.arange(ids.shape[1], device=device).expand(len(part), -1),
                    past_key_values=_repeated(cache, len(part)),
                    use_cache=True,
                    return_dict=True,
                ).last_hidden_state
                scores[part] = self._answers(hidden[torch.arange(len(part)), last]).cpu().numpy()
        return scores

    def _answers(self, states: torch.Tensor) -> torch.Tensor:
        """(n,) float32 how much likelier Yes is than No after (n, K) states."""
        logits = word_head(self.language_model)(states).float()
        return logits[:, self.prompts.answers[0]] - logits[:, self.prompts.answers[1]]

    def _scores(self, histories: Histories, candidates: Histories) -> npt.NDArray[np.float32]:
        rows = len(histories.indptr) - 1
        scores = np.full((rows, self.num_items), -np.inf, dtype=np.float32)
        for row in tqdm(range(rows), desc="asking Yes or No", unit="history", disable=not self.progress, leave=False):
            history, items = (one.items[one.indptr[row] : one.indptr[row + 1]] for one in (histories, candidates))
            scores[row, items] = self.score_items(history, items)
        return scores

    def _probe(self, histories: Histories) -> float:
        """Seconds of a pair, measured on a history of middling length; the first pass only warms up."""
        middle = int(np.argsort(np.diff(histories.indptr), kind="stable")[(len(histories.indptr) - 1) // 2])
        history = histories.items[histories.indptr[middle] : histories.indptr[middle + 1]]
        items = np.random.default_rng(0).permutation(self.num_items)[:PROBE_PAIRS]
        self.score_items(history, items[:8])
        start = time.perf_counter()
        self.score_items(history, items)
        return (time.perf_counter() - start) / len(items)


def training_examples(histories: Histories, num_items: int, positives: int, negatives: int, seed: int, epoch: int) -> Examples:
    """Draw questions for an epoch: a random sample of all next items, and random items outside the history.

    Returns:
        `users` and `lengths` say what the prompt holds: the first `lengths` items of a user's history, one or more.

    Raises:
        InputError: no user has two items, or a user has all of the catalogue.

    >>> histories = Histories(np.array([0, 3]), np.array([5, 6, 7], dtype=np.int32))
    >>> examples = training_examples(histories, 9, positives=2, negatives=0, seed=0, epoch=0)
    >>> examples.lengths.tolist(), examples.items.tolist()
    ([1, 2], [6, 7])
    """
    owners = np.repeat(np.arange(len(histories.indptr) - 1), np.diff(histories.indptr))
    before = np.arange(len(owners)) - histories.indptr[owners]
    places = np.flatnonzero(before > 0)
    if not len(places):
        raise InputError("nobody has two training items, so there is no history with a next item; TALLRec needs some")
    generator = np.random.default_rng((seed, epoch))
    chosen = np.sort(generator.choice(places, min(positives, len(places)), replace=False))
    items = [histories.items[chosen]]
    for user in owners[chosen] if negatives else ():
        own = histories.items[histories.indptr[user] : histories.indptr[user + 1]]
        others = np.setdiff1d(np.arange(num_items), own)
        if not len(others):
            raise InputError(f"user {user} has all {num_items} items, so there is none to answer No for; leave this user out")
        items.append(generator.choice(others, negatives))
    repeats = np.repeat(chosen, negatives)
    asked = np.concatenate([chosen, repeats])
    labels = np.concatenate([np.ones(len(chosen)), np.zeros(len(repeats))]).astype(np.float32)
    return Examples(owners[asked], before[asked], np.concatenate(items).astype(np.int64), labels)


def _language_model(backbone: str) -> tuple[PreTrainedModel, Any]:
    if not backbone:
        raise InputError("tallrec: backbone is not set; name a causal language model (backbone=..., or --backbone)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        return AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32), tokenizer
    except OSError as error:
        raise MissingFileError(
            f"backbone: {backbone} is no folder with a language model and could not be read from the Hub ({error})"
        ) from error


def _train_epoch(
    recommender: TALLRecRecommender,
    histories: Histories,
    examples: Examples,
    optimizer: torch.optim.Optimizer,
    computing: torch.autocast,
    batch_size: int,
    numbers: tuple[int, int],
) -> float:
    """One pass over the examples: the mean loss."""
    model, prompts = recommender.language_model, recommender.prompts
    rows = []
    for user, length, item in zip(examples.users, examples.lengths, examples.items, strict=True):
        start = histories.indptr[user]
        rows.append(np.concatenate([prompts.prefix(histories.items[start : start + length]), prompts.suffix(int(item))]))
    plan = plan_batches(np.array([len(row) for row in rows]), batch_size, *numbers)
    total = 0.0
    for batch in tqdm(plan, desc=f"training TALLRec, epoch {numbers[1] + 1}", unit="step", disable=not recommender.progress):
        ids, mask, last = _padded([rows[number] for number in batch], model.device)
        labels = torch.from_numpy(examples.labels[batch]).to(model.device)
        with computing:
            hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True).last_hidden_state
            scores = recommender._answers(hidden[torch.arange(len(batch)), last])
        loss = F.binary_cross_entropy_with_logits(scores, labels)
        if not torch.isfinite(loss):
            raise DivergedError(f"TALLRec: the loss is {float(loss)}; lower lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([one for one in model.parameters() if one.requires_grad], 1.0)
        optimizer.step()
        total += float(loss.detach()) * len(batch)
    return total / len(rows)


def _padded(rows: list[npt.NDArray[np.int64]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(n, T) ids padded on the right, (n, T) 1 for real tokens, (n,) the last real place."""
    ids = torch.from_numpy(pad_right(rows, 0)).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    return ids, mask, lengths - 1


def _repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """Copy the one row of `cache` for several rows that continue from it; `cache` stays as it is."""
    layers: list[Any] = cache.layers  # of plain attention, each with (1, heads, T, width) keys and values
    return DynamicCache([(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in layers])
