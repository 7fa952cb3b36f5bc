"""Mult-VAE: a variational autoencoder with a multinomial likelihood (Liang et al., WWW 2018, arXiv 1802.05814)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

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
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.interaction_matrix import check_items
from modeling_cllm4rec.evaluation.evaluator import select_users


class MultVAE(nn.Module):
    """Map the items of a history to a normal distribution in `latent_size` dimensions, and from there to logits of all items.

    Args:
        num_items: size of the catalogue, J.
        hidden_size: width of the layer between items and latent space, in encoder and decoder.
        latent_size: dimensions of the latent space.
        dropout: probability that an item of the input is dropped in training.
    """

    def __init__(self, num_items: int, hidden_size: int, latent_size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.item_rows = nn.Parameter(torch.empty(num_items, hidden_size))  # the first layer: its input is sparse
        self.item_bias = nn.Parameter(torch.zeros(hidden_size))
        self.encoder = nn.Linear(hidden_size, 2 * latent_size)
        self.decoder = nn.Sequential(nn.Linear(latent_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, num_items))
        nn.init.xavier_normal_(self.item_rows)
        for layer in (self.encoder, self.decoder[0], self.decoder[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight)
            nn.init.trunc_normal_(layer.bias, std=0.001)

    def forward(self, items: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute logits and KL divergences of histories.

        Args:
            items: (nnz,) item indices of all histories.
            starts: (batch,) position of the first item of each history.

        Returns:
            (batch, J) logits and (batch,) KL divergences from the standard normal distribution, in nats. In training the
            latent vector is sampled, otherwise it is the mean.
        """
        ends = torch.cat([starts[1:], starts.new_tensor([len(items)])])
        values = (ends - starts).clamp(min=1).rsqrt().repeat_interleave(ends - starts)  # rows of length 1
        values = F.dropout(values, self.dropout, self.training)
        hidden = F.embedding_bag(items, self.item_rows, starts, mode="sum", per_sample_weights=values)
        mean, log_variance = self.encoder((hidden + self.item_bias).tanh()).float().chunk(2, dim=-1)
        divergence = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1)
        latent = mean
        if self.training:
            latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(latent), divergence


@baseline(
    "multvae",
    title="Mult-VAE",
    summary="variational autoencoder, multinomial likelihood",
    space={
        "hidden_size": {"choice": [200, 400, 600]},
        "latent_size": {"choice": [64, 128, 200]},
        "dropout": {"choice": [0.3, 0.5, 0.7]},
        "beta": {"choice": [0.05, 0.1, 0.2, 0.5, 1.0]},
        "lr": {"log_uniform": [3.0e-4, 3.0e-3]},
    },
    order=6,
)
class MultVAERecommender:
    """Scores items by the logits of a trained Mult-VAE, also for an empty history.

    Attributes:
        validations: results of the validations during training.
    """

    def __init__(self, module: MultVAE) -> None:
        self.module = module
        self.num_items = len(module.item_rows)
        self.validations: list[Validation] = []

    @classmethod
    def fit(
        cls,
        data: RecommendationData,
        *,
        seed: int = 0,
        hidden_size: int = 600,
        latent_size: int = 200,
        dropout: float = 0.5,
        beta: float = 0.2,
        anneal_epochs: int = 50,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        batch_size: int = 256,
        epochs: int = 100,
        patience: int = 10,
        validate_every: int = 1,
        validation_users: int | None = None,
        metric: str = "ndcg@10",
        precision: TrainingPrecision = "no",
        device: str = "auto",
        progress: bool = True,
    ) -> Self:
        """Train on the train histories with early stopping.

        Args:
            data: the data folder.
            seed: start of all random numbers.
            hidden_size, latent_size: see `MultVAE`; the defaults are those of the paper.
            dropout: probability that an input item is dropped.
            beta: weight of the divergence at the end of the annealing.
            anneal_epochs: epochs in which that weight rises linearly from 0 to `beta`.
            lr, weight_decay: of AdamW.
            batch_size: users per batch.
            epochs, patience, validate_every, validation_users, metric: see `Stopping`.
            precision: `"bf16"` computes in bfloat16.
            device: `"auto"` (a GPU if there is one), `"cpu"`, `"cuda"`, ...
            progress: show a progress bar.

        Raises:
            InputError: a setting is out of its range, or no user has a validation item.
        """
        stopping = Stopping(epochs, patience, validate_every, metric, validation_users)
        check_counts(hidden_size=hidden_size, latent_size=latent_size, batch_size=batch_size, anneal_epochs=anneal_epochs)
        check_shares(dropout=dropout)
        check_above_zero(lr=lr)
        if not beta >= 0:
            raise InputError(f"beta is {beta}; it must be 0 or more")
        on_device = device_named(device)
        computing = autocast(on_device, precision)
        histories = data.histories("train")
        users = np.flatnonzero(np.diff(histories.indptr))
        steps = -(-len(users) // batch_size)  # per epoch, rounded up

        def batches(epoch: int) -> Iterator[dict[str, Any]]:
            order = np.random.default_rng((seed, epoch)).permutation(users)
            for number, start in enumerate(range(0, len(order), batch_size)):
                weight = beta * min(1.0, (epoch + number / steps) / anneal_epochs)
                yield {"users": order[start : start + batch_size], "beta": weight}

        def loss(users: npt.NDArray[np.integer], beta: float) -> torch.Tensor:
            with computing:
                return negative_elbo(module, select_users(histories, users), beta)

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = MultVAE(data.num_items, hidden_size, latent_size, dropout).to(on_device)
            recommender = cls(module)
            recommender.validations = train_until_best(
                recommender,
                module,
                data,
                batches,
                loss,
                stopping,
                steps_per_epoch=steps,
                lr=lr,
                weight_decay=weight_decay,
                title="Mult-VAE",
                progress=progress,
            )
        return recommender

    @torch.no_grad()
    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) logits, one row per history."""
        check_items(histories, self.num_items)
        logits, _ = self.module(*_tensors(histories, self.module.item_rows.device))
        scores: npt.NDArray[np.float32] = logits.float().cpu().numpy()
        return scores


def negative_elbo(module: MultVAE, histories: Histories, beta: float) -> torch.Tensor:
    """Return the mean over histories of -ln p(items) + beta KL (eq. 5 of the paper), a scalar in nats."""
    items, starts = _tensors(histories, module.item_rows.device)
    logits, divergence = module(items, starts)
    lengths = torch.diff(starts, append=starts.new_tensor([len(items)]))
    rows = torch.repeat_interleave(torch.arange(len(starts), device=items.device), lengths)
    nll = logits.float().logsumexp(-1)[rows] - logits[rows, items].float()
    return (nll.sum() + beta * divergence.sum()) / len(starts)


def _tensors(histories: Histories, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (nnz,) items and (batch,) starts."""
    items = torch.from_numpy(np.asarray(histories.items, dtype=np.int64))
    return items.to(device), torch.from_numpy(np.asarray(histories.indptr[:-1], dtype=np.int64)).to(device)
