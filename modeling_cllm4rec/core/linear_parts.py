"""Linear models, whose scores are added to those of a language model: a hybrid, saved with the model.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import InputError

LINEAR_PARTS_FILE = "linear_parts.safetensors"
"""File of a saved folder with the linear parts of a hybrid."""
_ROWS_AT_ONCE = 256
"""Histories whose systems of equations are solved together."""


@dataclass(frozen=True, eq=False)
class LinearPart:
    """A sparse (J, J) matrix in compressed rows: entry (i, j) is added to the score of item j for item i of a history.

    Attributes:
        name: of the baseline that it came from.
        weight: of its standardized scores in the sum; that of the language model is 1.
        recency: the item t steps before the last one of a history has the weight (1 + t) ** -recency.
        max_history: number of last items of a history that count; None for all.
        indptr, items, values: (J + 1,) int64, (n,) int32 and (n,) float32.
    """

    name: str
    weight: float
    recency: float
    max_history: int | None
    indptr: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]

    kind: ClassVar[str] = "items"
    arrays: ClassVar[dict[str, tuple[str, int]]] = {"indptr": ("I64", 1), "items": ("I32", 1), "values": ("F32", 1)}
    """Name of an array -> its type in the file, and its number of dimensions."""

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        return len(self.indptr) - 1

    @property
    def about(self) -> dict[str, Any]:
        """What the file says of the part apart from its arrays."""
        return {"recency": self.recency, "max_history": self.max_history}

    @classmethod
    def from_file(cls, place: int, name: str, weight: float, about: Mapping[str, Any], arrays: Sequence[Any]) -> LinearPart:
        """Build a part of what a file holds; sizes and values are checked.

        Raises:
            InputError: an array is not what the others say.
        """
        indptr, items, values = arrays
        recency, last = about["recency"], about["max_history"]
        _check_number(place, "recency", recency, 0.0)
        if last is not None and (type(last) is not int or last < 1):
            raise _wrong(f"max_history of part {place} is {last!r:.50}; it must be 1 or more, a whole number, or null for all")
        if len(items) != len(values) or len(indptr) < 2:
            raise _wrong(
                f"the arrays of part {place} have {len(indptr)}, {len(items)} and {len(values)} entries, which are of no matrix"
            )
        steps = np.diff(indptr)
        if indptr[0] != 0 or indptr[-1] != len(items) or (len(steps) and steps.min() < 0):
            raise _wrong(f"indptr of part {place} goes from {indptr[0]} to {indptr[-1]} for {len(items)} entries")
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < len(indptr) - 1:
            raise _wrong(
                f"part {place} has items from {items.min()} to {items.max()}, the catalogue goes from 0 to {len(indptr) - 2}"
            )
        return cls(name, weight, float(recency), last, indptr, items, values)

    def scores(self, histories: Sequence[np.ndarray]) -> npt.NDArray[np.float32]:
        """Return (B, J) sums over the items of each history (item indices, oldest first)."""
        num_items = self.num_items
        last = [np.asarray(history, dtype=np.int64) for history in histories]
        if self.max_history is not None:
            last = [history[-self.max_history :] for history in last]
        total = np.zeros((len(last), num_items), dtype=np.float32)
        for row, history in zip(total, last, strict=True):
            weights = (1.0 + np.arange(len(history))[::-1]) ** -self.recency
            for item, weight in zip(history.tolist(), weights.tolist(), strict=True):
                entries = slice(self.indptr[item], self.indptr[item + 1])
                row[self.items[entries]] += np.float32(weight) * self.values[entries]  # no item twice in a row of the matrix
        return total

    def of_items(self, kept: npt.NDArray[np.integer], new: int) -> LinearPart:
        """Return the part of these items (kept,), each once, and of `new` further items without entries."""
        place = np.full(len(self.indptr) - 1, -1, dtype=np.int64)
        place[kept] = np.arange(len(kept))
        rows = [slice(self.indptr[item], self.indptr[item + 1]) for item in np.asarray(kept).tolist()]
        columns = [place[self.items[entries]] for entries in rows]
        values = [self.values[entries][found >= 0] for entries, found in zip(rows, columns, strict=True)]
        columns = [found[found >= 0] for found in columns]
        sizes = np.concatenate([[0], [len(found) for found in columns], np.zeros(new)])
        return LinearPart(
            self.name,
            self.weight,
            self.recency,
            self.max_history,
            np.cumsum(sizes).astype(np.int64),
            np.concatenate([np.zeros(0, np.int64), *columns]).astype(np.int32),
            np.concatenate([np.zeros(0, np.float32), *values]).astype(np.float32),
        )


@dataclass(frozen=True, eq=False)
class FactorPart:
    """Factors of items (implicit ALS). The factors of a history solve the least squares problem of Hu, Koren and Volinsky (2008).

    Attributes:
        name: of the baseline that it came from.
        weight: of its standardized scores in the sum; that of the language model is 1.
        alpha: weight of an interaction; a missing one has the weight 1.
        regularization: of the factors of a history.
        item_factors: (J, K) float32.
        gram: (K, K) float32, the products of all factors that were fitted; it keeps items that leave, so that scores stay.

    Example:
        >>> part = FactorPart("ials", 1.0, 3.0, 1.0, np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
        >>> part.scores([np.array([1]), np.array([], int)]).tolist()  # 3 / (1 + 1 + (3 - 1))
        [[0.0, 0.75], [0.0, 0.0]]
    """

    name: str
    weight: float
    alpha: float
    regularization: float
    item_factors: npt.NDArray[np.float32]
    gram: npt.NDArray[np.float32]

    kind: ClassVar[str] = "factors"
    arrays: ClassVar[dict[str, tuple[str, int]]] = {"item_factors": ("F32", 2), "gram": ("F32", 2)}

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        return len(self.item_factors)

    @property
    def about(self) -> dict[str, Any]:
        """What the file says of the part apart from its arrays."""
        return {"alpha": self.alpha, "regularization": self.regularization}

    @classmethod
    def from_file(cls, place: int, name: str, weight: float, about: Mapping[str, Any], arrays: Sequence[Any]) -> FactorPart:
        """Build a part of what a file holds; sizes and values are checked.

        Raises:
            InputError: an array is not what the others say.
        """
        factors, gram = arrays
        for setting in ("alpha", "regularization"):
            _check_number(place, setting, about[setting], 1e-12)
        if gram.shape != (factors.shape[1],) * 2 or not factors.size:
            raise _wrong(f"the arrays of part {place} have the shapes {factors.shape} and {gram.shape}, which are of no factors")
        return cls(name, weight, float(about["alpha"]), float(about["regularization"]), factors, gram)

    def scores(self, histories: Sequence[np.ndarray]) -> npt.NDArray[np.float32]:
        """Return (B, J) products of the factors of items and of histories (item indices, each counts once)."""
        size = self.item_factors.shape[1]
        fixed = self.gram.astype(np.float64) + self.regularization * np.eye(size)
        found = np.zeros((len(histories), self.num_items), dtype=np.float32)
        for start in range(0, len(histories), _ROWS_AT_ONCE):
            chunk = histories[start : start + _ROWS_AT_ONCE]
            left, right = np.repeat(fixed[None], len(chunk), axis=0), np.zeros((len(chunk), size, 1))
            for row, history in enumerate(chunk):
                factors = self.item_factors[np.unique(np.asarray(history, dtype=np.int64))].astype(np.float64)
                left[row] += (self.alpha - 1.0) * (factors.T @ factors)
                right[row, :, 0] = self.alpha * factors.sum(0)
            solved = np.linalg.solve(left, right)[:, :, 0].astype(np.float32)
            found[start : start + len(chunk)] = solved @ self.item_factors.T
        return found

    def of_items(self, kept: npt.NDArray[np.integer], new: int) -> FactorPart:
        """Return the part of these items (kept,), each once, and of `new` further items without factors."""
        added = np.zeros((new, self.item_factors.shape[1]), dtype=np.float32)
        return dataclasses.replace(self, item_factors=np.concatenate([self.item_factors[kept], added]))


Part = LinearPart | FactorPart
_KINDS: dict[str, type[LinearPart] | type[FactorPart]] = {one.kind: one for one in (LinearPart, FactorPart)}


class LinearParts:
    """Linear parts of one catalogue.

    The scores of the language model and of each part are standardized over the catalogue for each history (mean 0, variance 1;
    equal scores become zeros), and added with their weights.

    Args:
        parts: at least one.
        catalogue_fingerprint: of the items, see `Catalogue`; None where they have no external ids.

    Example:
        >>> part = LinearPart("ease", 1.0, 0.0, None, np.array([0, 1, 1]), np.array([1], np.int32), np.array([2.0], np.float32))
        >>> LinearParts([part], None).added(torch.tensor([[3.0, 1.0]]), [np.array([0])]).tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, parts: Sequence[Part], catalogue_fingerprint: str | None) -> None:
        self.parts, self.catalogue_fingerprint = tuple(parts), catalogue_fingerprint

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        return self.parts[0].num_items

    @property
    def weights(self) -> dict[str, float]:
        """Name -> weight."""
        return {part.name: part.weight for part in self.parts}

    def added(self, scores: torch.Tensor, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Return (B, J) float32 sums of a model's standardized scores (B, J) and of those of the parts."""
        total = standardized(scores)
        for part in self.parts:
            total += part.weight * standardized(torch.from_numpy(part.scores(histories)).to(scores.device))
        return total

    def of_items(self, kept: npt.NDArray[np.integer], new: int, catalogue_fingerprint: str | None) -> LinearParts:
        """Return the parts of these items, and of `new` further ones, which have no linear scores."""
        return LinearParts([part.of_items(kept, new) for part in self.parts], catalogue_fingerprint)

    def save(self, folder: Path) -> None:
        """Write `LINEAR_PARTS_FILE` into a folder."""
        tensors = {f"{place}.{name}": getattr(part, name) for place, part in enumerate(self.parts) for name in part.arrays}
        about = [{"kind": part.kind, "name": part.name, "weight": part.weight, **part.about} for part in self.parts]
        metadata = {"parts": json.dumps(about), "catalogue_fingerprint": self.catalogue_fingerprint or "", "format": "np"}
        save_file(tensors, folder / LINEAR_PARTS_FILE, metadata)

    @classmethod
    def load(cls, path: str | Path) -> LinearParts:
        """Read what `save` wrote; sizes and types are checked before arrays are read.

        Raises:
            InputError: the file is damaged, or an array is not what the others say.
        """
        try:
            with safe_open(path, "np") as file:
                metadata: Mapping[str, str] = file.metadata() or {}
                about = json.loads(metadata.get("parts", "null"))
                if not isinstance(about, list) or not about:
                    raise _wrong("its metadata names no parts")
                return cls(
                    [_read_part(file, place, part) for place, part in enumerate(about)], metadata["catalogue_fingerprint"] or None
                )
        except InputError:
            raise
        except KeyError as error:
            raise _wrong(f"its metadata has no {error}") from error
        except (SafetensorError, OSError, EOFError, TypeError, ValueError) as error:
            raise _wrong(f"it cannot be read ({' '.join(str(error).split())[:200]})") from error

    def check(self, config: Any) -> None:
        """Check that the parts are of a model's catalogue.

        Raises:
            InputError: they are of another catalogue.
        """
        if self.num_items != config.num_items:
            raise _wrong(
                f"its parts have {self.num_items} items, the weights {config.num_items}: it belongs to another checkpoint"
            )
        if None not in (self.catalogue_fingerprint, config.catalogue_fingerprint) and (
            self.catalogue_fingerprint != config.catalogue_fingerprint
        ):
            raise _wrong("its parts were fitted on other items, or in another order: it belongs to another checkpoint")


def standardized(scores: torch.Tensor) -> torch.Tensor:
    """Return (B, J) float32 scores with mean 0 and variance 1 in each row; a row of equal scores becomes zeros."""
    values = scores.double()
    centred = values - values.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    # Equal scores are found by comparison, because the rounding of the mean leaves a tiny deviation.
    equal = values.amin(1, keepdim=True) == values.amax(1, keepdim=True)
    return (centred / deviation.masked_fill(equal, 1.0)).masked_fill(equal, 0.0).float()


def _wrong(reason: str) -> InputError:
    return InputError(f"{LINEAR_PARTS_FILE}: {reason}; copy the folder again, or make the hybrid again")


def _check_number(place: int, name: str, value: Any, least: float) -> None:
    if type(value) not in (int, float) or not least <= value < 1e6:
        raise _wrong(f"{name} of part {place} is {value!r:.50}; it must be a number from {least:g} to 1,000,000")


def _read_part(file: Any, place: int, about: Any) -> Part:
    """Read one part of an open file."""
    if not isinstance(about, dict) or not isinstance(about.get("kind"), str):
        raise _wrong(f"part {place} is {about!r:.50}; it must be an object with kind, name, weight and settings")
    if about["kind"] not in _KINDS:
        raise _wrong(f"part {place} is of the kind {about['kind']!r:.50}; this version reads {' and '.join(_KINDS)}")
    if not isinstance(about["name"], str):
        raise _wrong(f"part {place} has the name {about['name']!r:.50}")
    _check_number(place, "weight", about["weight"], 0.0)
    kind = _KINDS[about["kind"]]
    for name, (dtype, dimensions) in kind.arrays.items():
        array = file.get_slice(f"{place}.{name}")
        if array.get_dtype() != dtype or len(array.get_shape()) != dimensions:
            raise _wrong(
                f"{name} of part {place} is {array.get_dtype()} of shape {array.get_shape()}; it must be {dtype} of {dimensions} "
                f"dimension{'s' if dimensions > 1 else ''}"
            )
    arrays = [file.get_tensor(f"{place}.{name}") for name in kind.arrays]
    if not all(np.isfinite(array).all() for array in arrays):
        raise _wrong(f"part {place} has values that are NaN or infinite")
    return kind.from_file(place, about["name"], float(about["weight"]), about, arrays)


__all__ = ["LINEAR_PARTS_FILE", "FactorPart", "LinearPart", "LinearParts", "standardized"]
