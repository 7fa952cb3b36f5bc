"""Batches of documents of similar length, planned from (seed, epoch) alone.

A resumed or a parallel run therefore reads the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.ragged import RaggedRows

BUCKET_BATCHES = 50
"""Batches that are sorted by length together: enough for little padding, few enough to keep batches random."""


def plan_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Group documents into batches of similar length, in random order.

    Args:
        lengths: (documents,) tokens of each document.
        batch_size: documents of an optimizer step, over all processes and accumulation steps.

    Returns:
        Document numbers of each batch. Every document is in exactly one batch. Batches may be smaller at the end of a bucket.

    Raises:
        InputError: `batch_size` is below 1.

    Example:
        >>> sorted(len(batch) for batch in plan_batches(np.array([3, 9, 3, 9, 5]), 2, seed=0, epoch=0))
        [1, 2, 2]
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be 1 or more")
    generator = np.random.default_rng((seed, epoch, len(lengths)))
    order = generator.permutation(len(lengths))
    bucket = batch_size * BUCKET_BATCHES
    batches: list[np.ndarray] = []
    for start in range(0, len(order), bucket):
        # Only a random bucket is sorted, not the corpus: otherwise each epoch would put the same documents together.
        members = order[start : start + bucket]
        members = members[np.argsort(lengths[members], kind="stable")]
        batches.extend(np.split(members, range(batch_size, len(members), batch_size)))
    # Batches are shuffled again, because within a bucket they go from short to long documents.
    return [batches[number] for number in generator.permutation(len(batches))]


def micro_batch(batch: np.ndarray, num_parts: int, part: int) -> np.ndarray:
    """Return the part of a batch that one process reads in one accumulation step; parts differ by at most one document."""
    return np.array_split(batch, num_parts)[part]


@dataclass
class Batch:
    """Padded documents.

    Attributes:
        input_ids: (B, T) token ids, padded on the right.
        attention_mask: (B, T) 1 for real tokens.
        prompt_lengths: (B,) tokens before the main text.
        targets: (B, H) held-out item indices, -100 where a row has fewer; None outside finetuning.
        soft_target_items: (B, C) item indices to which a teacher gives a probability, -100 where a row has fewer; None without
            a teacher.
        soft_target_probs: (B, C) their probabilities; each row sums to 1.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prompt_lengths: torch.Tensor
    targets: torch.Tensor | None = None
    soft_target_items: torch.Tensor | None = None
    soft_target_probs: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return name -> tensor of those that there are."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})


def collate(
    rows: Sequence[np.ndarray], prompt_lengths: np.ndarray | list[int], targets: Sequence[np.ndarray] | None = None
) -> Batch:
    """Pad documents on the right.

    Args:
        rows: token ids of each document; quickest as `RaggedRows`.
        prompt_lengths: (B,) tokens before the main text.
        targets: held-out item indices of each document.
    """
    ragged = RaggedRows.of(rows)
    input_ids = torch.from_numpy(ragged.padded(0))
    mask = torch.from_numpy(ragged.mask.astype(np.int64))
    padded_targets = None if targets is None else torch.from_numpy(RaggedRows.of(targets).padded(-100))
    return Batch(input_ids, mask, torch.as_tensor(np.asarray(prompt_lengths)), padded_targets)
