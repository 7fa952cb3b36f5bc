"""The drift report of an update: how new interactions and items differ from those that a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.semantic_ids import LEVEL_LETTERS, nearest_codes, residuals

DRIFT_FILE = "drift.json"
"""File of a run folder that says how new interactions differ from those before."""
HEAD_SHARE = 0.1
"""Share of the items, the most popular ones, whose part of the interactions is compared."""


@dataclass(frozen=True)
class InteractionDrift:
    """Training interactions of a data folder, compared with the histories that a model holds.

    Attributes:
        before, after, new: interactions in the model, in the data, and in the data alone.
        new_users, new_items: of the users and items of the data, those that the model does not know.
        gone_users: users of the model that the data lacks.
        share_of_new_items: of the new interactions, those with new items; None without new interactions.
        popularity_shift: total variation distance between the item shares of earlier and new interactions, from 0, equal, to 1,
            no item in common; None where one of them is empty.
        popularity_shift_by_chance: its expectation where as many interactions are drawn from the earlier shares; few are far from
            any shares.
        head_before, head_new: share of earlier and of new interactions with the tenth of the items that was most popular before.
    """

    before: int
    after: int
    new: int
    users: int
    new_users: int
    gone_users: int
    items: int
    new_items: int
    share_of_new_items: float | None
    popularity_shift: float | None
    popularity_shift_by_chance: float | None
    head_before: float | None
    head_new: float | None


@dataclass(frozen=True)
class CodeDrift:
    """The codes of new items, and those of the items before.

    Attributes:
        used_before, used_after: codes of each level that an item has.
        conflicts: new items whose nearest semantic ID was taken, so that they have another one.
        old_error, new_error: mean squared distance between a latent and the sum of its code vectors, of a sample of the items
            before and of the new items; None where there is no indexer or no new item.
    """

    codebook_size: int
    used_before: list[int]
    used_after: list[int]
    conflicts: int
    old_error: float | None
    new_error: float | None


@dataclass(frozen=True)
class DriftReport:
    """What an update found and did.

    Attributes:
        previous: the version before: `folder`, `num_items`, `codes_fingerprint`.
        version: number of the index, 0 for the first.
        metrics: `before` and `after` the training, means over `users` with new training interactions, each on the last items in
            the split `validation`; None where the data has no such split or no such users.
    """

    previous: Mapping[str, Any]
    version: int
    interactions: InteractionDrift
    codes: CodeDrift
    metrics: Mapping[str, Any] | None = None

    def lines(self) -> list[str]:
        """Return the report in sentences.

        Example:
            >>> codes = CodeDrift(4, [3, 4], [4, 4], 1, 0.5, 1.0)
            >>> drift = InteractionDrift(8, 12, 4, 3, 1, 0, 6, 2, 0.25, 0.4, 0.3, 0.5, 0.25)
            >>> for line in DriftReport({"folder": "mine"}, 1, drift, codes).lines():
            ...     print(line)
            The model before is mine; semantic IDs of its items are unchanged (version 1 of the index).
            New: 1 of 3 users, 2 of 6 items, 4 of 12 training interactions, 25.0% of these with new items.
            Popularity shift between earlier and new interactions: 0.400 of 1 (0.300 by chance).
            The most popular tenth has 50.0% of the earlier interactions and 25.0% of the new ones.
            Codes in use: a 3 to 4, b 4 to 4 of 4; 1 of 2 new items found their nearest semantic ID taken.
            Squared quantization error: 0.5000 for earlier items, 1.0000 for new ones.
        """
        one, codes = self.interactions, self.codes
        lines = [
            f"The model before is {self.previous.get('folder')}; semantic IDs of its items are unchanged (version {self.version} "
            "of the index).",
            f"New: {one.new_users} of {one.users} users, {one.new_items} of {one.items} items, {one.new} of {one.after} training "
            f"interactions{_share(', {} of these with new items', one.share_of_new_items)}.",
        ]
        if one.gone_users:
            lines.append(f"{one.gone_users} users of the model before are not in the data; their histories are not kept.")
        shift, by_chance = one.popularity_shift, one.popularity_shift_by_chance
        if shift is not None and by_chance is not None and one.head_before is not None and one.head_new is not None:
            lines += [
                f"Popularity shift between earlier and new interactions: {shift:.3f} of 1 ({by_chance:.3f} by chance).",
                f"The most popular tenth has {one.head_before:.1%} of the earlier interactions and {one.head_new:.1%} of the new "
                "ones.",
            ]
        if one.new_items:
            used = ", ".join(
                f"{letter} {before} to {after}"
                for letter, before, after in zip(LEVEL_LETTERS, codes.used_before, codes.used_after, strict=False)
            )
            lines.append(
                f"Codes in use: {used} of {codes.codebook_size}; {codes.conflicts} of {one.new_items} new items found their "
                "nearest semantic ID taken."
            )
        if codes.old_error is not None and codes.new_error is not None:
            lines.append(
                f"Squared quantization error: {codes.old_error:.4f} for earlier items, {codes.new_error:.4f} for new ones."
            )
        if self.metrics is not None:
            before, after = self.metrics["before"], self.metrics["after"]
            values = ", ".join(f"{name} {before[name]:.4f} to {after[name]:.4f}" for name in before)
            lines.append(f"On validation, {self.metrics['users']} users with new interactions: {values}.")
        return lines

    def save(self, folder: Path) -> None:
        """Write `DRIFT_FILE` into a folder."""
        with atomic_file(folder / DRIFT_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def interaction_drift(
    before: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
    known_users: npt.NDArray[np.bool_],
    known_items: npt.NDArray[np.bool_],
    gone_users: int = 0,
) -> tuple[InteractionDrift, npt.NDArray[np.bool_]]:
    """Compare interactions.

    Args:
        before: (n, 2) users and items that the model has seen together, as indices of the data.
        after: (m, 2) training interactions of the data.
        known_users, known_items: (I,) and (J,) whether the model knows each user and item of the data.

    Returns:
        The numbers, and which of the interactions after are new: (m,).

    Example:
        >>> before, after = np.array([[0, 0], [0, 1]]), np.array([[0, 0], [0, 1], [0, 2], [1, 0]])
        >>> drift, new = interaction_drift(before, after, np.array([True, False]), np.array([True, True, False]))
        >>> drift.new, drift.share_of_new_items, drift.popularity_shift, new.tolist()
        (2, 0.5, 0.5, [False, False, True, True])
    """
    items = len(known_items)
    new = ~np.isin(after[:, 0] * items + after[:, 1], before[:, 0] * items + before[:, 1])
    earlier, later = (np.bincount(pairs[:, 1], minlength=items) for pairs in (before, after[new]))
    shift = by_chance = head_before = head_new = None
    if earlier.sum() and later.sum():
        old, now = earlier / earlier.sum(), later / later.sum()
        shift, draws = float(np.abs(old - now).sum() / 2), int(later.sum())
        # Half the sum of E|X / n - p| of binomial X, by de Moivre's formula: E|X - np| = 2np(1 - p) P(Y = floor(np)), Y of n - 1.
        by_chance = float((old * (1 - old) * binom.pmf(np.floor(draws * old), draws - 1, old)).sum())
        head = np.argsort(-earlier, kind="stable")[: max(1, round(HEAD_SHARE * known_items.sum()))]
        head_before, head_new = float(old[head].sum()), float(now[head].sum())
    drift = InteractionDrift(
        before=len(before),
        after=len(after),
        new=int(new.sum()),
        users=len(known_users),
        new_users=int((~known_users).sum()),
        gone_users=gone_users,
        items=items,
        new_items=int((~known_items).sum()),
        share_of_new_items=float(later[~known_items].sum() / later.sum()) if later.sum() else None,
        popularity_shift=shift,
        popularity_shift_by_chance=by_chance,
        head_before=head_before,
        head_new=head_new,
    )
    return drift, new


def code_drift(
    codes: npt.NDArray[np.int32],
    is_new: npt.NDArray[np.bool_],
    codebook_size: int,
    indexer: RQVAEModel | None = None,
    new_vectors: npt.NDArray[np.floating] | None = None,
    old_items: npt.NDArray[np.integer] | None = None,
    old_vectors: npt.NDArray[np.floating] | None = None,
) -> CodeDrift:
    """Compare codes.

    Args:
        codes: (J, H) of all items; is_new: (J,) which are new.
        indexer: that encoded the new items; None where there are none.
        new_vectors: (new, D) of the new items' texts, in the order of the items.
        old_items: (n,) indices of a sample of the items before; old_vectors: (n, D) of their texts.
    """

    def used(rows: npt.NDArray[np.int32]) -> list[int]:
        return [len(np.unique(column)) for column in rows.T]

    numbers: dict[str, Any] = {"conflicts": 0, "old_error": None, "new_error": None}
    if indexer is not None and new_vectors is not None and old_items is not None and old_vectors is not None:
        codebooks, latents = indexer.codebook_array, indexer.latents(new_vectors)
        numbers["conflicts"] = int((nearest_codes(latents, codebooks) != codes[is_new]).any(axis=1).sum())
        numbers["new_error"] = _squared_error(latents, codebooks, codes[is_new])
        numbers["old_error"] = _squared_error(indexer.latents(old_vectors), codebooks, codes[old_items])
    return CodeDrift(codebook_size, used(codes[~is_new]), used(codes), **numbers)


def _squared_error(latents: npt.NDArray[np.floating], codebooks: npt.NDArray[np.floating], codes: npt.NDArray[np.int32]) -> float:
    return float((residuals(latents, codebooks, codes, codes.shape[1]) ** 2).sum(axis=1).mean())


def _share(words: str, value: float | None) -> str:
    return "" if value is None else words.format(f"{value:.1%}")


__all__ = ["DRIFT_FILE", "CodeDrift", "DriftReport", "InteractionDrift", "code_drift", "interaction_drift"]
