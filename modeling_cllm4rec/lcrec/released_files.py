"""Read the released semantic IDs of LC-Rec."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import numpy as np

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.bad_rows import first_of
from modeling_cllm4rec.corpora.released_files import read_json_object
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds

SEMANTIC_ID_TOKEN = re.compile(r"<([a-z])_(\d+)>")


def read_released_semantic_ids(path: str | Path, items: IdMap, num_levels: int, codebook_size: int) -> SemanticIds:
    """Read the semantic IDs that LC-Rec released for a data set.

    Args:
        path: NAME.index.json, `{item: ["<a_12>", "<b_3>", ...]}`, or the same gzipped.
        items: items of the data folder; other items of the file are ignored.
        num_levels: codes per item.
        codebook_size: codes per level.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file has another form, an item has no semantic ID, another number of levels or a code outside the
            codebook, or items share a semantic ID.
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
    return SemanticIds(codes, codebook_size)


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


__all__ = ["read_released_semantic_ids"]
