"""DSSM (Huang et al., 2013): one tower for queries, one for item texts, trained on the queries of training reviews."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from modeling_cllm4rec.core.errors import InputError

TEXTS_AT_ONCE = 1024
"""Texts that are dense in memory together."""


class TwoTowers:
    """Scores an item for a query by the cosine between the outputs of two networks, `hidden` tanh units and then `size`.

    A text is the counts of its letter trigrams within words, weighted by TF-IDF (the word hashing of the paper). Each query of a
    batch is to find its item among the items of the batch: softmax of the cosines divided by `temperature`.

    Args:
        texts: the texts of the J items.
        queries: the n queries to train on.
        items: (n,) the item index of each query.
        hidden, size: units of the towers.
        num_train_epochs, batch_size, learning_rate, temperature, seed: of the training, by AdamW.

    Raises:
        InputError: there are no queries, or another number of items than of queries.

    Example:
        >>> towers = TwoTowers(["red lamp", "black tea"], ["lights up", "to drink"], np.array([0, 1]), num_train_epochs=30)
        >>> towers.score_queries(["a drink", "lights"]).argmax(axis=1).tolist()
        [1, 0]
    """

    def __init__(
        self,
        texts: Sequence[str],
        queries: Sequence[str],
        items: npt.NDArray[np.integer],
        *,
        hidden: int = 300,
        size: int = 128,
        num_train_epochs: int = 20,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        temperature: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not queries or len(queries) != len(items):
            raise InputError(f"queries has {len(queries)} texts and items {len(items)}; give one item for each of some queries")
        from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

        from modeling_cllm4rec.training.module_trainer import train_module  # imports transformers

        self.num_items = len(texts)
        self._trigrams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), sublinear_tf=True, dtype=np.float32)
        self._trigrams.fit([*texts, *queries])
        width = len(self._trigrams.vocabulary_)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._towers = nn.ModuleList(
                nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, size), nn.Tanh()) for _ in range(2)
            )
        of_items, of_queries = self._trigrams.transform(texts), self._trigrams.transform(queries)

        def batches(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
            order = np.random.default_rng((seed, epoch)).permutation(len(items))
            for batch in np.split(order, range(batch_size, len(order), batch_size)):
                choices, targets = np.unique(items[batch], return_inverse=True)
                asked, found = of_queries[batch].toarray(), of_items[choices].toarray()
                yield {name: torch.from_numpy(rows) for name, rows in (("asked", asked), ("found", found), ("targets", targets))}

        def loss(asked: torch.Tensor, found: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(self._outputs(0, asked) @ self._outputs(1, found).T / temperature, targets)

        train_module(
            self._towers,
            batches,
            loss,
            torch.optim.AdamW(self._towers.parameters(), learning_rate),
            num_train_epochs=num_train_epochs,
            steps_per_epoch=-(-len(items) // batch_size),
            title="DSSM",
            advice=f"lower learning_rate (it is {learning_rate})",
        )
        with torch.no_grad():
            starts = range(0, len(texts), TEXTS_AT_ONCE)
            blocks = (torch.from_numpy(of_items[row : row + TEXTS_AT_ONCE].toarray()) for row in starts)
            self._items = torch.cat([self._outputs(1, block) for block in blocks])

    @torch.no_grad()
    def score_queries(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (n, J) float32 cosines."""
        asked = self._outputs(0, torch.from_numpy(self._trigrams.transform(queries).toarray()))
        scores: npt.NDArray[np.float32] = (asked @ self._items.T).numpy()
        return scores

    def _outputs(self, tower: int, texts: torch.Tensor) -> torch.Tensor:
        """Return (n, `size`) vectors of length 1 of (n, trigrams) texts."""
        return functional.normalize(self._towers[tower](texts), dim=-1)


__all__ = ["TwoTowers"]
