"""Token ids of many texts: one flat array, encoded once and cached in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.core.language_model import end_tokens
from modeling_cllm4rec.corpora.atomic_files import atomic_file

BLOCK = 10_000
"""Texts encoded at a time."""


class TokenTexts(NamedTuple):
    """Token ids of texts; text t has `ids[indptr[t]:indptr[t + 1]]`, its end token included.

    Attributes:
        ids: (all tokens,) int32.
        indptr: (texts + 1,) int64.
        ends: (texts,) 1 if the end token closes a text, 0 if the text was cut.
    """

    ids: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text without the end token: (texts,)."""
        return np.diff(self.indptr) - self.ends


class TextGroups(NamedTuple):
    """Texts of which one is drawn, for each of some owners.

    Attributes:
        first, size: (owners,) number of the first text, and how many follow one another; longest: number of the longest one.
    """

    first: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    longest: npt.NDArray[np.int64]

    def take(self, owners: npt.NDArray[np.int64]) -> TextGroups:
        """Return the groups of some owners."""
        return TextGroups(*(column[owners] for column in self))

    def draw(self, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return the number of a text of each owner, by random numbers in [0, 1)."""
        return self.first + (shares * self.size).astype(np.int64)


def encode_texts(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_text_tokens: int | None = None,
    cache_folder: str | Path | None = None,
) -> TokenTexts:
    """Encode texts; literal special tokens and tokens of semantic IDs in them stay text.

    Args:
        max_text_tokens: cut texts after this number of tokens; None cuts nothing.
        cache_folder: folder of the cache, with a file for each set of texts, tokenizer and settings; None writes none.
    """
    end = end_tokens(tokenizer)
    if cache_folder is None:
        return _encode(texts, tokenizer, max_text_tokens, end)
    digest = hashlib.sha256(json.dumps([max_text_tokens, end]).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    path = Path(cache_folder) / f"{digest.hexdigest()[:32]}.parquet"
    if path.exists():
        table = pq.read_table(path)
        lists = table["ids"].combine_chunks()
        return TokenTexts(lists.values.to_numpy(), lists.offsets.to_numpy(), table["ends"].to_numpy())
    encoded = _encode(texts, tokenizer, max_text_tokens, end)
    lists = pa.LargeListArray.from_arrays(pa.array(encoded.indptr), pa.array(encoded.ids))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        pq.write_table(pa.table({"ids": lists, "ends": encoded.ends}), temporary)
    return encoded


def text_groups(texts: Sequence[Sequence[str]], lengths: npt.NDArray[np.int64]) -> TextGroups:
    """Return the groups of texts that follow one another, with these lengths in tokens; of an empty group `longest` is 0.

    Example:
        >>> [column.tolist() for column in text_groups([["a", "bb"], [], ["c"]], np.array([1, 2, 1]))]
        [[0, 2, 2], [2, 0, 1], [1, 0, 2]]
    """
    size = np.array([len(group) for group in texts], dtype=np.int64)
    first, longest = np.cumsum(size) - size, np.zeros(len(size), dtype=np.int64)
    by_length = np.lexsort((lengths, np.repeat(np.arange(len(size)), size)))  # group after group, the longest text last
    longest[size > 0] = by_length[(first + size - 1)[size > 0]]
    return TextGroups(first, size, longest)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase, limit: int | None, end: list[int]) -> TokenTexts:
    rows: list[np.ndarray] = []
    ends = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        encoded = tokenizer(block, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        for number, words in enumerate(encoded, start):
            whole = limit is None or len(words) <= limit
            ends[number] = len(end) if whole else 0
            rows.append(np.array([*words[:limit], *(end if whole else [])], dtype=np.int32))
    indptr = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    return TokenTexts(np.concatenate(rows) if rows else np.zeros(0, np.int32), indptr, ends)
