"""Configuration of RQ-VAE, the indexer of items: a residual-quantized autoencoder (section III-B of arXiv 2311.09049).

This file is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from ..core.errors import InputError


class RQVAEConfig(PreTrainedConfig):
    """Shape and loss of an RQ-VAE.

    Args:
        input_dim: width of the item embeddings.
        hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them. Empty, with `latent_dim` equal to
            `input_dim`: no encoder at all, the embeddings themselves are quantized (residual k-means).
        latent_dim: width d of the quantized latents (32 in the paper).
        num_levels: codes H of each item.
        codebook_size: codes K of a level.
        beta: weight of the commitment (0.25 in the paper).
        quantization_weight: weight of the quantization loss relative to the reconstruction loss. The quantization loss is the
            sum over levels as in the paper; 1 / num_levels gives the mean over levels of the released code.
        dropout: dropout in encoder and decoder.
        sinkhorn_epsilon: sharpness of the uniform semantic mapping of the last level in training; 0 switches it off.
        sinkhorn_iterations: its rounds.

    The default hidden layers are smaller than the released 2048-1024-512-256-128-64, which is meant for embeddings of width
    4096; on 384 dimensions they reconstruct as well and train several times as fast.

    Example:
        >>> RQVAEConfig(input_dim=384).num_levels
        4
    """

    model_type = "cllm4rec_rqvae"

    def __init__(
        self,
        input_dim: int = 384,
        hidden_dims: Sequence[int] = (512, 256, 128),
        latent_dim: int = 32,
        num_levels: int = 4,
        codebook_size: int = 256,
        beta: float = 0.25,
        quantization_weight: float = 1.0,
        dropout: float = 0.0,
        sinkhorn_epsilon: float = 0.003,
        sinkhorn_iterations: int = 50,
        **kwargs: Any,
    ) -> None:
        for name, value in (
            ("input_dim", input_dim),
            ("latent_dim", latent_dim),
            ("num_levels", num_levels),
            ("codebook_size", codebook_size),
            ("sinkhorn_iterations", sinkhorn_iterations),
            *(("hidden_dims", width) for width in hidden_dims),
        ):
            if value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")
        for name, number in (
            ("beta", beta),
            ("quantization_weight", quantization_weight),
            ("sinkhorn_epsilon", sinkhorn_epsilon),
            ("dropout", dropout),
        ):
            if number < 0:
                raise InputError(f"{name} is {number}; it must be 0 or more")
        if not hidden_dims and latent_dim != input_dim:
            raise InputError(
                f"hidden_dims is empty, so the embeddings themselves are quantized, but latent_dim is {latent_dim} and input_dim "
                f"{input_dim}; make them equal"
            )
        self.input_dim = input_dim
        self.hidden_dims = list(hidden_dims)
        self.latent_dim = latent_dim
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.beta = beta
        self.quantization_weight = quantization_weight
        self.dropout = dropout
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        kwargs["auto_map"] = {
            "AutoConfig": "configuration_rqvae.RQVAEConfig",
            "AutoModel": "modeling_rqvae.RQVAEModel",
        }
        super().__init__(**kwargs)


__all__ = ["RQVAEConfig"]
