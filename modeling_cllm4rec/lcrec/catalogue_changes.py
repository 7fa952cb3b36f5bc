"""Add and remove items of an LC-Rec model without training.

An item is a row of the catalogue with its codes, so the language model does not change: a new item gets a semantic ID that is
free, and the ID of a removed item becomes free. An item head gets a row for the new item from its text.

This file is copied into every saved folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ..core.catalogue import Catalogue, extended_catalogue
from ..core.errors import InputError, MissingFileError, MissingPackageError
from .semantic_ids import nearest_free_codes

CODES = "codes"
"""Column of the catalogue that holds the codes of each item."""
ENCODES_TEXTS = "modeling_cllm4rec.corpora.item_embeddings"
"""The module that encodes item texts; saved folders are self-contained and do not include it."""


def add_items(
    model: Any,
    items: pa.Table | pd.DataFrame | Sequence[Mapping[str, Any]],
    embeddings: np.ndarray | None = None,
    *,
    encoder: str | None = None,
    progress: bool = False,
) -> None:
    """Add new items to the catalogue without training: each gets the nearest semantic ID that is free.

    The semantic IDs of the items before never change; `config.index_history` names the version before.

    Args:
        items: `item_id` and text columns.
        embeddings: (new, input_dim) of their texts, made as `config.item_encoder` says; None makes them.
        encoder: place of the encoder of texts, where `config.item_encoder` names one by its folder's name only.
        progress: show a bar while texts are encoded.

    Raises:
        InputError: no `item_id`, ids of another type, an item that the catalogue has already, no indexer, embeddings of
            another width or with NaN, a model that does not say how texts become embeddings, items without the texts that
            are encoded, or more items than there are semantic IDs.
        MissingFileError: the encoder is not there.
        MissingPackageError: the package that encodes texts is not installed (its name is given).

    Example:
        >>> model.add_items([{"item_id": "B9", "title": "Rose soap", "description": "For hands."}])  # doctest: +SKIP
    """
    indexer, table = model.require_indexer(), model.require_catalogue().table
    together, new = extended_catalogue(Catalogue(table.drop_columns([CODES])), items)
    if not new.num_rows:
        return
    vectors = text_embeddings(model, new, encoder, progress) if embeddings is None else np.asarray(embeddings)
    width = indexer.config.input_dim
    if vectors.shape != (new.num_rows, width):
        made = "; encoder is not that of the index" if embeddings is None else ""
        raise InputError(f"embeddings have shape {vectors.shape}; {new.num_rows} items need ({new.num_rows}, {width}){made}")
    if not np.isfinite(vectors).all():
        raise InputError("embeddings hold NaN or infinite values; compute them again")
    codes = model.semantic_ids.codes
    free = nearest_free_codes(indexer.latents(vectors), indexer.codebook_array, codes)
    if model.item_head is not None:
        model.item_head = model.item_head.with_items(np.arange(len(codes)), vectors)
    config = model.config
    place = Path(model.name_or_path).name if model.name_or_path else None
    before = {"folder": place, "num_items": len(codes), "codes_fingerprint": config.codes_fingerprint}
    config.index_history = [*config.index_history, before]
    model.set_catalogue(with_codes(together, np.concatenate([codes, free])))


def take_item_rows(model: Any, rows: np.ndarray) -> None:
    """Keep these items and their codes, in this order: (kept,) item indices, each once."""
    if model.item_head is not None:
        model.item_head = model.item_head.with_items(rows)
    model.set_catalogue(Catalogue(model.require_catalogue().table.take(pa.array(rows))))


def with_codes(catalogue: Catalogue, codes: np.ndarray) -> Catalogue:
    """Return a catalogue with the codes (J, H) of its items in a column, in place of those that it may have.

    Example:
        >>> with_codes(Catalogue(["B1", "B2"]), np.array([[0, 1], [2, 3]])).table.to_pylist()
        [{'item_id': 'B1', 'codes': [0, 1]}, {'item_id': 'B2', 'codes': [2, 3]}]
    """
    table = catalogue.table
    if CODES in table.column_names:
        table = table.drop_columns([CODES])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1), pa.int32()), codes.shape[1])
    return Catalogue(table.append_column(CODES, lists.cast(pa.list_(pa.int32()))))


def text_embeddings(model: Any, items: pa.Table, encoder: str | None, progress: bool) -> np.ndarray:
    """Return (new, d) vectors of item texts, made as those of the model's items; see `add_items` for arguments and errors."""
    settings = dict(model.config.item_encoder or {})
    if not settings:
        raise InputError(
            "this model does not say how texts become embeddings (config.item_encoder is empty); give embeddings=, or index "
            "and align it again"
        )
    settings["encoder"] = encoder or settings["encoder"]
    try:  # no import statement: transformers would ask for the package wherever a saved folder is loaded
        embed_items = importlib.import_module(ENCODES_TEXTS).embed_items
    except ImportError as error:
        raise MissingPackageError(
            "texts are encoded by the package modeling_cllm4rec, which is not installed: pip install . in its repository, "
            f"or give embeddings= made by {settings}"
        ) from error
    try:
        return np.asarray(embed_items(items, **settings, device=str(model.device), progress=progress))
    except OSError as error:
        raise MissingFileError(
            f"the encoder of item texts, {settings['encoder']!r}, could not be read ({error}); give encoder= its folder or "
            "its name on the Hub, or embeddings="
        ) from error


__all__ = ["CODES", "add_items", "take_item_rows", "text_embeddings", "with_codes"]
