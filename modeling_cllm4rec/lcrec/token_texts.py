"""Token ids of many texts: one flat array, encoded once and cached in a file."""

from __future__ import annotations

import hashlib
import json
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

    def words(self, text: int) -> npt.NDArray[np.int32]:
        """Return the token ids of a text for an instruction, without the end token."""
        return self.ids[self.indptr[text] : self.indptr[text + 1] - self.ends[text]]

    def response(self, text: int) -> npt.NDArray[np.int32]:
        """Return the token ids of a text for a response: with the end token, unless the text was cut."""
        return self.ids[self.indptr[text] : self.indptr[text + 1]]


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
