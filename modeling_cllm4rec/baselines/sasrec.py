"""SASRec: a causal transformer over item histories (Kang and McAuley, ICDM 2018, arXiv 1808.09781), with a softmax loss.

The original loss has one random negative per item, which makes the model weak. With a softmax over all items, or with a sampled
softmax that is corrected for its sampling, the same network is among the strongest sequential models (Klenitskiy and Vasilev,
RecSys 2023, arXiv 2309.07602). eSASRec (RecSys 2025, arXiv 2508.06450) adds the gated blocks of LiGR (arXiv 2502.03417).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from modeling_cllm4rec.baselines.early_stopping import (
    Stopping,
    TrainingPrecision,
    Validation,
    autocast,
    check_above_zero,
    check_counts,
    check_shares,
    device_named,
    train_until_best,
)
from modeling_cllm4rec.baselines.registry import baseline
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.losses import multinomial_nll
from modeling_cllm4rec.core.prompt_assembly import pad_right
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.history_order import is_ordered, warn_if_unordered
from modeling_cllm4rec.corpora.interaction_matrix import check_items
from modeling_cllm4rec.corpora.text_vectors import TFIDF, text_vectors, whitened_rows

Loss = Literal["full", "sampled"]
Block = Literal["transformer", "ligr"]
ItemRows = Literal["random", "text"]
ROW_STD = 0.02
"""Standard deviation of item rows and positions at the start."""
IGNORE_INDEX = -100
"""Padding of a history on the right: no input item and no target."""
SPACE = {
    "size": {"choice": [64, 128, 256]},
    "layers": {"choice": [1, 2]},
    "heads": {"choice": [1, 2]},
    "dropout": {"choice": [0.2, 0.3, 0.5]},
    "temperature": {"choice": [None, 0.05, 0.07, 0.1]},
    "lr": {"log_uniform": [3.0e-4, 3.0e-3]},
}
"""Search space of both baselines."""


class LiGRBlock(nn.Module):
    """A transformer block whose two residuals pass a sigmoid gate of the state (LiGR, arXiv 2502.03417), with SwiGLU inside.

    Args:
        size: width of states, K.
        heads: of the attention.
        dropout: of attention, feed-forward layer and residuals.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, heads, dropout, batch_first=True)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention_gate, self.feed_forward_gate = nn.Linear(size, size), nn.Linear(size, size)
        self.up, self.gate = (nn.Linear(size, 4 * size, bias=False) for _ in range(2))
        self.down = nn.Linear(4 * size, size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor, src_mask: torch.Tensor, is_causal: bool) -> torch.Tensor:
        """Return (B, T, K) states after attention and feed-forward layer."""
        given = self.attention_norm(states)
        attended, _ = self.attention(given, given, given, attn_mask=src_mask, is_causal=is_causal, need_weights=False)
        states = states + self.attention_gate(states).sigmoid() * self.dropout(attended)
        given = self.feed_forward_norm(states)
        inner = self.down(self.dropout(F.silu(self.gate(given)) * self.up(given)))
        return states + self.feed_forward_gate(states).sigmoid() * self.dropout(inner)


class SASRec(nn.Module):
    """Map histories to states that predict the next item; the item rows are both the input and the output embedding.

    A learned start vector precedes the first item, so that an empty history also has a state.

    Args:
        num_items: size of the catalogue, J.
        size: width of all states, K.
        layers, heads: of the transformer; the feed-forward layers are `4 * size` wide.
        dropout: of embeddings, attention and feed-forward layers.
        max_length: largest number of items of an input.
        temperature: None scores by dot product; a number scores by cosine over this temperature.
        block: `"transformer"`, the blocks of SASRec with GELU, or `"ligr"`, see `LiGRBlock`.
    """

    def __init__(
        self,
        num_items: int,
        size: int,
        layers: int,
        heads: int,
        dropout: float,
        max_length: int,
        temperature: float | None = None,
        block: Block = "transformer",
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.temperature = temperature
        self.items = nn.Embedding(num_items, size)
        self.positions = nn.Embedding(max_length + 1, size)
        self.start = nn.Parameter(torch.zeros(size))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            LiGRBlock(size, heads, dropout)
            if block == "ligr"
            else nn.TransformerEncoderLayer(size, heads, 4 * size, dropout, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size)
        nn.init.normal_(self.items.weight, std=ROW_STD)
        nn.init.normal_(self.positions.weight, std=ROW_STD)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Compute the states of histories.

        Args:
            items: (B, T) item indices, oldest first, padded on the right by `IGNORE_INDEX`; T is at most `max_length`.

        Returns:
            (B, T + 1, K); state t depends on the first t items and predicts the next one.
        """
        rows = self.items(items.clamp(min=0)) * self.items.embedding_dim**0.5
        states = torch.cat([self.start.expand(len(items), 1, -1), rows], dim=1)
        states = self.dropout(states + self.positions.weight[: states.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(states.shape[1], device=items.device)
        for layer in self.layers:
            states = layer(states, src_mask=mask, is_causal=True)
        states = self.norm(states)
        return states if self.temperature is None else F.normalize(states, dim=-1) / self.temperature

    @torch.no_grad()
    def start_from(self, rows: npt.NDArray[np.float32]) -> None:
        """Set the item rows to (J, K) rows of variance 1; numbers that are 0 there keep their random start."""
        given = torch.from_numpy(rows).to(self.items.weight.device)
        self.items.weight.copy_(torch.where(given == 0, self.items.weight, ROW_STD * given))

    def item_table(self) -> torch.Tensor:
        """Return (J, K) rows whose products with states are logits."""
        return self._outputs(self.items.weight)

    def item_rows(self, items: torch.Tensor) -> torch.Tensor:
        """Return (..., K) rows of the item table."""
        return self._outputs(self.items(items))

    def _outputs(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.temperature is None else F.normalize(rows, dim=-1)


@baseline(
    "sasrec",
    title="SASRec",
    summary="causal transformer, softmax over all items",
    space=SPACE,
    fixed={"loss": "full"},
    unused=("num_samples", "sampling_power"),
    order=7,
)
@baseline(
    "esasrec",
    title="eSASRec",
    summary="causal transformer of one gated block, sampled softmax",
    space={**SPACE, "num_samples": {"choice": [256, 512, 1024, 2048]}, "sampling_power": {"choice": [0.0, 0.5, 0.75]}},
    fixed={"loss": "sampled"},
    unused=("chunk_size",),
    defaults={
        "num_samples": 256,
        "block": "ligr",
        "size": 64,
        "dropout": 0.2,
        "temperature": None,
        "epochs": 200,
        "patience": 50,
    },
    order=8,
)
class SASRecRecommender:
    """Scores items by the logits after the last item of a history, of which the last `max_length` items are used.

    Attributes:
        validations: results of the validations during training.
    """

    def __init__(self, module: SASRec, precision: TrainingPrecision = "no") -> None:
        self.module = module
        self.precision = precision
        self.num_items = module.items.num_embeddings
        self.validations: list[Validation] = []

    @classmethod
    def fit(
        cls,
        data: RecommendationData,
        *,
        seed: int = 0,
        loss: Loss = "full",
        chunk_size: int | None = None,
        num_samples: int = 1024,
        sampling_power: float = 0.0,
        size: int = 128,
        layers: int = 1,
        heads: int = 1,
        dropout: float = 0.5,
        max_length: int = 50,
        temperature: float | None = 0.07,
        block: Block = "transformer",
        item_rows: ItemRows = "random",
        encoder: str = TFIDF,
        fields: Sequence[str] | None = None,
        reorder: bool | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        batch_size: int = 128,
        epochs: int = 100,
        patience: int = 10,
        validate_every: int = 1,
        validation_users: int | None = None,
        metric: str = "ndcg@10",
        precision: TrainingPrecision = "no",
        device: str = "auto",
        progress: bool = True,
    ) -> Self:
        """Train on the train histories with early stopping. A forward pass predicts every item of a history.

        A history of more than `max_length` items is split into segments of that length, from its end.

        Args:
            data: the data folder.
            seed: start of all random numbers.
            loss: `"full"` is the softmax over all items; `"sampled"` estimates its denominator without bias from `num_samples`
                items, see `sampled_nll`.
            chunk_size: of `"full"`: items per chunk, for the same value in less memory; None computes all items together.
            num_samples: of `"sampled"`: mean number of items drawn for each batch.
            sampling_power: of `"sampled"`: items are drawn in proportion to their number of users to this power.
            size, layers, heads, dropout, max_length, temperature, block: see `SASRec`.
            item_rows: start of the item rows: `"random"`, or `"text"` for whitened text vectors, see
                `text_vectors.whitened_rows`; items without text start at random.
            encoder, fields: of `"text"`, see `text_vectors.text_vectors`.
            reorder: True shuffles each history again in each epoch, False reads it in the order of the data. None reads the order
                where it means something, see `history_order.is_ordered`, and elsewhere shuffles, with a warning.
            lr, weight_decay: of AdamW.
            batch_size: histories per batch; histories of similar length are batched together.
            epochs, patience, validate_every, validation_users, metric: see `Stopping`.
            precision: `"bf16"` computes in bfloat16.
            device: `"auto"` (a GPU if there is one), `"cpu"`, `"cuda"`, ...
            progress: show a progress bar.

        Raises:
            InputError: a setting is out of its range, no item has a text, or no user has a validation item.
            MissingPackageError: the encoder needs a package that is not installed.

        Warns:
            UnorderedHistoriesWarning: the order of histories means nothing in this data, and `reorder` is not True.
        """
        stopping = Stopping(epochs, patience, validate_every, metric, validation_users)
        check_counts(size=size, layers=layers, heads=heads, max_length=max_length, batch_size=batch_size)
        check_counts(**({} if chunk_size is None else {"chunk_size": chunk_size}))
        check_shares(dropout=dropout)
        check_above_zero(lr=lr, **({} if temperature is None else {"temperature": temperature}))
        if size % heads:
            raise InputError(f"size is {size} and heads is {heads}; size must be a multiple of heads")
        for name, value, allowed in (("loss", loss, Loss), ("block", block, Block), ("item_rows", item_rows, ItemRows)):
            if value not in get_args(allowed):
                raise InputError(f"{name} is {value!r}; allowed are {' and '.join(map(repr, get_args(allowed)))}")
        reorder = _reorders(data, reorder)
        on_device = device_named(device)
        computing = autocast(on_device, precision)
        histories = data.histories("train")
        segments = training_segments(histories, max_length)
        counts = np.bincount(histories.items, minlength=data.num_items)
        probabilities = torch.from_numpy(inclusion_probabilities(counts, num_samples, sampling_power)).to(on_device)
        lengths = np.array([len(segment) for segment in segments])
        generator = torch.Generator(on_device).manual_seed(seed)

        def batches(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
            rows = training_segments(reordered(histories, seed, epoch), max_length) if reorder else segments
            for batch in plan_batches(lengths, batch_size, seed, epoch):
                yield {"items": torch.from_numpy(pad_right([rows[number] for number in batch], IGNORE_INDEX))}

        def batch_loss(items: torch.Tensor) -> torch.Tensor:
            given = items >= 0  # the target of state t is item t
            with computing:
                states = module(items[:, :-1])[given]  # (M, K)
                if loss == "sampled":
                    nll = sampled_nll(states, module.item_rows, items[given], probabilities, generator)
                else:
                    nll = multinomial_nll(
                        states,
                        module.item_table(),
                        items[given][:, None],
                        item_loss="exact" if chunk_size is None else "chunked",
                        chunk_size=chunk_size or data.num_items,
                    )
            return nll.mean()

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = SASRec(data.num_items, size, layers, heads, dropout, max_length, temperature, block).to(on_device)
            if item_rows == "text":
                module.start_from(whitened_rows(text_vectors(data, encoder=encoder, fields=fields, device=device), size, seed))
            recommender = cls(module, precision)
            recommender.validations = train_until_best(
                recommender,
                module,
                data,
                batches,
                batch_loss,
                stopping,
                steps_per_epoch=-(-len(segments) // batch_size),
                lr=lr,
                weight_decay=weight_decay,
                title="SASRec",
                progress=progress,
            )
        return recommender

    @torch.no_grad()
    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) logits, one row per history."""
        check_items(histories, self.num_items)
        items = np.asarray(histories.items, dtype=np.int64)
        limit = self.module.max_length
        rows = [items[max(start, end - limit) : end] for start, end in zip(histories.indptr, histories.indptr[1:], strict=False)]
        lengths = torch.tensor([len(row) for row in rows])
        device = self.module.start.device
        with autocast(device, self.precision):
            states = self.module(torch.from_numpy(pad_right(rows, IGNORE_INDEX)).to(device))
        last = states[torch.arange(len(rows)), lengths].float()
        logits = F.linear(last, self.module.item_table())  # in 32 bits, because many items would tie in 16
        scores: npt.NDArray[np.float32] = logits.cpu().numpy()
        return scores


def training_segments(histories: Histories, max_length: int) -> list[npt.NDArray[np.int64]]:
    """Return the non-empty histories in segments of at most `max_length` items, split from the end.

    >>> [segment.tolist() for segment in training_segments(Histories(np.array([0, 3]), np.array([5, 6, 7], dtype=np.int32)), 2)]
    [[6, 7], [5]]
    """
    items = np.asarray(histories.items, dtype=np.int64)
    segments: list[npt.NDArray[np.int64]] = []
    for start, end in zip(histories.indptr[:-1], histories.indptr[1:], strict=True):
        segments.extend(items[max(start, last - max_length) : last] for last in range(end, start, -max_length))
    return segments


def reordered(histories: Histories, seed: int, epoch: int) -> Histories:
    """Return histories with their items in a random order that depends on (seed, epoch).

    >>> histories = Histories(np.array([0, 3, 4]), np.array([5, 6, 7, 1], dtype=np.int32))
    >>> reordered(histories, seed=0, epoch=1).items.tolist()
    [6, 7, 5, 1]
    """
    users = np.repeat(np.arange(len(histories.indptr) - 1), np.diff(histories.indptr))
    order = np.lexsort((np.random.default_rng((seed, epoch)).random(len(users)), users))
    return Histories(histories.indptr, histories.items[order])


def _reorders(data: RecommendationData, reorder: bool | None) -> bool:
    """Return whether histories are shuffled, after a warning where their order means nothing."""
    if reorder is None:
        warn_if_unordered(data, "SASRec shuffles them in each epoch; reorder=True does so without a warning")
        return not is_ordered(data)
    if not reorder:
        warn_if_unordered(data, "SASRec reads it with reorder=False; reorder=True shuffles them in each epoch")
    return reorder


def inclusion_probabilities(counts: npt.NDArray[np.integer], num_samples: int, power: float) -> npt.NDArray[np.float32]:
    """Return the probability of each item to be drawn.

    It is min(1, c (users + 1) ** power), with c such that the probabilities sum to `num_samples`.

    Args:
        counts: (J,) users of each item.
        num_samples: mean number of drawn items; from J on, all items are drawn.
        power: 0 draws uniformly, 1 by popularity.

    Raises:
        InputError: `num_samples` is below 1, or `power` is not in [0, 1].

    >>> inclusion_probabilities(np.array([0, 0, 1, 99]), num_samples=2, power=1.0).tolist()
    [0.25, 0.25, 0.5, 1.0]
    """
    check_counts(num_samples=num_samples)
    if not 0 <= power <= 1:
        raise InputError(f"sampling_power is {power}; it must lie between 0 (uniform) and 1 (by popularity)")
    weights = (counts + 1.0) ** power
    if num_samples >= len(weights):
        return np.ones(len(weights), dtype=np.float32)
    ascending = np.sort(weights)
    rest = num_samples - np.arange(len(weights))[::-1]  # samples left for the k smallest if all others are always drawn
    factors = rest / np.cumsum(ascending)
    factor = factors[np.flatnonzero((rest > 0) & (factors * ascending <= 1))[-1]]
    return np.minimum(1.0, factor * weights).astype(np.float32)


def sampled_nll(
    hidden: torch.Tensor,
    rows_of: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    probabilities: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return -ln softmax of the target, with the denominator estimated from a sample of items that all rows share.

    Each item is drawn independently with its probability p and is weighted by 1 / p, which is the logQ correction (Bengio and
    Senecal, 2008; Yi et al., RecSys 2019). The estimate of the denominator is unbiased for all probabilities, and
    probabilities of 1 give the full softmax.

    Args:
        hidden: (M, K) states.
        rows_of: (n,) item indices -> (n, K) rows of the item table.
        targets: (M,) item indices.
        probabilities: (J,) in (0, 1], see `inclusion_probabilities`.
        generator: random numbers on the device of `probabilities`.

    Returns:
        (M,) float32 in nats.
    """
    drawn = torch.rand(probabilities.shape, generator=generator, device=probabilities.device) < probabilities
    sample = drawn.nonzero()[:, 0]  # (S,)
    logits = F.linear(hidden, rows_of(sample).to(hidden.dtype)).float() - probabilities[sample].log()
    # The target is always in the denominator, so it is removed from the sample: it would count twice.
    logits = logits.masked_fill(sample == targets[:, None], float("-inf"))
    own = (hidden * rows_of(targets)).sum(-1, keepdim=True).float()  # (M, 1)
    return torch.cat([own, logits], dim=1).logsumexp(-1) - own[:, 0]
