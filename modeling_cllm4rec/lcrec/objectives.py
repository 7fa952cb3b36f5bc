"""Losses of the alignment (section III-C of LC-Rec, arXiv 2311.09049), and what an item head and a teacher add to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modeling_cllm4rec.core.losses import word_nll
from modeling_cllm4rec.lcrec.item_targets import IGNORE_INDEX
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.training.stages import StepOutput


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
    nll, count = _nll_of_words(model, _states(model, input_ids, attention_mask), labels)
    return StepOutput(nll / num_items_in_batch, nll.detach(), count)


@dataclass(frozen=True)
class TaughtObjective:
    """`response_nll`, plus the losses of an item head and of a teacher at the items that documents predict.

    Attributes:
        teacher_weight: weight of the cross-entropy with a teacher's soft targets: for the codes of items, a sum over levels, and
            for the items themselves with an item head.
        item_head_weight: weight of the item head's losses.
    """

    teacher_weight: float = 0.0
    item_head_weight: float = 0.0

    def __call__(
        self,
        model: LCRecForRecommendation,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int,
        item_places: torch.Tensor,
        item_labels: torch.Tensor | None = None,
        item_histories: torch.Tensor | None = None,
        soft_shares: torch.Tensor | None = None,
        soft_items: torch.Tensor | None = None,
        soft_probs: torch.Tensor | None = None,
    ) -> StepOutput:
        """Compute a part's share of the loss of a step.

        Args:
            item_places, item_labels, item_histories: (S, 2), (S,) and (S, longest), see `item_targets`; the last two with an item
                head, whose softmax leaves the items of the history out.
            soft_shares: (S, L, K) with a teacher, see `item_targets.level_shares`.
            soft_items, soft_probs: (S, C) with a teacher and an item head, see `soft_targets.Teacher`.

        Returns:
            The loss; the reported nll is that of the true tokens.
        """
        states = _states(model, input_ids, attention_mask)
        loss = torch.zeros((), device=states.device)
        if soft_shares is None:
            nll, count = _nll_of_words(model, states, labels)
        else:
            nll, soft, count = _nll_of_codes(model, states, labels, item_places, soft_shares)
            loss = self.teacher_weight * soft
        if item_labels is not None and item_histories is not None:
            before = states[item_places[:, 0], item_places[:, 1] - 1]
            true, taught = _nll_of_items(model, before, item_labels, item_histories, soft_items, soft_probs)
            loss = loss + self.item_head_weight * (true + self.teacher_weight * taught)
        return StepOutput((nll + loss) / num_items_in_batch, nll.detach(), count)


def _states(model: LCRecForRecommendation, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    body = model.backbone.base_model
    states: torch.Tensor = body(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True
    ).last_hidden_state
    return states


def _nll_of_words(model: LCRecForRecommendation, states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed NLL of the response tokens, and their number."""
    # Only states before counted tokens go through the output layer, which is most of the memory of a large vocabulary.
    document, place = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    nll = word_nll(model.word_head, states[document, place - 1], labels[document, place]).sum()
    return nll, torch.tensor(len(document))


def _nll_of_codes(
    model: LCRecForRecommendation,
    states: torch.Tensor,
    labels: torch.Tensor,
    item_places: torch.Tensor,
    soft_shares: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the summed NLL of the response tokens, the cross-entropy with the soft targets of codes, and the tokens' number."""
    levels, size = soft_shares.shape[1:]
    level = torch.arange(levels, device=labels.device)
    soft_document = item_places[:, :1].expand(-1, levels)  # (S, L)
    soft_place = item_places[:, 1:] + level
    plain = labels != IGNORE_INDEX
    plain[soft_document, soft_place] = False
    nll, count = _nll_of_words(model, states, labels.masked_fill(~plain, IGNORE_INDEX))
    logits = model.word_head(states[soft_document, soft_place - 1]).float()  # (S, L, N)
    partition = logits.logsumexp(-1)
    true = labels[soft_document, soft_place][..., None]
    nll = nll + (partition - logits.gather(-1, true)[..., 0]).sum()
    tokens = model.config.first_index_token + size * level[:, None] + torch.arange(size, device=labels.device)  # (L, K)
    of_codes = logits.gather(-1, tokens.expand(len(logits), -1, -1))
    soft = (soft_shares.sum(-1) * partition - (soft_shares * of_codes).sum(-1)).sum()
    return nll, soft, count + soft_place.numel()


def _nll_of_items(
    model: LCRecForRecommendation,
    states: torch.Tensor,
    labels: torch.Tensor,
    histories: torch.Tensor,
    soft_items: torch.Tensor | None,
    soft_probs: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the item head's summed NLL of the true items, and its cross-entropy with the soft targets.

    Args:
        states: (S, K) before the items; labels: (S,); histories: (S, longest) and soft_items: (S, C), -100 where there are fewer.
    """
    assert model.item_head is not None
    logits = model.item_head(states)  # (S, J)
    # An item of the history is never recommended, so its logit costs nothing, unless the data repeats the item.
    given = (histories != IGNORE_INDEX) & (histories != labels[:, None])
    seen = torch.zeros_like(logits, dtype=torch.bool)
    row, place = given.nonzero(as_tuple=True)
    seen[row, histories[row, place]] = True
    partition = logits.masked_fill(seen, float("-inf")).logsumexp(-1)
    true = (partition - logits.gather(1, labels[:, None])[:, 0]).sum()
    if soft_items is None or soft_probs is None:
        return true, torch.zeros_like(true)
    of_items = logits.gather(1, soft_items.clamp(min=0))
    return true, (soft_probs * (partition[:, None] - of_items)).sum()
