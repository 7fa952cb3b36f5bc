"""The one question that every recommender answers: external ids in, the best items in external ids out.

This file stands alone: it is copied into every saved folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from .catalogue import CATALOGUE_FILE, Catalogue, KnownUsers, OnUnknown, Recommendations
from .errors import InputError


class RecommendsItems(ABC):
    """Adds `recommend` to a model that turns histories into prompts and prompts into scores of all items.

    Attributes:
        users_have_tokens: whether a known user is more to the model than a history, so that it may be empty.
    """

    users_have_tokens: ClassVar[bool]

    catalogue: Catalogue | None
    users: KnownUsers | None

    @abstractmethod
    def build_prompts(self, user_indices: np.ndarray | None, histories: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Token ids of the prompt for each history (item indices, oldest first)."""

    @abstractmethod
    def best_items(
        self, prompts: Sequence[np.ndarray], seen: Sequence[np.ndarray] | None, k: int, allowed: np.ndarray | None, **search: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each prompt, in evaluation mode.

        Args:
            prompts: token ids, one prompt a person.
            seen: item indices of each person that may not be recommended; None forbids none.
            allowed: (candidates,) sorted item indices to choose from; None means the whole catalogue.
            search: settings of the model's own search.

        Returns:
            (B, k) item indices, best first, -1 where a person has fewer items left, and their (B, k) float32 scores.
        """

    def recommend(
        self,
        users: Sequence[Any] | None = None,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "raise",
        batch_size: int = 256,
        **search: Any,
    ) -> Recommendations:
        """The k best items for users, for histories, or for users with histories given beside them.

        Args:
            users: external user ids; without `histories`, their stored histories are read.
            histories: external item ids, oldest first, one list a person. With `users` the given history counts, without
                they are people whom the model never met. More items than the context holds: the last ones are read.
            k: how many, at most the number of candidates. Who has fewer unseen candidates gets fewer rows.
            exclude_seen: do not recommend what stands in the history.
            candidates: external item ids to choose from; None means the whole catalogue.
            on_unknown: `"raise"` names unknown ids; `"skip"` leaves unknown users, items and candidates out, and known users
                of whom the model can read nothing (LC-Rec: those whose history is empty).
            batch_size: people scored in one pass.
            search: settings of the model's own search, where it has one (LC-Rec: `num_beams`, `scoring`).

        Returns:
            `Recommendations` with columns user, item, rank, score.

        Raises:
            InputError: unknown ids, an empty history of a person without an ID token, k out of range; before anything is scored.
        """
        tables = list(self.iter_recommendations(users, histories, k, exclude_seen, candidates, on_unknown, batch_size, **search))
        return Recommendations(pa.concat_tables(tables))

    def iter_recommendations(
        self,
        users: Sequence[Any] | None = None,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "raise",
        batch_size: int = 256,
        progress: bool = False,
        **search: Any,
    ) -> Iterator[pa.Table]:
        """As `recommend`, a table a batch, in the order asked: constant memory for millions of people."""
        catalogue, known = self._require_catalogue(), self.users
        if users is None and histories is None:
            raise InputError("recommend needs users=, histories=, or both")
        for name, ids in (("users", users), ("histories", histories), ("candidates", candidates)):
            if ids is not None:
                _check_list(name, ids)
        if users is not None and histories is not None and len(users) != len(histories):
            raise InputError(f"got {len(users)} users and {len(histories)} histories; give one history for each user")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be 1 or more")
        allowed = None
        if candidates is not None:
            found = catalogue.ids.indices_of(candidates, on_unknown)
            allowed = np.unique(found[found >= 0])
        choices = len(catalogue) if allowed is None else len(allowed)
        if not 1 <= k <= choices:
            raise InputError(f"k is {k}; it must lie between 1 and the {choices} items to choose from")
        user_indices = None
        keep = np.arange(len(users if users is not None else histories or []))
        if users is not None:
            if known is None:
                raise InputError("this model knows no users; pass histories= instead")
            user_indices = known.ids.indices_of(users, on_unknown)
            keep = keep[user_indices >= 0]
        given = None
        if histories is not None:
            given = {row: self._read_history(row, histories[row], users is None, on_unknown) for row in keep.tolist()}
        if user_indices is not None:
            lengths = None if given is None else np.array([len(given[row]) for row in keep.tolist()], dtype=np.int64)
            keep = keep[self.readable(user_indices[keep], lengths, on_unknown)]
        names = None if users is None else known.ids.array  # type: ignore[union-attr]
        with tqdm(total=len(keep), desc="recommending", unit="user", disable=not progress) as bar:
            for start in range(0, max(len(keep), 1), batch_size):
                rows = keep[start : start + batch_size]
                indices = None if user_indices is None else user_indices[rows]
                if given is None:
                    read = [known.history(int(index)) for index in indices]  # type: ignore[union-attr]
                else:
                    read = [given[row] for row in rows.tolist()]
                if len(read):
                    prompts = self.build_prompts(indices, read)
                    best, scores = self.best_items(prompts, read if exclude_seen else None, k, allowed, **search)
                else:
                    best, scores = np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
                labels = pa.array(rows) if names is None else names.take(pa.array(indices))
                yield self._as_table(labels, best, scores)
                bar.update(len(rows))

    def readable(
        self, user_indices: np.ndarray, lengths: np.ndarray | None = None, on_unknown: OnUnknown = "raise"
    ) -> np.ndarray:
        """Which known users can be recommended to.

        Args:
            user_indices: (users,) user indices; lengths: (users,) items of the histories given for them, None for those stored.

        Returns:
            (users,) bool; all True for a model whose users have tokens, or with `on_unknown="raise"`.

        Raises:
            InputError: a user of whom there is nothing to read, with `on_unknown="raise"` (the first five are named).
        """
        known = self.users
        if self.users_have_tokens or known is None:
            return np.ones(len(user_indices), dtype=bool)
        found = (known.history_lengths(user_indices) if lengths is None else lengths) > 0
        if on_unknown == "raise" and not found.all():
            empty = known.ids.ids_of(user_indices[~found][:5])
            raise InputError(
                f"the histories of {int((~found).sum())} users are empty: {empty!r}; this model reads items and has no tokens "
                "for users: give each at least one known item (histories=), or pass on_unknown='skip' to leave them out"
            )
        return np.asarray(found)

    def _require_catalogue(self) -> Catalogue:
        if self.catalogue is None:
            raise InputError(
                f"this model has no catalogue ({CATALOGUE_FILE}), so it cannot name items; "
                "build it with from_backbone(catalogue=...) or set model.catalogue"
            )
        return self.catalogue

    def _read_history(self, row: int, history: Sequence[Any], anonymous: bool, on_unknown: OnUnknown) -> np.ndarray:
        _check_list(f"histories[{row}]", history)
        indices = self._require_catalogue().ids.indices_of(history, on_unknown)
        indices = indices[indices >= 0]
        if anonymous and not len(indices):
            raise InputError(f"histories[{row}] is empty: a person without an ID token needs at least one known item")
        return indices

    def _as_table(self, labels: pa.Array, best: np.ndarray, scores: np.ndarray) -> pa.Table:
        row, rank = np.nonzero(best >= 0)
        return pa.table(
            {
                "user": labels.take(pa.array(row)),
                "item": self._require_catalogue().ids.array.take(pa.array(best[row, rank])),
                "rank": pa.array(rank + 1, pa.int32()),
                "score": pa.array(scores[row, rank], pa.float32()),
            }
        )


def _check_list(name: str, ids: Any) -> None:
    if isinstance(ids, str) or not hasattr(ids, "__len__"):
        raise InputError(f"{name} is the {type(ids).__name__} {ids!r}; give a list, as [{ids!r}]")


__all__ = ["RecommendsItems"]
