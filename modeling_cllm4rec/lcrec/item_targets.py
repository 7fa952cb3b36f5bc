"""The items that alignment documents predict from the items before them, for an item head and for a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.prompt_assembly import pad_right
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds

IGNORE_INDEX = -100

Integers = npt.NDArray[np.integer]


class ItemTargets(NamedTuple):
    """S items that documents predict.

    Attributes:
        places: (S, 2) document and place of the first token of the item's semantic ID.
        items: (S,) item indices.
        histories: S arrays of item indices, those before it in its document, oldest first.
    """

    places: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    histories: list[Integers]


def item_targets(
    semantic_ids: SemanticIds, rows: Sequence[Integers], counted: Sequence[npt.NDArray[np.bool_]], first_index_token: int
) -> ItemTargets:
    """Return the items that documents predict from at least one item before them.

    Args:
        semantic_ids: of the catalogue.
        rows: token ids of documents; semantic IDs in them are items of a history, oldest first, and the next item.
        counted: tokens that the loss counts, see `AlignmentCorpus.rows`.
        first_index_token: token of the first code of the first level.
    """
    levels, size = semantic_ids.num_levels, semantic_ids.codebook_size
    places: list[tuple[int, int]] = []
    true: list[int] = []
    histories: list[Integers] = []
    for document, (row, counts) in enumerate(zip(rows, counted, strict=True)):
        starts = np.flatnonzero((row >= first_index_token) & (row < first_index_token + size))
        tokens = row[starts[:, None] + np.arange(levels)]
        items = semantic_ids.items_of(tokens - first_index_token - size * np.arange(levels))
        for number, start in enumerate(starts.tolist()):
            if number and counts[start]:
                places.append((document, start))
                true.append(int(items[number]))
                histories.append(items[:number])
    return ItemTargets(np.array(places, dtype=np.int64).reshape(-1, 2), np.array(true, dtype=np.int64), histories)


def padded_histories(histories: Sequence[Integers]) -> npt.NDArray[np.int64]:
    """Return (S, longest) item indices, -100 where a history is shorter."""
    if not histories:
        return np.zeros((0, 1), dtype=np.int64)
    return np.asarray(pad_right([np.asarray(one, dtype=np.int64) for one in histories], IGNORE_INDEX))


def level_shares(
    codes: Integers, items: Integers, probs: npt.NDArray[np.floating], true: Integers, codebook_size: int
) -> npt.NDArray[np.float32]:
    """Sum up shares of items along the tree: the distribution of each level's code, given the true codes before it.

    The product of the levels' distributions along the path of an item is that item's share, so a model that matches all of them
    has learned the teacher's distribution over items.

    Args:
        codes: (J, L) codes of all items.
        items: (S, C) item indices, -100 where a row has fewer; probs: (S, C) their shares.
        true: (S,) item indices whose codes are the path.
        codebook_size: codes of a level, K.

    Returns:
        (S, L, K) float32: of each level, the distribution over the next code, given the codes before it; zeros where no item
        below the path has a share.

    >>> codes = np.array([[0, 0], [0, 1], [1, 0]])
    >>> level_shares(codes, np.array([[0, 1, 2]]), np.array([[0.1, 0.3, 0.6]]), np.array([0]), 2).round(2).tolist()
    [[[0.4000000059604645, 0.6000000238418579], [0.25, 0.75]]]
    """
    below = np.where(items >= 0, probs, 0.0).astype(np.float32)  # shares of the items below the path so far
    found = codes[np.maximum(items, 0)]  # (S, C, L)
    rows = np.repeat(np.arange(len(items)), items.shape[1])
    levels = codes.shape[1]
    shares = np.zeros((len(items), levels, codebook_size), dtype=np.float32)
    for level in range(levels):
        np.add.at(shares[:, level], (rows, found[:, :, level].reshape(-1)), below.reshape(-1))
        below = below * (found[:, :, level] == codes[true, level][:, None])
    sums = shares.sum(-1, keepdims=True)
    return np.divide(shares, sums, out=np.zeros_like(shares), where=sums > 0)
