"""Read the released semantic IDs of LC-Rec."""

from __future__ import annotations

import itertools
import logging
import re
import string
from pathlib import Path
from typing import Any

import numpy as np

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.bad_rows import first_of
from modeling_cllm4rec.corpora.released_files import read_json_object
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds, shared_codes

logger = logging.getLogger(__name__)

SEMANTIC_ID_TOKEN = re.compile(r"<([a-z])_(\d+)>")


def read_released_semantic_ids(
    path: str | Path, items: IdMap, num_levels: int, codebook_size: int, repair: bool = False
) -> SemanticIds:
    """Read the semantic IDs that LC-Rec released for a data set.

    Args:
        path: NAME.index.json, `{item: ["<a_12>", "<b_3>", ...]}`, or the same gzipped.
        items: items of the data folder; other items of the file are ignored.
        num_levels: codes per item.
        codebook_size: codes per level.
        repair: where items share a semantic ID, as in the released files, let the first item keep it and give the others free
            ones by `free_codes`, instead of an error.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file has another form, an item has no semantic ID, another number of levels or a code outside the
            codebook, or items share a semantic ID and `repair` is not set.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"codes: there is no file {path}")
    tokens = read_json_object(path)
    ids = [str(item) for item in items.array.to_pylist()]
    missing = [item for item in ids if item not in tokens]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(ids)} items have no semantic ID: {first_of(missing)}; the file belongs to another "
            "catalogue"
        )
    codes = np.array([_codes(path, item, tokens[item], num_levels) for item in ids])
    shared = shared_codes(codes)
    if len(shared) and not repair:
        named = first_of([ids[item] for item in shared])
        raise InputError(
            f"{path}: {len(shared)} of {len(ids)} items share their semantic ID with another: {named}; set repair to let one of "
            "them keep it and give the others a free last code"
        )
    if len(shared) and (codes < codebook_size).all():
        codes = free_codes(codes, codebook_size)
        logger.warning("%s: %d items share their semantic ID with another; all but the first have a new one", path, len(shared))
    return SemanticIds(codes, codebook_size)


def free_codes(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Return (J, H) codes without duplicates: of items with the same codes, all but the first get free ones.

    An item keeps as many of its first codes as it can, and gets the lowest free codes for the rest: mostly a free last code.

    Raises:
        InputError: more items than semantic IDs.

    Example:
        >>> free_codes(np.array([[0, 1], [0, 1], [0, 0], [0, 1]]), codebook_size=2).tolist()
        [[0, 1], [1, 0], [0, 0], [1, 1]]
    """
    repaired, levels = np.array(codes), codes.shape[1]
    if len(codes) > codebook_size**levels:
        raise InputError(
            f"{len(codes)} items are more than the {codebook_size**levels} semantic IDs of {levels} levels of {codebook_size} "
            "codes; raise num_levels or codebook_size"
        )
    rows = [tuple(row) for row in codes.tolist()]
    used = set(rows)
    seen: set[tuple[int, ...]] = set()
    for item, row in enumerate(rows):
        if row in seen:
            repaired[item] = free = next(
                (*row[:kept], *rest)
                for kept in range(levels - 1, -1, -1)
                for rest in itertools.product(range(codebook_size), repeat=levels - kept)
                if (*row[:kept], *rest) not in used
            )
            used.add(free)
        seen.add(row)
    return repaired


def _codes(path: Path, item: str, tokens: Any, num_levels: int) -> list[int]:
    """Return the codes of one item's tokens, level by level."""
    matches = [SEMANTIC_ID_TOKEN.fullmatch(str(token)) for token in tokens] if isinstance(tokens, list) else [None]
    letters = [match[1] if match else "" for match in matches]
    if letters != list(string.ascii_lowercase[:num_levels]):
        raise InputError(
            f"{path}: item {item!r} has the semantic ID {tokens!r}; with num_levels {num_levels} it must be a list of "
            f"{', '.join(f'<{letter}_NUMBER>' for letter in string.ascii_lowercase[:num_levels])}"
        )
    return [int(match[2]) for match in matches if match]


__all__ = ["free_codes", "read_released_semantic_ids"]
