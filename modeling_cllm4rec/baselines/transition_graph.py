"""A graph of transitions: items that follow one another in histories, up to a few steps apart; nothing is trained."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import sparse

from modeling_cllm4rec.baselines.early_stopping import check_counts
from modeling_cllm4rec.baselines.registry import baseline
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.history_order import warn_if_unordered
from modeling_cllm4rec.corpora.interaction_matrix import FitOn, ItemWeights, fitting_histories, interaction_matrix

SPACE = {"backward": {"choice": [0.0, 0.25, 0.5, 1.0]}, "recency": {"choice": [0.5, 1.0, 2.0]}}


@baseline(
    "transition-graph",
    title="transition graph",
    summary="items that followed those of the history, up to three steps apart",
    deterministic=True,
    space={"max_gap": {"choice": [1, 2, 3, 5]}, **SPACE},
    fixed={"hops": 1},
    order=11,
)
@baseline(
    "two-hop-graph",
    title="two-hop graph",
    summary="items that followed the followers of those of the history",
    deterministic=True,
    space=SPACE,
    fixed={"hops": 2},
    defaults={"max_gap": 1},
    order=12,
)
class TransitionGraphRecommender:
    """Scores an item by the transitions to it from the items of the history.

    Args:
        transitions: (J, J) sparse float32; entry (i, j) is added to the score of item j for item i of a history.
        recency: 0 gives all items of a history the same weight; r > 0 gives the item t steps before the last one the weight
            (1 + t) ** -r.

    >>> recommender = TransitionGraphRecommender(sparse.csr_array([[0.0, 0.5], [1.0, 0.0]], dtype=np.float32))
    >>> recommender.score_histories(None, Histories(np.array([0, 2]), np.array([0, 1], dtype=np.int32))).tolist()
    [[1.0, 0.25]]
    """

    def __init__(self, transitions: sparse.csr_array, recency: float = 1.0) -> None:
        if not recency >= 0:
            raise InputError(f"recency is {recency}; it must be 0 (equal weights) or more")
        self.transitions, self.recency = transitions, recency
        self.num_items = int(transitions.shape[0])

    @classmethod
    def fit(
        cls,
        data: RecommendationData,
        *,
        seed: int = 0,
        max_gap: int = 3,
        backward: float = 0.5,
        hops: int = 1,
        recency: float = 1.0,
        fit_on: FitOn = "train",
    ) -> Self:
        """Count the transitions.

        Args:
            data: the data folder.
            seed: unused, because nothing is random.
            max_gap: largest number of steps between two items of a history; a pair g steps apart counts 1 / g.
            backward: weight of the same pair from the later item to the earlier one; 0 counts forward only.
            hops: transitions in a row, 1 or 2. The rows of the graph sum to 1, and two hops are its square.
            recency: weights of a history's items when it is scored; see the class.
            fit_on: the splits that are fitted.

        Raises:
            InputError: a setting is out of its range.

        Warns:
            UnorderedHistoriesWarning: the order of histories means nothing in this data.
        """
        check_counts(max_gap=max_gap)
        if not backward >= 0:
            raise InputError(f"backward is {backward}; it must be 0 (forward only) or more")
        if hops not in (1, 2):
            raise InputError(f"hops is {hops}; allowed are 1 and 2")
        warn_if_unordered(data, "the transition graph reads it; choose itemknn, which counts pairs in any order")
        graph = transition_graph(fitting_histories(data, fit_on), data.num_items, max_gap, backward)
        return cls(graph if hops == 1 else sparse.csr_array(graph @ graph), recency)

    @property
    def item_weights(self) -> ItemWeights:
        """The model as a matrix of items by items."""
        return ItemWeights(self.transitions, self.recency)

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Return (batch, J) weighted sums of transitions, one row per history."""
        return (interaction_matrix(histories, self.num_items, self.recency) @ self.transitions).toarray()


def transition_graph(histories: Histories, num_items: int, max_gap: int, backward: float) -> sparse.csr_array:
    """Return the transitions between the items of histories, with rows that sum to 1.

    Args:
        histories: oldest item first.
        num_items: size of the catalogue, J.
        max_gap: largest number of steps between two items; a pair g steps apart counts 1 / g.
        backward: weight of the same pair from the later item to the earlier one.

    Returns:
        (J, J) float32; the row of an item without a transition is empty.

    >>> histories = Histories(np.array([0, 3]), np.array([0, 1, 2], dtype=np.int32))
    >>> transition_graph(histories, 3, max_gap=2, backward=0.0).toarray().round(2).tolist()
    [[0.0, 0.6700000166893005, 0.33000001311302185], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    users = np.repeat(np.arange(len(histories.indptr) - 1), np.diff(histories.indptr))
    counts = sparse.csr_array((num_items, num_items), dtype=np.float64)
    for gap in range(1, max_gap + 1):
        inside = users[gap:] == users[:-gap]
        pairs = (histories.items[:-gap][inside], histories.items[gap:][inside])
        counts += sparse.csr_array((np.full(int(inside.sum()), 1 / gap), pairs), shape=counts.shape)
    counts = sparse.csr_array(counts + backward * counts.T)
    counts.eliminate_zeros()
    sums = counts.sum(axis=1)
    scales = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    return sparse.csr_array(sparse.diags_array(scales) @ counts).astype(np.float32)
