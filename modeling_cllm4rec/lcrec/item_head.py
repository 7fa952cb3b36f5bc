"""An item head for LC-Rec: scores of all items from one state, next to the semantic IDs.

The row of an item is a free vector plus a projection of its whitened text vector, so that a new item has a row from its text. The
model can also read these rows: added to the last token of each semantic ID, they tell it which item that is.

This file is copied into every saved folder.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..core.errors import InputError
from ..core.whitening import whitening

TEXT_DIRECTIONS = 256
"""Most dimensions of a whitened text vector."""
NEIGHBOURS = 10
"""Items with the nearest texts, whose free rows a new item starts from."""
ROWS_AT_ONCE = 256
"""New items whose cosines to all items are held at a time."""


class ItemHead(nn.Module):
    """Logits of all J items from the state before the next item.

    The logit of item j is h^T (r_j + P t_j), with the state h, the free row r_j, the projection P and the whitened text vector
    t_j. Text vectors do not train. Rows start as large as the language model's word rows, so that a learning rate moves both
    equally fast.

    Args:
        num_items: size J of the catalogue.
        hidden_size: width K of the states.
        embedding_size: width D of the text embeddings that whitening reads; 0 for a head without texts.
        text_size: dimensions d of a whitened text vector; 0 for a head without texts.

    Attributes:
        rows: (J, K) free rows, the weight of an `nn.Embedding`.
        projection: (K, d).
        text_vectors: (J, d); text_mean: (D,); text_matrix: (D, d).
    """

    def __init__(self, num_items: int, hidden_size: int, embedding_size: int = 0, text_size: int = 0) -> None:
        super().__init__()
        self.rows = nn.Embedding(num_items, hidden_size)
        self.projection = nn.Linear(text_size, hidden_size, bias=False) if text_size else None
        if text_size:
            self.register_buffer("text_vectors", torch.zeros(num_items, text_size))
            self.register_buffer("text_mean", torch.zeros(embedding_size))
            self.register_buffer("text_matrix", torch.zeros(embedding_size, text_size))

    text_vectors: torch.Tensor
    text_mean: torch.Tensor
    text_matrix: torch.Tensor

    @torch.no_grad()
    def start(self, embeddings: npt.NDArray[np.floating] | None, size: float = 0.02) -> None:
        """Start the rows: text vectors as they are and free rows of zeros; without texts, free rows at random.

        Args:
            embeddings: (J, D) of the items' texts; rows of zeros are items without text. None for a head without texts.
            size: root mean square of the numbers of a row.
        """
        if self.projection is None:
            self.rows.weight.normal_(std=size)
            return
        assert embeddings is not None
        known = embeddings.any(axis=1)
        width, directions = self.projection.weight.shape
        mean, matrix = whitening(embeddings[known], directions)
        self.text_mean.copy_(torch.from_numpy(mean))
        # The projection starts as the identity, which leaves `width - directions` numbers of a row at zero.
        self.text_matrix.copy_(torch.from_numpy(matrix * size * (width / directions) ** 0.5))
        self.text_vectors.copy_(self.vectors_of(embeddings))
        self.rows.weight.zero_()
        nn.init.eye_(self.projection.weight)

    def vectors_of(self, embeddings: npt.NDArray[np.floating]) -> torch.Tensor:
        """Return (n, d) whitened text vectors of embeddings (n, D); zeros, of items without text, stay zeros.

        Raises:
            InputError: this head reads no texts, or embeddings of another width.
        """
        if self.projection is None:
            raise InputError("the item head of this model reads no texts, so a new item has no row; align it with texts")
        if embeddings.shape[1] != len(self.text_mean):
            raise InputError(
                f"embeddings have width {embeddings.shape[1]}; the item head reads those of width {len(self.text_mean)}"
            )
        known = torch.from_numpy(embeddings.any(axis=1)).to(self.text_mean.device)
        given = torch.from_numpy(np.asarray(embeddings, dtype=np.float32)).to(self.text_mean)
        return ((given - self.text_mean) @ self.text_matrix) * known[:, None]

    def matrix(self, device: torch.device | None = None) -> torch.Tensor:
        """Return the (J, K) rows of all items, where the weights are or, of weights that are offloaded, on the device given."""
        return self.rows_of(torch.arange(self.rows.num_embeddings, device=device or self.rows.weight.device))

    def rows_of(self, items: torch.Tensor) -> torch.Tensor:
        """Return the (..., K) rows of items (...), zeros for -1."""
        there = items.clamp(min=0)
        rows: torch.Tensor = self.rows(there)  # a call: the weights of a module that is offloaded are there during it alone
        if self.projection is not None:
            rows = rows + self.projection(self.text_vectors[there.to(self.text_vectors.device)].to(rows))
        return rows * (items >= 0).to(rows)[..., None]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return (..., J) float32 logits from (..., K) states."""
        matrix = self.matrix(states.device)
        logits: torch.Tensor = (states.to(matrix.dtype) @ matrix.T).float()
        return logits

    @torch.no_grad()
    def with_items(self, kept: npt.NDArray[np.integer], embeddings: npt.NDArray[np.floating] | None = None) -> ItemHead:
        """Return a head of these items, and of new ones behind them.

        Args:
            kept: (n,) item indices.
            embeddings: (new, D) of the new items' texts. The free row of a new item is that of the items with the nearest
                texts, see `free_rows_near`.
        """
        vectors = None if embeddings is None else self.vectors_of(embeddings)
        new = 0 if vectors is None else len(vectors)
        sizes: Any = (0, 0) if self.projection is None else self.text_matrix.shape
        head = ItemHead(len(kept) + new, self.rows.embedding_dim, *sizes).to(self.rows.weight)
        rows = torch.from_numpy(np.asarray(kept, dtype=np.int64)).to(self.rows.weight.device)
        head.rows.weight.zero_()
        head.rows.weight[: len(kept)] = self.rows.weight[rows]
        if self.projection is not None and head.projection is not None:
            head.projection.load_state_dict(self.projection.state_dict())
            head.text_mean.copy_(self.text_mean)
            head.text_matrix.copy_(self.text_matrix)
            head.text_vectors[: len(kept)] = self.text_vectors[rows]
            if vectors is not None:
                head.text_vectors[len(kept) :] = vectors
                head.rows.weight[len(kept) :] = free_rows_near(vectors, head.text_vectors[: len(kept)], self.rows.weight[rows])
        return head


def free_rows_near(vectors: torch.Tensor, known: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return free rows for new items: the mean of those of the items with the nearest texts, as large as theirs.

    With a row of zeros a new item has a score by its text alone, below the items that training has moved.

    Args:
        vectors: (n, d) text vectors of the new items; zeros, of items without text, get zeros.
        known: (J, d) those of the items of the model; rows: (J, K) their free rows.

    Returns:
        (n, K). The weights of the mean are cosines; neighbours with a cosine of zero or less do not count.

    Example:
        >>> texts, rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [7.0, 0.0]])
        >>> free_rows_near(torch.tensor([[0.5, 0.0], [0.0, 0.0]]), texts, rows).tolist()
        [[3.0, 4.0], [0.0, 0.0]]
    """
    made = torch.zeros(len(vectors), rows.shape[1]).to(rows)
    directions = torch.nn.functional.normalize(known, dim=1)
    for start in range(0, len(vectors), ROWS_AT_ONCE):  # (n, J) cosines of a large catalogue would not fit into memory
        part = slice(start, start + ROWS_AT_ONCE)
        cosines = torch.nn.functional.normalize(vectors[part], dim=1) @ directions.T
        near = cosines.topk(min(NEIGHBOURS, len(known)), dim=1)
        weights = near.values.clamp(min=0)
        weights = (weights / weights.sum(1, keepdim=True).clamp(min=1e-12))[..., None]
        theirs = rows[near.indices]
        mean = (weights * theirs).sum(1)
        size = (weights * theirs.norm(dim=-1, keepdim=True)).sum(1)
        made[part] = mean * (size / mean.norm(dim=1, keepdim=True).clamp(min=1e-12))
    return made


class ItemLookup(NamedTuple):
    """Which items the tokens of prompts name.

    Attributes:
        keys: (J,) int64, ascending: the codes of an item as one number to the base K.
        items: (J,) item indices in that order.
        first_token: token id of code 0 of level 0; num_levels: H; codebook_size: K.
    """

    keys: torch.Tensor
    items: torch.Tensor
    first_token: int
    num_levels: int
    codebook_size: int

    @classmethod
    def of(cls, codes: npt.NDArray[np.integer], first_token: int, codebook_size: int, device: torch.device) -> ItemLookup:
        """Make the lookup of (J, H) codes."""
        given = torch.from_numpy(np.asarray(codes, dtype=np.int64)).to(device)
        keys, items = (given * _powers(given.shape[1], codebook_size, device)).sum(1).sort()
        return cls(keys, items, first_token, given.shape[1], codebook_size)

    def to(self, device: torch.device) -> ItemLookup:
        """Return the same lookup on a device."""
        return self._replace(keys=self.keys.to(device), items=self.items.to(device))

    def items_at(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, T) indices of the items whose semantic IDs end at each of (B, T) tokens, -1 where none does.

        Example:
            >>> lookup = ItemLookup.of(np.array([[1, 0], [0, 1]]), 10, 2, torch.device("cpu"))  # tokens 10, 11, then 12, 13
            >>> lookup.items_at(torch.tensor([[7, 10, 13, 11, 12, 11]])).tolist()
            [[-1, -1, 1, -1, 0, -1]]
        """
        levels, size, device = self.num_levels, self.codebook_size, tokens.device
        padded = torch.nn.functional.pad(tokens, (levels - 1, 0), value=-1)
        codes = padded.unfold(1, levels, 1) - self.first_token - size * torch.arange(levels, device=device)  # (B, T, H)
        whole = ((codes >= 0) & (codes < size)).all(-1)
        keys = (codes.clamp(0, size - 1) * _powers(levels, size, device)).sum(-1)
        # The last key that is not above: by hand, because ONNX has no `searchsorted`.
        place = torch.zeros_like(keys)
        for bit in reversed(range(len(self.keys).bit_length())):
            further = (place + 2**bit).clamp(max=len(self.keys) - 1)
            place = torch.where(self.keys[further] <= keys, further, place)
        return torch.where(whole & (self.keys[place] == keys), self.items[place], -1)


def _powers(levels: int, size: int, device: torch.device) -> torch.Tensor:
    return size ** torch.arange(levels - 1, -1, -1, device=device)


def head_fields(item_head: bool, embeddings: np.ndarray | None, num_items: int) -> dict[str, Any]:
    """Return the fields of the configuration that describe an item head.

    Raises:
        InputError: embeddings without an item head, or for another number of items.
    """
    if not item_head:
        if embeddings is not None:
            raise InputError("embeddings are for the item head; set item_head=True, or leave them out")
        return {}
    if embeddings is None:
        return {"item_head": True, "scoring": "head"}
    if embeddings.shape != (num_items, embeddings.shape[-1]):
        raise InputError(f"embeddings have shape {embeddings.shape}; {num_items} items need ({num_items}, width)")
    width = embeddings.shape[1]
    sizes = {"item_head_embedding_size": width, "item_head_text_size": min(TEXT_DIRECTIONS, width)}
    return {"item_head": True, "scoring": "head", **sizes}


__all__ = ["TEXT_DIRECTIONS", "ItemHead", "ItemLookup", "free_rows_near", "head_fields"]
