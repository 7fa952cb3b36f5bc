"""New items for a trained CLLM4Rec: rows predicted from words, then a few steps in which only their content rows train."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.cllm4rec.catalogue_changes import Start
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.objectives import RegularizationConfig, next_word_terms
from modeling_cllm4rec.cllm4rec.prompts import Prompts, tokenize_template
from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.language_model import end_tokens
from modeling_cllm4rec.core.prompt_assembly import build_input_ids
from modeling_cllm4rec.corpora.batches import Batch, collate, plan_batches
from modeling_cllm4rec.corpora.item_texts import ITEM_TEXTS
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer
from modeling_cllm4rec.training.module_trainer import train_module

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewRowTraining:
    """Settings of the training of new items' content rows on their texts.

    It changes what the content LM writes of them. No recommendation changes: those read the collaborative rows, which get worse
    where the regularization moves them, too (docs/measurements.md, "Items that come later").

    Attributes:
        passes: passes over the texts of the new items; 0 leaves the rows where they started.
        lr: learning rate of their rows.
        lambda_c: weight of the pull towards their collaborative rows.
        batch_size: texts of a step.
        max_text_tokens: cut longer texts; None cuts nothing, and a text beyond the context is an error.
        seed: start of the random numbers that order the texts.
    """

    passes: int = 1
    lr: float = 1e-3
    lambda_c: float = 1.0
    batch_size: int = 32
    max_text_tokens: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        for name, least in (("passes", 0), ("lr", 0), ("lambda_c", 0), ("batch_size", 1), ("max_text_tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InputError(f"{name} is {value}; it must be {least} or more")


def add_items(
    model: CLLM4RecForRecommendation,
    tokenizer: PreTrainedTokenizerBase,
    items: pa.Table,
    *,
    start: Start = "regression",
    prediction_scale: float = 0.5,
    settling: NewRowTraining = NewRowTraining(),
    progress: bool = True,
) -> CLLM4RecTokenizer:
    """Add items by their texts alone: rows from words (`catalogue_changes.add_items`), then `train_new_rows`.

    Args:
        items: `item_id` and text columns.
        start, prediction_scale: see `catalogue_changes.add_items`.
        settling: see `NewRowTraining`.
        progress: show a bar while the new rows train.

    Returns:
        The tokenizer of the model with the new items.

    Raises:
        InputError: items that cannot be added (which).
    """
    first = model.config.num_items
    model.add_items(items, start=start, prediction_scale=prediction_scale, tokenizer=tokenizer)
    if settling.passes:
        train_new_rows(model, tokenizer, first, settling, progress=progress)
    return resized_tokenizer(tokenizer, model)


def resized_tokenizer(tokenizer: PreTrainedTokenizerBase, model: CLLM4RecForRecommendation) -> CLLM4RecTokenizer:
    """Return a saved model's tokenizer with the model's numbers of users and items."""
    config = model.config
    return CLLM4RecTokenizer.from_pretrained(tokenizer.name_or_path, num_users=config.num_users, num_items=config.num_items)


def train_new_rows(
    model: CLLM4RecForRecommendation,
    tokenizer: PreTrainedTokenizerBase,
    first: int,
    settling: NewRowTraining = NewRowTraining(),
    prompts: Prompts | None = None,
    progress: bool = True,
) -> list[float]:
    """Train the content rows of items `first` and above, and nothing else, on their texts in the catalogue.

    Each step is a C step (section 3.3): next words, and the pull of the content rows towards the collaborative ones. There is no
    L step: without interactions it would have only the pull the other way, and end in the content row, while trained
    collaborative rows are far from theirs.

    Args:
        model: the catalogue's table holds the texts of these items.
        tokenizer: the model's own; ID tokens are made from the model's configuration.
        first: index of the first new item.

    Returns:
        Nats a word, pass by pass.

    Raises:
        InputError: a text that does not fit into the context.
        DivergedError: the loss is not finite.
    """
    rows, lengths = _documents(model, tokenizer, first, settling.max_text_tokens, prompts or Prompts())
    weights = RegularizationConfig(settling.lambda_c)
    plans = [plan_batches(lengths[:, 1], settling.batch_size, settling.seed, number) for number in range(settling.passes)]
    nll, words, means = 0.0, 0, []

    def batches(number: int) -> Iterator[dict[str, torch.Tensor]]:
        steps = tqdm(plans[number], desc=f"settling items, pass {number + 1}", unit="step", disable=not progress)
        yield from (collate([rows[row] for row in part], lengths[part, 0]).tensors() for part in steps)

    def loss(**tensors: torch.Tensor) -> torch.Tensor:
        nonlocal nll, words
        terms = next_word_terms(model, Batch(**tensors), weights)
        nll, words = nll + float(terms.nll.detach().sum()), words + terms.tokens
        return weights.total(terms, len(terms.nll))

    def end_epoch(number: int, losses: list[float]) -> bool:
        nonlocal nll, words
        means.append(nll / max(words, 1))
        logger.info("settling items, pass %d: %.3f nats a word", number + 1, means[-1])
        nll, words = 0.0, 0
        return False

    with _only_rows(model, model.item_content.weight, first):
        train_module(
            model,
            batches,
            loss,
            torch.optim.AdamW([model.item_content.weight], lr=settling.lr, weight_decay=0.0),
            num_train_epochs=settling.passes,
            steps_per_epoch=len(plans[0]) if plans else 0,
            title="settling items",
            advice=f"lower lr (it is {settling.lr})",
            dropout=False,
            end_epoch=end_epoch,
        )
    return means


def _documents(
    model: CLLM4RecForRecommendation,
    tokenizer: PreTrainedTokenizerBase,
    first: int,
    max_text_tokens: int | None,
    prompts: Prompts,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Token ids of the text documents of the items from `first` on, and their (prompt, whole) lengths."""
    assert model.catalogue is not None
    table = model.catalogue.table.slice(first)
    end = end_tokens(tokenizer)
    first_token = model.config.id_offset + model.config.num_users + first
    rows, lengths = [], []
    for column in ITEM_TEXTS:
        if column not in table.column_names:
            continue
        segments = tokenize_template(prompts.item_text, tokenizer, column=column)
        texts = text_column(table, column)
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for number, words in enumerate(encoded):
            if words:
                prompt = build_input_ids(segments, item=first_token + number)
                closing = end if max_text_tokens is None or len(words) < max_text_tokens else []
                rows.append(np.concatenate([prompt, words[:max_text_tokens], closing]).astype(np.int64))
                lengths.append((len(prompt), len(rows[-1])))
    longest = max((whole for _, whole in lengths), default=0)
    if longest > model.config.context_length:
        raise InputError(
            f"a text of the new items has {longest} tokens with its prompt, and the backbone's context holds "
            f"{model.config.context_length}; set max_text_tokens to cut it"
        )
    return rows, np.array(lengths, dtype=np.int64).reshape(-1, 2)


@contextmanager
def _only_rows(model: torch.nn.Module, weight: torch.Tensor, first: int) -> Iterator[None]:
    """Within the block only the rows of a matrix from `first` on train; no dropout.

    The other rows get no gradient at all, so the optimizer leaves them as they are to the bit.
    """
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    was_training = model.training
    model.eval().requires_grad_(False)
    weight.requires_grad_(True)
    old = torch.arange(len(weight), device=weight.device) < first
    hook = weight.register_hook(lambda gradient: gradient.masked_fill(old[:, None], 0))
    try:
        yield
    finally:
        hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
            parameter.grad = None
        model.train(was_training)
