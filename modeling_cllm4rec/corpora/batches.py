"""Batches of like length, planned from (seed, epoch) alone, so that a resumed or a parallel run sees the same ones."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.prompt_assembly import pad_right

BUCKET_BATCHES = 50
"""Batches that are sorted by length together: enough for little padding, few enough to stay random."""


def plan_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Cut documents into batches of like length, in random order.

    Args:
        lengths: (documents,) tokens of each.
        batch_size: documents of an optimizer step, over all processes and accumulation steps.

    Returns:
        Document numbers of each batch; every document stands in exactly one, the last batch may be smaller.

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
        members = order[start : start + bucket]
        members = members[np.argsort(lengths[members], kind="stable")]
        batches.extend(np.split(members, range(batch_size, len(members), batch_size)))
    return [batches[number] for number in generator.permutation(len(batches))]


def share_of(batch: np.ndarray, pieces: int, piece: int) -> np.ndarray:
    """The part of a batch that one process reads in one accumulation step; parts differ by one document at most."""
    return np.array_split(batch, pieces)[piece]


@dataclass
class Batch:
    """Padded documents.

    Attributes:
        input_ids: (B, T) token ids, padded on the right.
        attention_mask: (B, T) 1 for real tokens.
        prompt_lengths: (B,) tokens before the main text.
        targets: (B, H) held-out item indices, -100 where a row has fewer; None outside finetuning.
        taught: (B, C) items that a teacher chooses for the same prompts, -100 where it has fewer; None without a teacher.
        shares: (B, C) what each of them counts, 1 in sum for a row.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prompt_lengths: torch.Tensor
    targets: torch.Tensor | None = None
    taught: torch.Tensor | None = None
    shares: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})


def collate(rows: list[np.ndarray], prompt_lengths: np.ndarray | list[int], targets: list[np.ndarray] | None = None) -> Batch:
    """Pad documents on the right.

    Args:
        rows: token ids of each document; prompt_lengths: (B,).
        targets: held-out item indices of each document.
    """
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = torch.from_numpy(pad_right(rows, 0))
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    held = None if targets is None else torch.from_numpy(pad_right(targets, -100))
    return Batch(input_ids, mask, torch.as_tensor(np.asarray(prompt_lengths)), held)
