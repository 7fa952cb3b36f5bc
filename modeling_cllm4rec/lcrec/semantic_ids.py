"""Semantic IDs of a catalogue: H codes for each item, all different (section III-B of arXiv 2311.09049).

The table of codes, and quantization of latents to codes, uniform semantic mapping (Sinkhorn), and unique assignment.

This file is copied into every saved folder.
"""

from __future__ import annotations

import hashlib
import math
import string
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from scipy.optimize import linear_sum_assignment

from ..core.catalogue import IdMap
from ..core.errors import InputError

ROUNDS_WITHOUT_LOGARITHMS = 9
ITEMS_AT_ONCE = 65_536
"""Items of a large catalogue whose distances to the codes of a level are held together."""
LEVEL_LETTERS = string.ascii_lowercase
CODEBOOK_SIZE = b"codebook_size"


@dataclass(frozen=True)
class SemanticIds:
    """Semantic IDs of all items.

    Attributes:
        codes: (J, H) integers in [0, codebook_size); row j belongs to item_index j, and all rows are different.
        codebook_size: K, codes of a level.

    Raises:
        InputError: codes of another shape, outside the codebook, or shared by items (the first ones are named).

    Example:
        >>> SemanticIds(np.array([[2, 0], [2, 1]]), codebook_size=4).semantic_id_text(1)
        '<a_2><b_1>'
    """

    codes: np.ndarray
    codebook_size: int

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(LEVEL_LETTERS) or codes.dtype.kind not in "iu":
            raise InputError(
                f"codes have shape {codes.shape} and type {codes.dtype}; they must be integers (items, levels) with 1 to "
                f"{len(LEVEL_LETTERS)} levels"
            )
        outside = (codes < 0) | (codes >= self.codebook_size)
        if outside.any():
            item, level = np.argwhere(outside)[0]
            raise InputError(
                f"item {item} has code {codes[item, level]} at level {level}, outside the codebook of {self.codebook_size} "
                "codes: these are the semantic IDs of another model"
            )
        same = shared_codes(codes)
        if len(same):
            raise InputError(
                f"{len(same)} items share their codes with another, first items {same[:5].tolist()}: a semantic ID must belong "
                "to one item; make them again with `cllm4rec index-items`"
            )
        object.__setattr__(self, "codes", np.ascontiguousarray(codes, dtype=np.int32))

    @property
    def num_items(self) -> int:
        """J, the number of items."""
        return int(self.codes.shape[0])

    @property
    def num_levels(self) -> int:
        """H, the number of codes of an item."""
        return int(self.codes.shape[1])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the codes of all items in their order, and of the codebook's size."""
        return hashlib.sha256(
            f"{self.codebook_size} {self.codes.shape} ".encode() + self.codes.astype("<i4").tobytes()
        ).hexdigest()

    @cached_property
    def _items(self) -> dict[bytes, int]:
        return {row.tobytes(): item for item, row in enumerate(self.codes)}

    def items_of(self, codes: np.ndarray) -> np.ndarray:
        """Return the item indices of (..., H) codes, -1 where no item has them: a plain look-up, without the trie.

        Example:
            >>> SemanticIds(np.array([[2, 0], [2, 1]]), codebook_size=4).items_of(np.array([[2, 1], [3, 3]])).tolist()
            [1, -1]
        """
        rows = np.ascontiguousarray(codes, dtype=np.int32).reshape(-1, self.num_levels)
        return np.array([self._items.get(row.tobytes(), -1) for row in rows], dtype=np.int64).reshape(codes.shape[:-1])

    def semantic_id_text(self, item: int) -> str:
        """Return the semantic ID of an item as text."""
        # The format of `tokenization_lcrec.semantic_id_token`, which a saved folder comes without.
        return "".join(f"<{letter}_{code}>" for letter, code in zip(LEVEL_LETTERS, self.codes[item].tolist(), strict=False))

    def save(self, path: str | Path, item_ids: IdMap) -> None:
        """Write a Parquet file with the columns `item_id` and `codes`."""
        if len(item_ids) != self.num_items:
            raise InputError(f"got {len(item_ids)} item ids for the semantic IDs of {self.num_items} items")
        offsets = pa.array(np.arange(0, self.codes.size + 1, self.num_levels), pa.int32())
        codes = pa.ListArray.from_arrays(offsets, pa.array(self.codes.reshape(-1), pa.int32()))
        table = pa.table({"item_id": item_ids.array, "codes": codes})
        pq.write_table(table.replace_schema_metadata({CODEBOOK_SIZE: str(self.codebook_size)}), path)

    @classmethod
    def load(cls, path: str | Path) -> tuple[SemanticIds, IdMap]:
        """Read a file that `save` wrote: semantic IDs and the ids of their items.

        Raises:
            InputError: no such file, a file without semantic IDs, or codes that `SemanticIds` refuses.
        """
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"{path} is no readable file of semantic IDs ({error}); make it again with `cllm4rec index-items`"
            ) from error
        size = (table.schema.metadata or {}).get(CODEBOOK_SIZE)
        if size is None or not {"item_id", "codes"} <= set(table.column_names):
            raise InputError(
                f"{path} has columns {table.column_names}; semantic IDs need item_id and codes, and the codebook's size "
                "as metadata"
            )
        return cls(codes_of(table["codes"]), int(size)), IdMap(table["item_id"], "item_id")


def codes_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return the (J, H) codes of a column of lists.

    Raises:
        InputError: lists of different lengths.
    """
    lists = column.combine_chunks()
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    if len(lengths) != 1 or lengths == [None]:
        raise InputError(
            f"codes: all items need codes of the same number of levels, but they have {lengths[:5]}; make the semantic IDs again "
            "with `cllm4rec index-items`"
        )
    return np.asarray(lists.flatten().to_numpy()).reshape(len(lists), -1)


def shared_codes(codes: np.ndarray) -> np.ndarray:
    """Return the items whose codes another item also has.

    Example:
        >>> shared_codes(np.array([[1, 1], [0, 2], [1, 1]])).tolist()
        [0, 2]
    """
    if not len(codes):
        return np.zeros(0, dtype=np.int64)
    numbers = row_numbers(codes, int(codes.max()) + 1)
    order = np.argsort(numbers)
    same = np.flatnonzero(np.diff(numbers[order]) == 0)
    return np.unique(order[np.concatenate([same, same + 1])])


def row_numbers(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Return an int64 number for each row of (J, H) codes in [0, codebook_size): equal for equal rows only, in the same order.

    Numbers are sorted and compared several times as fast as rows.

    Example:
        >>> row_numbers(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3).tolist()
        [3, 2, 4]
    """
    number, limit = np.zeros(len(codes), dtype=np.int64), 1  # all numbers are below the limit
    for column in codes.T:
        if limit > 2**62 // codebook_size:  # the next product would overflow: ranks have the same order and are small
            number, limit = np.unique(number, return_inverse=True)[1].astype(np.int64), len(codes)
        number, limit = number * codebook_size + column, limit * codebook_size
    return number


def squared_distances_to(points: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the (n, K) squared distances of points (n, d) to code vectors (K, d), in float64."""
    points, vectors = np.asarray(points, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
    # Expanded into products of matrices, which need no (n, K, d) array; rounding may leave -1e-16 for 0, so clip at 0.
    squares = (points**2).sum(1)[:, None] + (vectors**2).sum(1)[None] - 2 * points @ vectors.T
    return np.maximum(squares, 0.0)


def sinkhorn(distances: torch.Tensor, epsilon: float = 0.003, iterations: int = 50) -> torch.Tensor:
    """Spread items evenly over codes: entropic optimal transport by Sinkhorn-Knopp in the log domain.

    The uniform semantic mapping of the paper: minimise sum q(k|n) distance(n, k), where the shares of an item sum to 1 and
    those of a code to n / K. Distances are centred and scaled to [-1, 1] first, as the released code does.

    Args:
        distances: (..., n, K) floating, one problem or several of the same size.
        epsilon: weight of the entropy, the smaller the sharper; iterations: rounds in which columns and rows are scaled in turn.

    Returns:
        (..., n, K) of the same type: rows sum to 1 and, in the limit, columns to n / K.

    Example:
        >>> sinkhorn(torch.tensor([[0.0, 1.0], [0.0, 1.1]])).argmax(1).tolist()
        [1, 0]
    """
    if epsilon <= 0 or iterations < 1:
        raise InputError(f"epsilon is {epsilon} and iterations {iterations}; both must be above 0")
    items, codes = distances.shape[-2:]
    highest, lowest = distances.amax((-2, -1), keepdim=True), distances.amin((-2, -1), keepdim=True)
    half = ((highest - lowest) / 2).clamp(min=torch.finfo(distances.dtype).tiny)
    log_q = ((highest + lowest) / 2 - distances) / half / epsilon
    share = items / codes
    # exp(log_q) reaches e^(1/epsilon) = e^333, beyond float32, so rounds are done on logarithms, where nothing overflows.
    # Logarithms cost several times a product of matrices, so rounds in between are plain ones as long as numbers allow.
    done = 0
    while done < iterations:
        log_q = log_q - _log_sums(log_q, -2) + math.log(share)
        log_q = log_q - _log_sums(log_q, -1)
        done += 1
        scaled, rounds = _scale(log_q, share, min(iterations - done, ROUNDS_WITHOUT_LOGARITHMS))
        log_q, done = log_q + scaled, done + rounds
    return _exp(log_q)


def _log_sums(logs: torch.Tensor, dim: int) -> torch.Tensor:
    """Return ln of the sums of e^logs over one dimension, which is kept."""
    highest = logs.amax(dim, keepdim=True)
    return highest + _exp(logs - highest).sum(dim, keepdim=True).log()


def _exp(logs: torch.Tensor) -> torch.Tensor:
    """Return e^logs, at least 1e-28 in float32: CPUs compute with subnormal numbers many times as slowly."""
    return logs.clamp(min=0.75 * math.log(torch.finfo(logs.dtype).tiny)).exp()


def _scale(log_q: torch.Tensor, share: float, rounds: int) -> tuple[torch.Tensor, int]:
    """Run rounds of Sinkhorn-Knopp as products of a matrix and a vector, several times as fast as in the log domain.

    They stop before a sum comes near the smallest numbers, where only the log domain is accurate.

    Args:
        log_q: (..., n, K), ln of a plan whose rows sum to 1; share: sum of a column in the end.

    Returns:
        (..., n, K) ln of the factor by which the rounds scale the plan, or 0 (), and the number of rounds.
    """
    plan, smallest = _exp(log_q), torch.finfo(log_q.dtype).tiny ** 0.5
    rows, columns, done = torch.ones_like(plan[..., :1]), None, 0
    several = plan.dim() > 2 and len(plan) > 1
    while done < rounds:
        column_sums = (rows.mT @ plan).mT  # of many small problems several times as fast as `plan.mT @ rows`
        if float(column_sums.min()) < smallest:
            break
        scaled = share / column_sums
        # Of one large problem the product is quicker, of many small ones the sums of products.
        row_sums = torch.linalg.vecdot(plan, scaled.mT)[..., None] if several else plan @ scaled
        if float(row_sums.min()) < smallest:
            break
        rows, columns, done = 1 / row_sums, share / column_sums, done + 1
    if columns is None:
        return plan.new_zeros(()), 0
    return rows.log() + columns.log().mT, done


def assign_unique_codes(latents: np.ndarray, codebooks: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
    """Assign every item a semantic ID of its own, as near as capacity allows.

    From the first level to the last, the items under one prefix are assigned to codes with a capacity of K^(levels below)
    items each, one at the last level. Items stay at their preferred code where its capacity allows. Of a code with too many
    items, the nearest ones stay and the others overflow to the nearest codes with capacity left, level by level. At the last
    level all items of a prefix with a conflict are assigned jointly, at the least sum of squared distances (an assignment
    problem).

    Args:
        latents: (J, d); codebooks: (H, K, d). Level h quantizes the residuals of the levels before it.
        codes: (J, H) the preferred codes (default: the nearest ones).

    Returns:
        (J, H) int32; all rows are different for any input.

    Raises:
        InputError: more items than semantic IDs, NaN, or `codes` of another shape or outside the codebooks.
    """
    latents, codebooks = np.asarray(latents), np.asarray(codebooks, dtype=np.float64)
    levels, size, _ = codebooks.shape
    _check_latents(latents, len(latents), size, levels)
    preferred = nearest_codes(latents, codebooks) if codes is None else np.asarray(codes)
    if preferred.shape != (len(latents), levels) or ((preferred < 0) | (preferred >= size)).any():
        raise InputError(
            f"codes have shape {preferred.shape}; they must be ({len(latents)}, {levels}), one row an item, all in [0, {size})"
        )
    result = preferred.astype(np.int32)
    # The capacity of a code is the number of semantic IDs below it. As long as no prefix has more items than that, the last
    # level can always give each item a code of its own; without it, a popular prefix would run out of codes there.
    for level in range(levels):
        room = size ** (levels - level - 1)
        for items in _crowded_groups(result[:, : level + 1], size, room):
            before = result[items, level].copy()
            result[items, level] = codes_with_room(latents, codebooks, result, items, level, room)
            moved = items[result[items, level] != before]
            if len(moved) and level + 1 < levels:  # their codes further down quantize the residuals of another prefix
                rest = residuals(latents[moved], codebooks, result[moved], level + 1)
                result[moved, level + 1 :] = nearest_codes(rest, codebooks[level + 1 :])
    return result


def _crowded_groups(codes: np.ndarray, codebook_size: int, room: int) -> list[np.ndarray]:
    """Return the items under each prefix that has a code with more than `room` items: ascending item indices.

    Args:
        codes: (J, h) the prefix and the code at the level below it.
    """
    _, number, counts = np.unique(row_numbers(codes, codebook_size), return_inverse=True, return_counts=True)
    crowded = counts[number] > room
    if not crowded.any():
        return []
    prefixes = row_numbers(codes[:, :-1], codebook_size)
    items = np.flatnonzero(np.isin(prefixes, np.unique(prefixes[crowded])))
    items = items[np.argsort(prefixes[items], kind="stable")]
    return np.split(items, np.flatnonzero(np.diff(prefixes[items])) + 1)


def nearest_codes(latents: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Return (J, H) codes of plain residual quantization: c_h is the nearest vector to r_h, r_{h+1} = r_h - v_{c_h}."""
    codes = np.zeros((len(latents), len(codebooks)), dtype=np.int32)
    for part in pieces(len(latents)):
        rest = np.array(latents[part], dtype=np.float64)
        for level, vectors in enumerate(np.asarray(codebooks, dtype=np.float64)):
            codes[part, level] = squared_distances_to(rest, vectors).argmin(1)
            rest -= vectors[codes[part, level]]
    return codes


def pieces(items: int) -> list[slice]:
    """Return slices of up to `ITEMS_AT_ONCE` items that follow one another; one empty slice for no items."""
    return [slice(start, start + ITEMS_AT_ONCE) for start in range(0, max(items, 1), ITEMS_AT_ONCE)]


def residuals(latents: np.ndarray, codebooks: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
    """Return the (n, d) residuals of latents (n, d) after the levels before `level` with these codes."""
    rest = np.array(latents, dtype=np.float64)
    for before in range(level):
        rest -= codebooks[before, codes[:, before]]
    return rest


def codes_with_room(
    latents: np.ndarray, codebooks: np.ndarray, codes: np.ndarray, items: np.ndarray, level: int, room: int
) -> np.ndarray:
    """Return codes at one level for the items under one prefix, none with more than `room` items.

    Of a code with too many items, the nearest ones stay and the others overflow to the nearest codes with room. With room for
    one item each, all are assigned jointly.

    Args:
        latents: (J, d); codebooks: (H, K, d); codes: (J, H) the preferred codes; items: (n,) rows of both.

    Returns:
        (n,) int32.
    """
    preferred = codes[items, level]
    if len(items) == 1 or np.bincount(preferred).max() <= room:
        return preferred

    def distances_of(group: np.ndarray) -> np.ndarray:
        rest = residuals(latents[items[group]], codebooks, codes[items[group]], level)
        return squared_distances_to(rest, codebooks[level])

    # The joint optimum takes cubic time. At the last level groups are small (K items at most); above it, where a group may be
    # the whole catalogue, the greedy rule is used, and distances are computed some items at a time.
    everyone = np.arange(len(items))
    if room == 1:
        return np.asarray(linear_sum_assignment(distances_of(everyone))[1], dtype=np.int32)
    assigned = np.full(len(items), -1, dtype=np.int32)
    left = np.full(codebooks.shape[1], room)
    parts = [everyone[part] for part in pieces(len(items))]
    own = np.concatenate([distances_of(part)[np.arange(len(part)), preferred[part]] for part in parts])
    for code in np.unique(preferred):
        group = np.flatnonzero(preferred == code)
        stay = group[np.argsort(own[group], kind="stable")][:room]  # stable: of equal distances the lower item, on any machine
        assigned[stay] = code
        left[code] -= len(stay)
    moving = np.flatnonzero(assigned < 0)
    for part in pieces(len(moving)):
        for item, distances in zip(moving[part], distances_of(moving[part]), strict=True):
            code = int(np.where(left > 0, distances, np.inf).argmin())
            assigned[item] = code
            left[code] -= 1
    return assigned


def nearest_free_codes(latents: np.ndarray, codebooks: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Return free semantic IDs for new items, the nearest for each item in the order given.

    From the first level to the last, an item takes the nearest code that has room below it.

    Args:
        latents: (M, d) of the new items; codebooks: (H, K, d); taken: (J, H) codes of the items in the catalogue.

    Returns:
        (M, H) int32; all rows differ from each other and from those of `taken`.

    Raises:
        InputError: more items than free semantic IDs, or NaN.
    """
    latents, codebooks = np.asarray(latents, dtype=np.float64), np.asarray(codebooks, dtype=np.float64)
    levels, size, _ = codebooks.shape
    _check_latents(latents, len(latents) + len(taken), size, levels)
    taken = np.asarray(taken)
    rows = taken[np.lexsort(taken.T[::-1])]  # the items below a prefix follow one another
    given: dict[tuple[int, ...], int] = {}  # prefix -> number of the new items below it
    result = np.zeros((len(latents), levels), dtype=np.int32)
    for item, latent in enumerate(latents):
        rest, prefix, below = latent.copy(), tuple[int, ...](), slice(0, len(rows))
        for level in range(levels):
            room = size ** (levels - level - 1)
            bounds = below.start + np.searchsorted(rows[below, level], np.arange(size + 1))
            order = squared_distances_to(rest[None], codebooks[level])[0].argsort(kind="stable").tolist()
            code = next(code for code in order if bounds[code + 1] - bounds[code] + given.get((*prefix, code), 0) < room)
            prefix, below = (*prefix, code), slice(bounds[code], bounds[code + 1])
            given[prefix] = given.get(prefix, 0) + 1
            rest -= codebooks[level, code]
        result[item] = prefix
    return result


def _check_latents(latents: np.ndarray, items: int, size: int, levels: int) -> None:
    if not all(np.isfinite(latents[part]).all() for part in pieces(len(latents))):
        bad = np.flatnonzero(~np.isfinite(latents).all(1))
        raise InputError(f"{len(bad)} items have NaN or infinite embeddings, first {bad[:5].tolist()}; make them again")
    if items > size**levels:
        raise InputError(
            f"{items} items are more than the {size**levels} semantic IDs of {levels} levels of {size} codes; "
            "raise num_levels or codebook_size"
        )


__all__ = [
    "SemanticIds",
    "assign_unique_codes",
    "codes_of",
    "codes_with_room",
    "nearest_codes",
    "nearest_free_codes",
    "pieces",
    "residuals",
    "row_numbers",
    "shared_codes",
    "sinkhorn",
    "squared_distances_to",
]
