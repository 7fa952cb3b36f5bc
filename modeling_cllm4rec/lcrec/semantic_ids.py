"""The semantic index of a catalogue: H codes for each item, no two items alike (section III-B of arXiv 2311.09049).

This file stands alone: it is copied into every saved folder.
"""

from __future__ import annotations

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
LEVEL_LETTERS = string.ascii_lowercase
CODEBOOK_SIZE = b"codebook_size"


def semantic_id_token(level: int, code: int) -> str:
    """The word of a code: levels are letters.

    Example:
        >>> semantic_id_token(1, 30)
        '<b_30>'
    """
    if not 0 <= level < len(LEVEL_LETTERS):
        raise InputError(f"level is {level}; an index has at most {len(LEVEL_LETTERS)} levels")
    return f"<{LEVEL_LETTERS[level]}_{code}>"


@dataclass(frozen=True)
class SemanticIds:
    """The codes of all items.

    Attributes:
        codes: (J, H) integers in [0, codebook_size), row j = item_index j, all rows different.
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
                "codes: this is the index of another model"
            )
        same = shared_codes(codes)
        if len(same):
            raise InputError(
                f"{len(same)} items share their codes with another, first items {same[:5].tolist()}: an index that collides "
                "cannot tell items apart; make it anew with `cllm4rec index-items`"
            )
        object.__setattr__(self, "codes", np.ascontiguousarray(codes, dtype=np.int32))

    @property
    def num_items(self) -> int:
        """Number J of items."""
        return int(self.codes.shape[0])

    @property
    def num_levels(self) -> int:
        """Number H of codes of an item."""
        return int(self.codes.shape[1])

    @cached_property
    def _items(self) -> dict[bytes, int]:
        return {row.tobytes(): item for item, row in enumerate(self.codes)}

    def items_of(self, codes: np.ndarray) -> np.ndarray:
        """(...) item indices of (..., H) codes, -1 where no item has them: a plain look-up, without any tree.

        Example:
            >>> SemanticIds(np.array([[2, 0], [2, 1]]), codebook_size=4).items_of(np.array([[2, 1], [3, 3]])).tolist()
            [1, -1]
        """
        rows = np.ascontiguousarray(codes, dtype=np.int32).reshape(-1, self.num_levels)
        return np.array([self._items.get(row.tobytes(), -1) for row in rows], dtype=np.int64).reshape(codes.shape[:-1])

    def semantic_id_text(self, item: int) -> str:
        """The index of an item in words."""
        return "".join(semantic_id_token(level, int(code)) for level, code in enumerate(self.codes[item]))

    def save(self, path: str | Path, item_ids: IdMap) -> None:
        """Write a Parquet file with the columns `item_id` and `codes`."""
        if len(item_ids) != self.num_items:
            raise InputError(f"got {len(item_ids)} item ids for an index of {self.num_items} items")
        table = pa.table({"item_id": item_ids.array, "codes": pa.array(list(self.codes), pa.list_(pa.int32()))})
        pq.write_table(table.replace_schema_metadata({CODEBOOK_SIZE: str(self.codebook_size)}), path)

    @classmethod
    def load(cls, path: str | Path) -> tuple[SemanticIds, IdMap]:
        """Read what `save` wrote: the index, and the items that it is of.

        Raises:
            InputError: no such file, not an index, or one that `SemanticIds` refuses.
        """
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path} is no readable index ({error}); make it anew with `cllm4rec index-items`") from error
        size = (table.schema.metadata or {}).get(CODEBOOK_SIZE)
        if size is None or not {"item_id", "codes"} <= set(table.column_names):
            raise InputError(f"{path} has columns {table.column_names}; an index has item_id and codes, and its codebook's size")
        return cls(codes_of(table["codes"]), int(size)), IdMap(table["item_id"], "item_id")


def codes_of(column: pa.ChunkedArray) -> np.ndarray:
    """(J, H) codes of a column of lists.

    Raises:
        InputError: lists of different lengths.
    """
    lists = column.combine_chunks()
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    if len(lengths) != 1 or lengths == [None]:
        raise InputError(
            f"codes: all items need codes of the same number of levels, but they have {lengths[:5]}; make the index anew with "
            "`cllm4rec index-items`"
        )
    return np.asarray(lists.flatten().to_numpy()).reshape(len(lists), -1)


def shared_codes(codes: np.ndarray) -> np.ndarray:
    """Items whose codes another item has, too.

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
    """(J,) int64, a number for each row of (J, H) codes in [0, codebook_size): equal for equal rows only, in the rows' order.

    To sort and compare numbers is several times as fast as to sort and compare rows.

    Example:
        >>> row_numbers(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3).tolist()
        [3, 2, 4]
    """
    number, limit = np.zeros(len(codes), dtype=np.int64), 1  # all numbers are below the limit
    for column in codes.T:
        if limit > 2**62 // codebook_size:  # their ranks will do
            number, limit = np.unique(number, return_inverse=True)[1].astype(np.int64), len(codes)
        number, limit = number * codebook_size + column, limit * codebook_size
    return number


def squared_distances_to(points: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(n, K) squared distances of points (n, d) to code vectors (K, d), in float64."""
    points, vectors = np.asarray(points, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
    squares = (points**2).sum(1)[:, None] + (vectors**2).sum(1)[None] - 2 * points @ vectors.T
    return np.maximum(squares, 0.0)


def sinkhorn(distances: torch.Tensor, epsilon: float = 0.003, iterations: int = 50) -> torch.Tensor:
    """Spread items evenly over codes: entropic optimal transport by Sinkhorn-Knopp in the log domain.

    The uniform semantic mapping of the paper: minimise sum q(k|n) distance(n, k) where every item has one code in all, and
    every code n / K items. Distances are centred and scaled to [-1, 1] first, as the released code does.

    Args:
        distances: (n, K) floating; epsilon: weight of the entropy, the smaller the sharper.

    Returns:
        (n, K) of the same type: rows sum to 1 and, in the limit, columns to n / K.

    Example:
        >>> sinkhorn(torch.tensor([[0.0, 1.0], [0.0, 1.1]])).argmax(1).tolist()
        [1, 0]
    """
    if epsilon <= 0 or iterations < 1:
        raise InputError(f"epsilon is {epsilon} and iterations {iterations}; both must be above 0")
    items, codes = distances.shape
    highest, lowest = distances.max(), distances.min()
    half = ((highest - lowest) / 2).clamp(min=torch.finfo(distances.dtype).tiny)
    log_q = ((highest + lowest) / 2 - distances) / half / epsilon
    share = items / codes
    done = 0
    while done < iterations:
        log_q = log_q - _log_sums(log_q, 0) + math.log(share)
        log_q = log_q - _log_sums(log_q, 1)
        done += 1
        scaled, rounds = _scale(log_q, share, min(iterations - done, ROUNDS_WITHOUT_LOGARITHMS))
        log_q, done = log_q + scaled, done + rounds
    return _exp(log_q)


def _log_sums(logs: torch.Tensor, dim: int) -> torch.Tensor:
    """Ln of the sums over one dimension, which stays."""
    highest = logs.amax(dim, keepdim=True)
    return highest + _exp(logs - highest).sum(dim, keepdim=True).log()


def _exp(logs: torch.Tensor) -> torch.Tensor:
    """e^logs, but nothing so small (below 1e-28 in float32) that processors reckon with it many times as slowly."""
    return logs.clamp(min=0.75 * math.log(torch.finfo(logs.dtype).tiny)).exp()


def _scale(log_q: torch.Tensor, share: float, rounds: int) -> tuple[torch.Tensor, int]:
    """Rounds of Sinkhorn-Knopp as products of a matrix and a vector, several times as fast as in the log domain.

    They end before a sum comes near the smallest numbers; the log domain takes over there.

    Args:
        log_q: (n, K), ln of a plan whose rows sum to 1; share: sum of a column in the end.

    Returns:
        (n, K) ln of what the rounds multiply the plan by, or 0 (), and how many there were.
    """
    plan, smallest = _exp(log_q), torch.finfo(log_q.dtype).tiny ** 0.5
    rows, columns, done = torch.ones_like(plan[:, 0]), None, 0
    while done < rounds:
        column_sums = plan.t() @ rows
        if float(column_sums.min()) < smallest:
            break
        row_sums = plan @ (share / column_sums)
        if float(row_sums.min()) < smallest:
            break
        rows, columns, done = 1 / row_sums, share / column_sums, done + 1
    if columns is None:
        return plan.new_zeros(()), 0
    return rows.log()[:, None] + columns.log()[None], done


def assign_unique_codes(latents: np.ndarray, codebooks: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
    """Give every item an index of its own, as near as there is room.

    From the first level to the last, the items under one prefix go to codes, of which each holds K^(levels below) items at
    most, one at the last level. Who has room at the code it asks for stays. Where a code is asked for by too many, the
    nearest ones stay and the others move to the nearest codes with room, level by level; at the last level all items of a
    prefix with a conflict are assigned jointly, at the least sum of squared distances (an assignment problem).

    Args:
        latents: (J, d); codebooks: (H, K, d). Level h quantizes what the levels before it left.
        codes: (J, H) the codes that are asked for (default: the nearest ones).

    Returns:
        (J, H) int32, no two rows alike for any input.

    Raises:
        InputError: more items than indices, NaN, or `codes` of another shape or outside the codebooks.
    """
    latents, codebooks = np.asarray(latents, dtype=np.float64), np.asarray(codebooks, dtype=np.float64)
    levels, size, _ = codebooks.shape
    _check_latents(latents, len(latents), size, levels)
    asked = nearest_codes(latents, codebooks) if codes is None else np.asarray(codes)
    if asked.shape != (len(latents), levels) or ((asked < 0) | (asked >= size)).any():
        raise InputError(
            f"codes have shape {asked.shape}; they must be ({len(latents)}, {levels}), one row an item, all in [0, {size})"
        )
    result = asked.astype(np.int32)
    taken: dict[tuple[int, ...], np.ndarray] = {(): np.arange(len(latents))}
    for level in range(levels):
        room = size ** (levels - level - 1)
        below: dict[tuple[int, ...], np.ndarray] = {}
        for prefix, items in taken.items():
            wanted = result[items, level].copy()
            result[items, level] = codes_with_room(latents, codebooks, result, items, level, room)
            moved = items[result[items, level] != wanted]
            if len(moved) and level + 1 < levels:  # what they asked for further down was meant for another prefix
                rest = residuals(latents[moved], codebooks, result[moved], level + 1)
                result[moved, level + 1 :] = nearest_codes(rest, codebooks[level + 1 :])
            order = items[np.argsort(result[items, level], kind="stable")]
            groups = np.split(order, np.flatnonzero(np.diff(result[order, level])) + 1)
            below |= {(*prefix, int(result[group[0], level])): group for group in groups}
        taken = below
    return result


def nearest_codes(latents: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """(J, H) plain residual quantization: c_h the nearest vector to r_h, r_{h+1} = r_h - v_{c_h}."""
    rest = np.array(latents, dtype=np.float64)
    codes = np.zeros((len(rest), len(codebooks)), dtype=np.int32)
    for level, vectors in enumerate(np.asarray(codebooks, dtype=np.float64)):
        codes[:, level] = squared_distances_to(rest, vectors).argmin(1)
        rest -= vectors[codes[:, level]]
    return codes


def residuals(latents: np.ndarray, codebooks: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
    """(n, d) what the levels before `level` left of latents (n, d) with these codes."""
    rest = np.array(latents, dtype=np.float64)
    for before in range(level):
        rest -= codebooks[before, codes[:, before]]
    return rest


def codes_with_room(
    latents: np.ndarray, codebooks: np.ndarray, codes: np.ndarray, items: np.ndarray, level: int, room: int
) -> np.ndarray:
    """Codes at one level of the items under one prefix, none with more than `room` items.

    Where a code is asked for by too many, the nearest ones stay and the others go to the nearest codes with room; with room
    for one item each, all are assigned jointly.

    Args:
        latents: (J, d); codebooks: (H, K, d); codes: (J, H) those that are asked for; items: (n,) rows of both.

    Returns:
        (n,) int32.
    """
    wanted = codes[items, level]
    if len(items) == 1 or np.bincount(wanted).max() <= room:
        return wanted
    distances = squared_distances_to(residuals(latents[items], codebooks, codes[items], level), codebooks[level])
    if room == 1:
        return np.asarray(linear_sum_assignment(distances)[1], dtype=np.int32)
    given = np.full(len(items), -1, dtype=np.int32)
    left = np.full(codebooks.shape[1], room)
    own = distances[np.arange(len(items)), wanted]
    for code in np.unique(wanted):
        askers = np.flatnonzero(wanted == code)
        stay = askers[np.argsort(own[askers], kind="stable")][:room]
        given[stay] = code
        left[code] -= len(stay)
    for item in np.flatnonzero(given < 0):
        code = int(np.where(left > 0, distances[item], np.inf).argmin())
        given[item] = code
        left[code] -= 1
    return given


def nearest_free_codes(latents: np.ndarray, codebooks: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Indices for new items, nearest first, none of which is taken.

    An item goes from the first level to the last to the nearest code under which there is still room, in the order given.

    Args:
        latents: (M, d) of the new items; codebooks: (H, K, d); taken: (J, H) indices of the items that are there.

    Returns:
        (M, H) int32, all different from one another and from `taken`.

    Raises:
        InputError: more items than free indices, or NaN.
    """
    latents, codebooks = np.asarray(latents, dtype=np.float64), np.asarray(codebooks, dtype=np.float64)
    levels, size, _ = codebooks.shape
    _check_latents(latents, len(latents) + len(taken), size, levels)
    used: dict[tuple[int, ...], int] = {}
    for row in np.asarray(taken).tolist():
        _count(used, row)
    result = np.zeros((len(latents), levels), dtype=np.int32)
    for item, latent in enumerate(latents):
        rest = latent.copy()
        prefix: list[int] = []
        for level in range(levels):
            room = size ** (levels - level - 1)
            order = squared_distances_to(rest[None], codebooks[level])[0].argsort(kind="stable")
            code = next(int(code) for code in order if used.get((*prefix, int(code)), 0) < room)
            prefix.append(code)
            rest -= codebooks[level, code]
        _count(used, prefix)
        result[item] = prefix
    return result


def _count(used: dict[tuple[int, ...], int], row: list[int]) -> None:
    for length in range(1, len(row) + 1):
        prefix = tuple(row[:length])
        used[prefix] = used.get(prefix, 0) + 1


def _check_latents(latents: np.ndarray, items: int, size: int, levels: int) -> None:
    if not np.isfinite(latents).all():
        bad = np.flatnonzero(~np.isfinite(latents).all(1))
        raise InputError(f"{len(bad)} items have NaN or infinite embeddings, first {bad[:5].tolist()}; make them anew")
    if items > size**levels:
        raise InputError(
            f"{items} items need more indices than {levels} levels of {size} codes give ({size**levels}); "
            "raise num_levels or codebook_size"
        )


__all__ = [
    "SemanticIds",
    "assign_unique_codes",
    "codes_of",
    "codes_with_room",
    "semantic_id_token",
    "nearest_codes",
    "nearest_free_codes",
    "row_numbers",
    "shared_codes",
    "sinkhorn",
    "squared_distances_to",
]
