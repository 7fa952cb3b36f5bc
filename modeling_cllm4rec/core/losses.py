"""Losses over catalogues and vocabularies of any size, and the mutual regularization that ties the two embeddings of an ID.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from .errors import InputError

ItemLoss = Literal["exact", "chunked", "sampled"]
"""How the softmax over the catalogue is computed: all logits at once, in chunks, or over sampled items."""

EXACT_LOGITS = 2**25
"""Most logits of a batch that `exact_or_chunked` holds at once: 134 MB in 32 bits, three times as much with their gradients."""


def exact_or_chunked(states: int, num_items: int) -> ItemLoss:
    """Return the quicker way to the exact loss of a batch: all of its logits at once, or in chunks.

    With few logits the second computation of each chunk costs more than it saves, with many the memory traffic does. The two are
    equally fast at about 1e7 logits on a CPU (docs/measurements.md).

    Args:
        states: that predict an item; num_items: J.

    Example:
        >>> exact_or_chunked(32, 100_000), exact_or_chunked(640, 100_000)
        ('exact', 'chunked')
    """
    return "exact" if states * num_items <= EXACT_LOGITS else "chunked"


class _ChunkedLogSumExp(torch.autograd.Function):
    """log sum_j exp(<h, z_j>) without ever holding all J logits; the backward pass computes them again."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, table: torch.Tensor, chunk: int) -> torch.Tensor:
        total = hidden.new_full((hidden.shape[0],), float("-inf"), dtype=torch.float32)
        for rows in table.split(chunk):
            total = torch.logaddexp(total, F.linear(hidden, rows).float().logsumexp(-1))
        ctx.save_for_backward(hidden, table, total)
        ctx.chunk = chunk
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, table, total = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_table = torch.empty_like(table)
        for start in range(0, table.shape[0], ctx.chunk):
            rows = table[start : start + ctx.chunk]
            weight = (F.linear(hidden, rows).float() - total[:, None]).exp() * grad_outputs[0][:, None]  # (M, chunk)
            weight = weight.to(hidden.dtype)
            grad_hidden += weight @ rows
            grad_table[start : start + ctx.chunk] = weight.t() @ hidden
        return grad_hidden.to(hidden.dtype), grad_table, None


def item_log_partition(hidden: torch.Tensor, table: torch.Tensor, chunk_size: int | None = None) -> torch.Tensor:
    """log of the softmax's denominator over all items, exact.

    Args:
        hidden: (M, K) states; table: (J, K) item rows.
        chunk_size: items at a time; `None` holds all (M, J) logits, a number holds (M, chunk_size) and computes the
            logits twice. Both give the same value.

    Returns:
        (M,) float32.
    """
    if chunk_size is None or chunk_size >= table.shape[0]:
        return F.linear(hidden, table.to(hidden.dtype)).float().logsumexp(-1)
    if chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}; it must be 1 or more, or None for all items at once")
    return _ChunkedLogSumExp.apply(hidden, table.to(hidden.dtype), chunk_size)


def sample_items(num_items: int, num_samples: int, generator: torch.Generator) -> torch.Tensor:
    """Draw distinct items, each set of `num_samples` with the same probability, in O(num_samples log num_samples).

    Up to twice as many items as samples are permuted. Of a larger catalogue, items are drawn with replacement until enough
    different ones are there. The first occurrences in a sequence of independent draws are a draw without replacement.

    Args:
        num_items: J; num_samples: S, at most J; generator: CPU random generator.

    Returns:
        (S,) int64 item indices.

    Example:
        >>> sample_items(10**9, 5, torch.Generator().manual_seed(0)).unique().numel()
        5
    """
    if num_items <= 2 * num_samples:
        return torch.randperm(num_items, generator=generator)[:num_samples]
    drawn = torch.empty(0, dtype=torch.long)
    while len(drawn) < num_samples:
        drawn = torch.cat([drawn, torch.randint(num_items, (num_samples,), generator=generator)])
        drawn = drawn[first_occurrence(drawn[None])[0]]
    return drawn[:num_samples]


def _weight(table: torch.Tensor | nn.Embedding) -> torch.Tensor:
    return table.weight if isinstance(table, nn.Embedding) else table


def _rows(table: torch.Tensor | nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of a table; an embedding is called: its gradient may be sparse, and other processes may hold its rows."""
    return table(ids) if isinstance(table, nn.Embedding) else F.embedding(ids, table)


def sampled_log_partition(
    hidden: torch.Tensor,
    table: torch.Tensor | nn.Embedding,
    positives: torch.Tensor,
    num_samples: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Estimate of the log partition from the positives and a uniform sample of other items, shared by all rows.

    A sampled item represents (J - P) / S items, where P of a row's items are its distinct positives and S of the sample are
    none of them: exp of the result is an unbiased estimate of the denominator, if more items are drawn than P.

    Args:
        hidden: (M, K); table: (J, K), see `multinomial_nll`; positives: (M, P) item indices, -100 where a row has fewer; one
            that occurs twice in a row counts once.
        num_samples: items drawn without replacement, at most J, see `sample_items`.
        generator: CPU random generator.

    Returns:
        (M,) float32.
    """
    num_items = _weight(table).shape[0]
    if not 0 < num_samples <= num_items:
        raise InputError(f"num_samples is {num_samples}; it must lie between 1 and the catalogue's {num_items} items")
    sample = sample_items(num_items, num_samples, generator).to(hidden.device)  # (S,)
    logits = F.linear(hidden, _rows(table, sample).to(hidden.dtype)).float()  # (M, S)
    own = _occurrences(sample, positives)  # (M, S): a positive is no negative
    given = (positives >= 0) & first_occurrence(positives)  # a held-out item is often a soft target as well
    rows = _rows(table, positives.clamp(min=0)).to(hidden.dtype)  # (M, P, K)
    positive = torch.einsum("mk,mpk->mp", hidden, rows).float().masked_fill(~given, float("-inf"))
    rest = num_items - given.sum(-1)  # (M,) items that are no positive
    drawn = num_samples - own.sum(-1)
    scale = (rest.clamp(min=1) / drawn.clamp(min=1)).log()
    return torch.cat([positive, logits.masked_fill(own, float("-inf")) + scale[:, None]], dim=1).logsumexp(-1)


def _occurrences(sample: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """Return (M, S), True where an item of the (S,) distinct ones is among the (M, P) positives of a row."""
    # By a search in sorted items: comparing all with all takes (M, S, P).
    ordered, order = sample.sort()
    place = torch.searchsorted(ordered, positives).clamp(max=len(sample) - 1)
    column = torch.where(ordered[place] == positives, order[place], len(sample))  # one column more takes those that are not there
    found = torch.zeros(len(positives), len(sample) + 1, dtype=torch.bool, device=sample.device)
    return found.scatter_(1, column, True)[:, :-1]


def multinomial_nll(
    hidden: torch.Tensor,
    table: torch.Tensor | nn.Embedding,
    targets: torch.Tensor,
    *,
    item_loss: ItemLoss = "exact",
    chunk_size: int = 8192,
    num_samples: int = 4096,
    generator: torch.Generator | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """-sum over a row's target items of ln softmax(Z h): the multinomial likelihood over the whole catalogue.

    With one target a row this is the next-item loss of the collaborative LM (section 3.2); with the held-out items of a
    user it is the recommendation loss (section 3.4).

    Args:
        hidden: (M, K) states that predict.
        table: (J, K) item rows, the tied item head, or the embedding that holds them. `"sampled"` only looks rows up in it, so
            its gradient may be sparse, and its rows may be shared by several processes.
        targets: (M, T) item indices, -100 where a row has fewer than T.
        item_loss: `"exact"` all J logits at once; `"chunked"` the same value with `chunk_size` logits at a time;
            `"sampled"` an estimate from `num_samples` items, for catalogues where neither fits.
        generator: needed for `"sampled"`.
        weights: (M, T) what each target counts; None counts each as 1.

    Returns:
        (M,) float32 in nats, 0 for a row without targets.

    Raises:
        InputError: an unknown `item_loss`, no generator for `"sampled"`, or an embedding with sparse gradients with another one.

    Example:
        >>> table = torch.zeros(4, 2)
        >>> multinomial_nll(torch.ones(1, 2), table, torch.tensor([[1, 3, -100]])).exp().round().item()
        16.0
    """
    if isinstance(table, nn.Embedding) and table.sparse and item_loss != "sampled":
        raise InputError(f"table.sparse is True, but item_loss {item_loss!r} reads all rows; use item_loss='sampled'")
    if item_loss == "sampled":
        if generator is None:
            raise InputError("item_loss 'sampled' draws items at random: give a generator")
        partition = sampled_log_partition(hidden, table, targets, min(num_samples, _weight(table).shape[0]), generator)
    elif item_loss in ("exact", "chunked"):
        partition = item_log_partition(hidden, _weight(table), chunk_size if item_loss == "chunked" else None)
    else:
        raise InputError(f"item_loss is {item_loss!r}; allowed are 'exact', 'chunked', 'sampled'")
    given = targets >= 0
    rows = _rows(table, targets.clamp(min=0)).to(hidden.dtype)  # (M, T, K)
    logits = torch.einsum("mk,mtk->mt", hidden, rows).float()
    counts = given if weights is None else given * weights
    return ((partition[:, None] - logits) * counts).sum(-1)


class _FrozenHeadNll(torch.autograd.Function):
    """Next-word losses of some states at a time; the gradient is made in the forward pass, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: nn.Module, words: torch.Tensor, chunk: int) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        weights: dict[str, torch.Tensor] = dict(head.named_parameters())
        if torch.is_autocast_enabled(hidden.device.type):  # frozen weights are not kept from one use to the next: cast once
            dtype = torch.get_autocast_dtype(hidden.device.type)
            weights = {name: weight.to(dtype) for name, weight in weights.items()}
        nll = torch.empty(len(hidden), device=hidden.device)
        gradient = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(wanted):
                states = hidden[part].detach().requires_grad_(wanted)
                logits = torch.func.functional_call(head, weights, (states,))
            scores, target = logits.detach(), words[part, None]
            shares = scores.softmax(-1)
            share = shares.gather(1, target)[:, 0].float()
            nll[part] = -share.log()
            if not share.all():  # too small for a number: its logarithm is not
                lost = share == 0
                nll[part][lost] = -scores[lost].float().log_softmax(-1).gather(1, target[lost])[:, 0]
            if wanted:
                shares.scatter_add_(1, target, torch.full_like(target, -1, dtype=shares.dtype))
                gradient[part] = torch.autograd.grad(logits, states, shares)[0]
        ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None].to(gradient.dtype), None, None, None


def word_nll(head: nn.Module, hidden: torch.Tensor, words: torch.Tensor, chunk_size: int = 256) -> torch.Tensor:
    """-ln softmax(head(h)) of one word for each state: the next-word loss of the content LM (section 3.2).

    With a frozen head, `chunk_size` states at a time go through it forth and back at once, so that (M, N) logits are never
    held and weights are cast to 16 bits once. A head that trains sees all states together.

    Args:
        head: from states (M, K) to logits (M, N); hidden: (M, K); words: (M,) word ids.

    Returns:
        (M,) float32 in nats.

    Example:
        >>> head = torch.nn.Linear(2, 8, bias=False).requires_grad_(False)
        >>> word_nll(head, torch.zeros(1, 2), torch.tensor([3])).exp().round().item()
        8.0
    """
    if any(weight.requires_grad for weight in head.parameters()):
        return F.cross_entropy(head(hidden).float(), words, reduction="none")
    return _FrozenHeadNll.apply(hidden, head, words, chunk_size)


def first_occurrence(ids: torch.Tensor) -> torch.Tensor:
    """Return a (B, T) mask, True at the first occurrence of a token id in its row: a document's distinct tokens.

    Example:
        >>> first_occurrence(torch.tensor([[5, 7, 5]])).tolist()
        [[True, True, False]]
    """
    order = ids.sort(dim=1, stable=True)
    new = torch.ones_like(ids, dtype=torch.bool)
    new[:, 1:] = order.values[:, 1:] != order.values[:, :-1]
    return torch.zeros_like(new).scatter(1, order.indices, new)


def squared_distances(
    indices: torch.Tensor, given: torch.Tensor, trained: nn.Embedding, fixed: nn.Embedding | None = None
) -> torch.Tensor:
    """sum over a document's tokens of ||z_trained - z_fixed||^2, z_fixed held constant (0 when `fixed` is None).

    The mutual regularization of equations for the L and the C step, without its factor lambda_c / 2; with
    `fixed=None` the Gaussian prior without lambda_l / 2.

    Args:
        indices: (B, T) rows of the tables; given: (B, T) which of them count.

    Returns:
        (B,) float32.
    """
    indices = indices.masked_fill(~given, 0)
    difference = trained(indices).float()
    if fixed is not None:
        with torch.no_grad():
            held = fixed(indices).float()
        difference = difference - held
    return (difference.square().sum(-1) * given).sum(-1)


__all__ = [
    "ItemLoss",
    "exact_or_chunked",
    "first_occurrence",
    "item_log_partition",
    "multinomial_nll",
    "sample_items",
    "sampled_log_partition",
    "squared_distances",
    "word_nll",
]
