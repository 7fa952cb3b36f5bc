"""The losses of the paper as functions of a batch (sections 3.2 to 3.4), per document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation, Side
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.losses import ItemLoss, first_occurrence, multinomial_nll, squared_distances, word_nll
from modeling_cllm4rec.corpora.batches import Batch

Regularization = Literal["paper", "released"]


@dataclass
class LossTerms:
    """What a batch costs, document by document.

    Attributes:
        nll: (B,) -ln p summed over a document's main tokens, in nats.
        tokens: main tokens in the whole batch.
        mutual: (B,) sum over ID tokens of ||z - z^||^2 between the two sides, the other side held fixed.
        prior: (B,) sum over ID tokens of ||z||^2 of collaborative rows, 0 in a C step.
    """

    nll: torch.Tensor
    tokens: int
    mutual: torch.Tensor
    prior: torch.Tensor


@dataclass(frozen=True)
class RegularizationConfig:
    """Weights of the regularization: lambda_c, lambda_l (0 switches a term off), and how they are scaled.

    `"paper"`: nll + lambda_c / 2 * mutual + lambda_l / 2 * prior for each document, averaged over documents, distinct
    tokens counted once. `"released"`: the nll averaged over tokens (a recommendation's over users) and
    lambda_c * mutual summed over the whole batch, each occurrence of a token counted, as the released code computes it.
    """

    lambda_c: float = 1.0
    lambda_l: float = 0.0
    regularization: Regularization = "paper"

    def total(self, terms: LossTerms, documents: int, main_is_words_or_items: bool = True) -> torch.Tensor:
        """The scalar to be minimized.

        Args:
            documents: documents of the whole optimizer step, over all processes and accumulation steps; the parts of a
                step add up to the average over its documents.
            main_is_words_or_items: whether the nll is a sum over main tokens (pretraining), not over held-out items.
        """
        if self.regularization == "paper":
            cost = terms.nll + self.lambda_c / 2 * terms.mutual + self.lambda_l / 2 * terms.prior
            return cost.sum() / documents
        share = len(terms.nll) / documents
        units = terms.tokens if main_is_words_or_items else len(terms.nll)
        return share * (terms.nll.sum() / max(units, 1) + self.lambda_c * terms.mutual.sum())


def next_item_terms(
    model: CLLM4RecForRecommendation,
    batch: Batch,
    weights: RegularizationConfig,
    item_loss: ItemLoss = "exact",
    generator: torch.Generator | None = None,
) -> LossTerms:
    """The L step: interaction documents, each item predicted by f_l from what stands before it, the first one too."""
    document, place = _main_places(batch)
    hidden = model.hidden_states(batch.input_ids, batch.attention_mask, "collaborative")
    items = batch.input_ids[document, place] - model.config.id_offset - model.config.num_users
    table = model.item_collaborative.weight
    nll = multinomial_nll(hidden[document, place - 1], table, items[:, None], item_loss=item_loss, generator=generator)
    return _terms(model, _per_document(nll, document, batch), len(document), batch.input_ids, "collaborative", weights)


def next_word_terms(model: CLLM4RecForRecommendation, batch: Batch, weights: RegularizationConfig) -> LossTerms:
    """The C step: text documents, each word of the main text predicted by f_c from what stands before it."""
    document, place = _main_places(batch)
    hidden = model.hidden_states(batch.input_ids, batch.attention_mask, "content")
    nll = word_nll(model.word_head, hidden[document, place - 1], batch.input_ids[document, place])
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
    """The recommendation step: held-out items under the multinomial likelihood, from the prompt's last state.

    Args:
        average: divide a user's nll by the number of held-out items, so that every user weighs the same.
        teacher_weight: what the cross-entropy with the teacher's shares counts beside it, where the batch has them.
    """
    if batch.targets is None:
        raise InputError("holdout_terms needs a batch with targets")
    hidden = model.prompt_state(batch.input_ids, batch.attention_mask)
    table = model.item_collaborative.weight
    held = (batch.targets >= 0).sum(-1)
    targets, counts = batch.targets, torch.ones_like(batch.targets, dtype=torch.float32)
    if average:
        counts = counts / held.clamp(min=1)[:, None]
    if batch.soft_target_items is not None and batch.soft_target_probs is not None:
        targets = torch.cat([targets, batch.soft_target_items], dim=1)
        counts = torch.cat([counts, teacher_weight * batch.soft_target_probs], dim=1)
    nll = multinomial_nll(hidden, table, targets, item_loss=item_loss, generator=generator, weights=counts)
    first_item = model.config.id_offset + model.config.num_users
    targets = torch.where(batch.targets >= 0, batch.targets + first_item, 0)
    ids = torch.cat([batch.input_ids, targets], dim=1)
    return _terms(model, nll, int(held.sum()), ids, "collaborative", weights)


def _main_places(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Document and place of each main token."""
    places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    main = (places >= batch.prompt_lengths[:, None]) & batch.attention_mask.bool()
    document, place = main.nonzero(as_tuple=True)
    return document, place


def _per_document(values: torch.Tensor, document: torch.Tensor, batch: Batch) -> torch.Tensor:
    return torch.zeros(len(batch.input_ids), device=values.device).index_add(0, document, values)


def _terms(
    model: CLLM4RecForRecommendation,
    nll: torch.Tensor,
    tokens: int,
    ids: torch.Tensor,
    side: Side,
    weights: RegularizationConfig,
) -> LossTerms:
    """Add the regularization of one side's rows of all ID tokens in (B, T) `ids`."""
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
    for (indices, given), trained, fixed in zip(parts, model.tables(side), model.tables(other), strict=True):
        if weights.lambda_c:
            mutual = mutual + squared_distances(indices, given, trained, fixed)
        if weights.lambda_l and side == "collaborative":  # content rows have the collaborative ones as their prior mean
            prior = prior + squared_distances(indices, given, trained)
    return LossTerms(nll, tokens, mutual, prior)
