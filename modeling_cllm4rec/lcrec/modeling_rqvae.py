"""RQ-VAE, the indexer of items: a residual-quantized autoencoder of item embeddings (section III-B of arXiv 2311.09049).

This file is copied into every saved folder.

The quantizers of libraries do neither of two things that the paper or its code needs: spread the last level evenly over its
codes (uniform semantic mapping), and start codebooks from the whole catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..core.errors import InputError
from ..core.folder_checks import check_finite, check_weights
from ..core.json_objects import COPY_AGAIN
from ..core.losses import sample_items
from .configuration_rqvae import RQVAEConfig
from .semantic_ids import ITEMS_AT_ONCE, sinkhorn

INDEXER_FOLDER = "rqvae"
"""Folder of the indexer, in an index folder and in that of a saved LC-Rec model."""
POINTS_PER_CENTRE = 256
"""Points of a sample that k-means clusters in place of more, for each centre, as in faiss."""


@dataclass
class RQVAEOutput(ModelOutput):
    """Output of `RQVAEModel`.

    Attributes:
        loss: () reconstruction + quantization_weight * quantization.
        reconstruction_loss: () mean squared error over items and dimensions.
        quantization_loss: () sum over levels of the mean squared distance to the codes, and beta times the commitment.
        codes: (B, H); latents: (B, d); reconstruction: (B, input_dim).
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    quantization_loss: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None


class RQVAEModel(PreTrainedModel):
    """Encoder, H codebooks of K codes, and decoder.

    Example:
        >>> model = RQVAEModel(RQVAEConfig(input_dim=6, hidden_dims=[8], latent_dim=2, num_levels=3, codebook_size=4))
        >>> model(torch.zeros(5, 6)).codes.shape
        torch.Size([5, 3])
    """

    config_class = RQVAEConfig
    base_model_prefix = ""
    main_input_name = "embeddings"

    config: RQVAEConfig
    initialized: torch.Tensor

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__(config)
        widths = [config.input_dim, *config.hidden_dims, config.latent_dim] if config.hidden_dims else []
        self.encoder = _layers(widths, config.dropout)
        self.decoder = _layers(widths[::-1], config.dropout)
        self.codebooks = nn.Parameter(torch.empty(config.num_levels, config.codebook_size, config.latent_dim))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
        if module is self:
            nn.init.uniform_(self.codebooks, -1 / self.config.codebook_size, 1 / self.config.codebook_size)
            nn.init.zeros_(self.initialized)

    def forward(self, embeddings: torch.Tensor, uniform_last: bool = False, **kwargs: Any) -> RQVAEOutput:
        """Encode, quantize, decode.

        Args:
            embeddings: (B, input_dim) float.
            uniform_last: spread the batch evenly over the codes of the last level (training), see `quantize`.
        """
        latents = self.encoder(embeddings)
        codes, quantized, quantization_loss = self.quantize(latents, uniform_last)
        reconstruction = self.decoder(latents + (quantized - latents).detach())  # straight-through
        reconstruction_loss = F.mse_loss(reconstruction, embeddings)
        loss = reconstruction_loss + self.config.quantization_weight * quantization_loss
        return RQVAEOutput(loss, reconstruction_loss, quantization_loss, codes, latents, reconstruction)

    def quantize(self, latents: torch.Tensor, uniform_last: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantize residuals level by level: c_h is the nearest code vector to r_h, r_{h+1} = r_h - v.

        Args:
            latents: (B, d); uniform_last: the last level by optimal transport over the batch. Fewer rows than codes cannot
                fill the codes evenly (the plan of a few rows is almost random), so they take their nearest ones.

        Returns:
            Codes (B, H), quantized latents (B, d), and the quantization loss (): the sum over levels of
            mean((sg[r] - v)^2) + beta mean((r - sg[v])^2).
        """
        config = self.config
        rest, codes = latents, []
        loss = latents.new_zeros(())
        spread = uniform_last and config.sinkhorn_epsilon > 0 and len(latents) >= config.codebook_size
        quantized = torch.zeros_like(latents)
        for level, vectors in enumerate(self.codebooks):
            distances = torch.cdist(rest.detach(), vectors.detach()).square()
            if spread and level + 1 == config.num_levels:
                chosen = sinkhorn(distances, config.sinkhorn_epsilon, config.sinkhorn_iterations).argmax(1)
            else:
                chosen = distances.argmin(1)
            vector = vectors[chosen]
            loss = loss + F.mse_loss(vector, rest.detach()) + config.beta * F.mse_loss(rest, vector.detach())
            quantized = quantized + vector
            rest = rest - vector.detach()
            codes.append(chosen)
        return torch.stack(codes, dim=1), quantized, loss

    @torch.no_grad()
    def initialize_codebooks(self, embeddings: torch.Tensor, seed: int = 0) -> None:
        """Start the codebooks by K-means over the whole catalogue, level by level; a loaded model keeps its codebooks.

        Args:
            embeddings: (J, input_dim) of all items.

        Raises:
            InputError: fewer items than codes.
        """
        if bool(self.initialized):
            return
        rest = self._encode(embeddings)
        for level in range(self.config.num_levels):
            vectors, chosen = k_means(rest, self.config.codebook_size, seed + level)
            self.codebooks[level] = vectors
            for part, codes in zip(rest.split(ITEMS_AT_ONCE), chosen.split(ITEMS_AT_ONCE), strict=True):
                part -= vectors[codes]
        self.initialized.fill_(True)

    def _encode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the (J, d) latents of (J, input_dim) embeddings in memory of their own, in evaluation mode, in pieces."""
        was_training = self.training
        self.eval()
        latents = torch.cat([self.encoder(part) for part in embeddings.split(ITEMS_AT_ONCE)])
        self.train(was_training)
        return latents

    @torch.no_grad()
    def revive_dead_codes(self, embeddings: torch.Tensor, used: torch.Tensor, seed: int) -> int:
        """Move each code that no item used to the residual of a random item.

        Args:
            embeddings: (J, input_dim) of all items; used: (H, K) bool; seed: start of the choice of items.

        Returns:
            The number of revived codes.
        """
        # Only chosen codes receive a gradient, so a code far from all residuals would never be chosen again. At a residual it
        # is the nearest code of at least one item.
        if bool(used.all()):
            return 0
        generator = torch.Generator().manual_seed(seed)
        rest = self._encode(embeddings)
        for level, vectors in enumerate(self.codebooks):
            dead = (~used[level]).nonzero()[:, 0]
            if len(dead):
                chosen = torch.randint(len(rest), (len(dead),), generator=generator).to(rest.device)
                vectors[dead] = rest[chosen]
            for part in rest.split(ITEMS_AT_ONCE):
                part -= vectors[torch.cdist(part, vectors).argmin(1)]
        return int((~used).sum())

    @torch.no_grad()
    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the (n, d) float32 latents of (n, input_dim) embeddings, in evaluation mode."""
        was_training = self.training
        self.eval()
        device = self.codebooks.device
        parts = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32)).split(8192)
        encoded = torch.cat([self.encoder(part.to(device)).cpu() for part in parts])
        self.train(was_training)
        return encoded.float().numpy()

    @property
    def codebook_array(self) -> np.ndarray:
        """Code vectors: (H, K, d) float32."""
        return self.codebooks.detach().float().cpu().numpy()


def _layers(widths: list[int], dropout: float) -> nn.Sequential:
    """Make linear layers with ReLU between them; no widths make no layers."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        if number:
            layers += [nn.ReLU(), nn.Dropout(dropout)]
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


@torch.no_grad()
def k_means(points: torch.Tensor, count: int, seed: int = 0, iterations: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster points by Lloyd's algorithm from a k-means++ start; an empty cluster moves to the farthest point.

    Of more than 65,536 points, or 256 for each centre if that is more, a random sample of so many is clustered, and all points
    take their nearest centre. More points move the centres little and take time and memory (faiss samples the same way).

    Args:
        points: (n, d), n at least `count`.

    Returns:
        (count, d) centres and (n,) the number of each point's centre.

    Raises:
        InputError: fewer points than clusters.

    Example:
        >>> centres, nearest = k_means(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2)
        >>> sorted(centres.flatten().tolist())[0], bool(nearest[0] == nearest[1])
        (0.05000000074505806, True)
    """
    if len(points) < count:
        raise InputError(f"{len(points)} items are fewer than the {count} codes of a level; lower codebook_size")
    generator = torch.Generator().manual_seed(seed)
    most = max(ITEMS_AT_ONCE, POINTS_PER_CENTRE * count)
    if len(points) > most:
        sample = sample_items(len(points), most, generator)
        centres = _lloyd(points[sample.to(points.device)], count, generator, iterations)[0]
        return centres, _nearest(points, centres)[1]
    return _lloyd(points, count, generator, iterations)


def _lloyd(points: torch.Tensor, count: int, generator: torch.Generator, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centres of points and the number of each point's centre."""
    places = torch.randint(len(points), (1,), generator=generator).tolist()
    nearest = torch.cdist(points, points[places]).square()[:, 0]
    while len(places) < count:
        total = float(nearest.sum())
        # float64 on the CPU: the draw is the same on every device; identical points have weights of 0, so all count the same
        weights = nearest.double().cpu() if total > 0 else torch.ones(len(points), dtype=torch.float64)
        places.append(_draw(weights, generator))
        nearest = torch.minimum(nearest, torch.cdist(points, points[places[-1:]]).square()[:, 0])
    centres = points[places].clone()
    chosen = _nearest(points, centres)[1]
    for _ in range(iterations):
        sizes = torch.bincount(chosen, minlength=count)
        sums = torch.zeros_like(centres).index_add(0, chosen, points)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
        distances, moved = _nearest(points, centres)
        empty = (sizes == 0).nonzero()[:, 0]
        if len(empty):
            far = distances.argsort(descending=True, stable=True)[: len(empty)]
            centres[empty] = points[far]
            moved = _nearest(points, centres)[1]
        chosen, before = moved, chosen
        if torch.equal(chosen, before):
            break
    return centres, chosen


def _nearest(points: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (n,) distances of points to their nearest centres, and the numbers of those."""
    found = []
    for part in points.split(ITEMS_AT_ONCE):
        distances = torch.cdist(part, centres)
        chosen = distances.argmin(1)
        found.append((distances.gather(1, chosen[:, None])[:, 0], chosen))
    return torch.cat([distances for distances, _ in found]), torch.cat([chosen for _, chosen in found])


def _draw(weights: torch.Tensor, generator: torch.Generator) -> int:
    """Draw one index in proportion to float64 weights, of any number: `torch.multinomial` takes 2^24 at most."""
    if len(weights) <= 2**24:
        return int(torch.multinomial(weights, 1, generator=generator))
    sums = weights.cumsum(0)
    return int(torch.searchsorted(sums, torch.rand(1, dtype=torch.float64, generator=generator) * sums[-1], right=True))


def residual_k_means(embeddings: np.ndarray, num_levels: int, codebook_size: int, seed: int = 0) -> RQVAEModel:
    """Quantize embeddings by k-means, level by level, each level on the residuals of the one before, without training.

    Args:
        embeddings: (J, d).

    Returns:
        An `RQVAEModel` without encoder and decoder, whose code vectors have the embeddings' own width.
    """
    width = embeddings.shape[1]
    config = RQVAEConfig(width, hidden_dims=(), latent_dim=width, num_levels=num_levels, codebook_size=codebook_size)
    model = RQVAEModel(config)
    model.initialize_codebooks(torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32)), seed)
    return model.eval()


def load_indexer(name: Any, hub: Mapping[str, Any], num_levels: int, codebook_size: int) -> RQVAEModel:
    """Load the indexer below a saved model, from a folder or the Hub.

    Args:
        hub: arguments of `from_pretrained`, such as `revision`.
        num_levels, codebook_size: of the model's semantic IDs.

    Raises:
        InputError: its files are damaged, or it makes other codes than those of the model.
    """
    place = {**hub, "subfolder": INDEXER_FOLDER}
    try:
        own = RQVAEConfig.from_pretrained(name, **place)
    except InputError as error:
        raise InputError(f"{INDEXER_FOLDER}/config.json: {error}") from error
    except (AttributeError, OSError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"{INDEXER_FOLDER}/config.json in {name} cannot be read ({reason}); copy or download the folder again"
        ) from error
    if (own.num_levels, own.codebook_size) != (num_levels, codebook_size):
        raise InputError(
            f"{INDEXER_FOLDER}/ makes {own.num_levels} codes out of {own.codebook_size}, the model has {num_levels} out "
            f"of {codebook_size}: it belongs to another checkpoint"
        )
    check_weights(name, own, RQVAEModel, place)
    loaded: Any = RQVAEModel.from_pretrained(name, use_safetensors=True, output_loading_info=True, **place)
    model: RQVAEModel = loaded[0]
    info = loaded[1]
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(
            f"{name}/{INDEXER_FOLDER} lacks weights: {missing[:5]} ({len(missing)} in all); it is no complete RQVAEModel "
            f"checkpoint: {COPY_AGAIN}"
        )
    check_finite(f"{name}/{INDEXER_FOLDER}", model.state_dict().items())
    return model


__all__ = ["INDEXER_FOLDER", "RQVAEModel", "RQVAEOutput", "k_means", "load_indexer", "residual_k_means"]
