"""Nearest neighbours by item text alone, also for items without interactions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.baselines.registry import baseline
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.interaction_matrix import interaction_matrix
from modeling_cllm4rec.corpora.item_texts import TITLE, OnMissingText

if TYPE_CHECKING:
    from modeling_cllm4rec.corpora.item_embeddings import Pooling


@baseline("textknn", title="text-kNN", summary="nearest neighbours of items by their texts", deterministic=True, order=9)
class TextKNNRecommender:
    """Scores an item by the cosine between its text vector and the mean text vector of the history, all of length 1.

    Args:
        vectors: (J, d) text vector of each item; an item whose vector is 0 scores 0.

    >>> recommender = TextKNNRecommender(np.array([[2.0, 0.0], [0.0, 5.0], [7.0, 0.0]]))
    >>> recommender.score_histories(None, Histories(np.array([0, 1]), np.array([0], dtype=np.int32))).tolist()
    [[1.0, 0.0, 1.0]]
    """

    def __init__(self, vectors: npt.NDArray[np.floating]) -> None:
        if np.ndim(vectors) != 2 or not np.size(vectors):
            raise InputError(f"vectors must be a non-empty (items, dimensions) array, got shape {np.shape(vectors)}")
        self.vectors = _unit_rows(np.asarray(vectors, dtype=np.float32))
        self.num_items = len(vectors)

    @classmethod
    def fit(
        cls,
        data: RecommendationData,
        *,
        seed: int = 0,
        encoder: str = "minilm",
        fields: Sequence[str] = (TITLE,),
        pooling: Pooling = "separate",
        on_missing_text: OnMissingText = "raise",
        max_text_tokens: int | None = None,
        cache: str | Path | None = None,
        device: str = "cpu",
        progress: bool = True,
    ) -> Self:
        """Encode the texts of the items; interactions are not used.

        Args:
            data: the data folder.
            seed: unused, because nothing is random.
            encoder, fields, pooling, on_missing_text, max_text_tokens, cache, device, progress: see
                `corpora.item_embeddings.item_embeddings`.

        Raises:
            InputError: items have no text, or the encoder refuses a setting.
            MissingPackageError: the encoder needs a package that is not installed.
        """
        from modeling_cllm4rec.corpora.item_embeddings import item_embeddings  # imports transformers

        return cls(
            item_embeddings(
                data,
                encoder=encoder,
                fields=fields,
                pooling=pooling,
                on_missing_text=on_missing_text,
                max_text_tokens=max_text_tokens,
                cache=cache,
                device=device,
                progress=progress,
            )
        )

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) cosines, one row per history; 0 for an empty one."""
        means = _unit_rows(interaction_matrix(histories, self.num_items) @ self.vectors)
        scores: npt.NDArray[np.float32] = means @ self.vectors.T
        return scores


def _unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return rows of length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
