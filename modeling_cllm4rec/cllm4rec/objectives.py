"""The losses of the paper (sections 3.2 to 3.4) per document of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation, Side
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.losses import ItemLoss, first_occurrence, multinomial_nll, squared_distances, word_nll
from modeling_cllm4rec.corpora.batches import Batch
from modeling_cllm4rec.training.stages import StepOutput, item_generator

Regularization = Literal["paper", "released"]


@dataclass
class LossTerms:
    """The loss terms of a batch, document by document.

    Attributes:
        nll: (B,) -ln p summed over a document's main tokens, in nats.
        tokens: main tokens in the whole batch.
        mutual: (B,) sum over ID tokens of ||z - z^||^2 between the two sides; the other side gets no gradient.
        prior: (B,) sum over ID tokens of ||z||^2 of collaborative rows, 0 in a C step.
    """

    nll: torch.Tensor
    tokens: int
    mutual: torch.Tensor
    prior: torch.Tensor


@dataclass(frozen=True)
class RegularizationConfig:
    """Weights of the regularization, lambda_c and lambda_l (0 switches a term off), and their scaling.

    `"paper"`: nll + lambda_c / 2 * mutual + lambda_l / 2 * prior for each document, averaged over documents. Each distinct
    token counts once.

    `"released"`, as the released code computes it: the nll averaged over tokens (in a recommendation step over users), plus
    lambda_c * mutual summed over the whole batch. Each occurrence of a token counts.
    """

    lambda_c: float = 1.0
    lambda_l: float = 0.0
    regularization: Regularization = "paper"

    def total(self, terms: LossTerms, documents: int | torch.Tensor, main_is_words_or_items: bool = True) -> torch.Tensor:
        """Return the scalar to minimize.

        Args:
            terms: the terms of one part of a step.
            documents: documents of the whole optimizer step, over all processes and accumulation steps, so that the losses of
                the parts add up to the average over the documents of the step.
            main_is_words_or_items: whether the nll is a sum over main tokens (pretraining), not over held-out items.
        """
        if self.regularization == "paper":
            cost = terms.nll + self.lambda_c / 2 * terms.mutual + self.lambda_l / 2 * terms.prior
            return cost.sum() / documents
        share = len(terms.nll) / documents
        units = terms.tokens if main_is_words_or_items else len(terms.nll)
        return share * (terms.nll.sum() / max(units, 1) + self.lambda_c * terms.mutual.sum())


@dataclass(frozen=True)
class PretrainingObjective:
    """The L step or the C step of pretraining, as the trainer calls it.

    Attributes:
        side: `"collaborative"`, next items, or `"content"`, next words.
        weights: of the regularization.
        item_loss: see `losses.multinomial_nll`.
        seed: of the sampled items, the same in all parts of a step.
    """

    side: Side
    weights: RegularizationConfig
    item_loss: ItemLoss = "exact"
    seed: int = 0

    def __call__(self, model: CLLM4RecForRecommendation, num_items_in_batch: int, **tensors: torch.Tensor) -> StepOutput:
        """Return the share of the documents of a `Batch` in the loss of a step of `num_items_in_batch` documents."""
        batch = Batch(**tensors)
        if self.side == "content":
            terms = next_word_terms(model, batch, self.weights)
        else:
            terms = next_item_terms(model, batch, self.weights, self.item_loss, item_generator(self.seed))
        return _step_output(self.weights.total(terms, num_items_in_batch), terms.nll, terms.tokens)


@dataclass(frozen=True)
class HoldoutObjective:
    """The recommendation step of finetuning, as the trainer calls it; see `holdout_terms` and `PretrainingObjective`."""

    weights: RegularizationConfig
    item_loss: ItemLoss = "exact"
    average: bool = False
    teacher_weight: float = 0.0
    seed: int = 0

    def __call__(self, model: CLLM4RecForRecommendation, num_items_in_batch: int, **tensors: torch.Tensor) -> StepOutput:
        """Return the share of the users of a `Batch` in the loss of a step of `num_items_in_batch` users."""
        generator = item_generator(self.seed)
        terms = holdout_terms(model, Batch(**tensors), self.weights, self.item_loss, generator, self.average, self.teacher_weight)
        loss = self.weights.total(terms, num_items_in_batch, main_is_words_or_items=False)
        return _step_output(loss, terms.nll, len(terms.nll))


def _step_output(loss: torch.Tensor, nll: torch.Tensor, tokens: int) -> StepOutput:
    return StepOutput(loss, nll.detach().sum(), torch.tensor(tokens))


def next_item_terms(
    model: CLLM4RecForRecommendation,
    batch: Batch,
    weights: RegularizationConfig,
    item_loss: ItemLoss = "exact",
    generator: torch.Generator | None = None,
) -> LossTerms:
    """Compute the L step: f_l predicts each item of an interaction document from the tokens before it, also the first item."""
    document, position = _main_positions(batch)
    hidden = model.hidden_states(batch.input_ids, batch.attention_mask, "collaborative")
    items = batch.input_ids[document, position] - model.config.id_offset - model.config.num_users
    nll = _item_nll(model, hidden[document, position - 1], items[:, None], item_loss, generator)
    return _terms(model, _per_document(nll, document, batch), len(document), batch.input_ids, "collaborative", weights)


def next_word_terms(model: CLLM4RecForRecommendation, batch: Batch, weights: RegularizationConfig) -> LossTerms:
    """Compute the C step: f_c predicts each word of a main text from the tokens before it."""
    document, position = _main_positions(batch)
    hidden = model.hidden_states(batch.input_ids, batch.attention_mask, "content")
    # Only the states that predict a main token go through the word head: logits of prompts and padding cost memory for nothing.
    nll = word_nll(model.word_head, hidden[document, position - 1], batch.input_ids[document, position])
    return _terms(model, _per_document(nll, document, batch), len(document), batch.input_ids, "content", weights)


def holdout_terms(
    model: CLLM4RecForRecommendation,
    batch: Batch,
    weights: RegularizationConfig,
    item_loss: ItemLoss = "exact",
    generator: torch.Generator | None = None,
    average: bool = False,
    teacher_weight: float = 0.0,
) -> LossTerms:
    """Compute the recommendation step: the held-out items under the multinomial likelihood, given the last state of the prompt.

    Args:
        average: divide a user's nll by the number of held-out items, so that every user weighs the same.
        teacher_weight: weight of the cross-entropy with the soft targets of a teacher, if the batch has them.

    Raises:
        InputError: the batch has no targets.
    """
    if batch.targets is None:
        raise InputError("holdout_terms needs a batch with targets")
    hidden = model.prompt_state(batch.input_ids, batch.attention_mask)
    num_targets = (batch.targets >= 0).sum(-1)
    targets, counts = batch.targets, torch.ones_like(batch.targets, dtype=torch.float32)
    if average:
        counts = counts / num_targets.clamp(min=1)[:, None]
    # The cross-entropy with soft targets has the form of the multinomial nll, so both share one softmax over the catalogue.
    if batch.soft_target_items is not None and batch.soft_target_probs is not None:
        targets = torch.cat([targets, batch.soft_target_items], dim=1)
        counts = torch.cat([counts, teacher_weight * batch.soft_target_probs], dim=1)
    nll = _item_nll(model, hidden, targets, item_loss, generator, counts)
    first_item = model.config.id_offset + model.config.num_users
    targets = torch.where(batch.targets >= 0, batch.targets + first_item, 0)
    # Held-out items are regularized like those of the prompt, although their tokens are not in it.
    ids = torch.cat([batch.input_ids, targets], dim=1)
    return _terms(model, nll, int(num_targets.sum()), ids, "collaborative", weights)


def _item_nll(
    model: CLLM4RecForRecommendation,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    item_loss: ItemLoss,
    generator: torch.Generator | None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the (M,) nll of target items under the item head, whose rows are the collaborative ones."""
    return multinomial_nll(hidden, model.item_collaborative, targets, item_loss=item_loss, generator=generator, weights=weights)


def _main_positions(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the document and the position of each main token."""
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    main = (positions >= batch.prompt_lengths[:, None]) & batch.attention_mask.bool()
    document, position = main.nonzero(as_tuple=True)
    return document, position


def _per_document(values: torch.Tensor, document: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum the values of each document's tokens."""
    return torch.zeros(len(batch.input_ids), device=values.device).index_add(0, document, values)


def _terms(
    model: CLLM4RecForRecommendation,
    nll: torch.Tensor,
    tokens: int,
    ids: torch.Tensor,
    side: Side,
    weights: RegularizationConfig,
) -> LossTerms:
    """Add the regularization of the rows of one side for all ID tokens in (B, T) `ids`."""
    other: Side = "content" if side == "collaborative" else "collaborative"
    first_user = model.config.id_offset
    first_item = first_user + model.config.num_users
    counted = ids >= first_user
    if weights.regularization == "paper":
        counted = counted & first_occurrence(ids)
    mutual = torch.zeros(len(ids), device=ids.device)
    prior = torch.zeros(len(ids), device=ids.device)
    parts = (
        (ids - first_user, counted & (ids < first_item)),
        (ids - first_item, counted & (ids >= first_item)),
    )
    for (indices, present), trained, fixed in zip(parts, model.tables(side), model.tables(other), strict=True):
        if weights.lambda_c:
            mutual = mutual + squared_distances(indices, present, trained, fixed)
        if weights.lambda_l and side == "collaborative":  # the prior mean of content rows is the collaborative rows, not 0
            prior = prior + squared_distances(indices, present, trained)
    return LossTerms(nll, tokens, mutual, prior)
