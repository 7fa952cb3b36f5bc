"""Add and remove items and users of a CLLM4Rec model without training.

ID tokens follow from the numbers of users and items (token of item j: `id_offset` + I + j). New items come last and move no
token. A new user moves the token of every item by one, and a removed item moves those of the items behind it. Rows, catalogue,
stored histories and `config` change together, so the model itself needs nothing more. Token ids kept elsewhere must be computed
again, and so must the tokenizer: `CLLM4RecTokenizer.from_pretrained(folder, num_users=config.num_users,
num_items=config.num_items)`.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from ..core.catalogue import Catalogue, KnownUsers, extended_catalogue, is_text_type, new_ids, text_column
from ..core.errors import InputError

Start = Literal["regression", "words"]
"""How rows of new items start: predicted from word rows by regression, or the mean of their words."""
ITEM_WORDS = ("title", "brand", "categories")
"""Text columns whose words start an item's rows."""
_SAYS = re.compile(r"[^\W_]")
RIDGES = np.logspace(-4, 4, 33)
"""Ridge penalties to choose from, as multiples of the mean variance of a feature."""


@torch.no_grad()
def add_items(
    model: Any,
    items: pa.Table | pd.DataFrame | Sequence[Mapping[str, Any]],
    *,
    start: Start = "regression",
    prediction_scale: float = 0.5,
    columns: Sequence[str] = ITEM_WORDS,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Take new items into the catalogue by their texts alone; rows of old items and users stay the same to the bit.

    Args:
        items: `item_id` and text columns; lists of strings count as one text.
        start: initial values of an item's rows on both sides. `"words"`: the mean row of its words, as rows start before
            training. `"regression"`: the prediction of a ridge regression from the mean word rows of each column to trained
            rows, fitted on the items that the model has, because training moves rows far from those of words.
        prediction_scale: of a regression, from 0 to 1. Predicted rows are nearer to the mean row than trained ones,
            so new items seldom reach the top of a list (0). Stretched to the same distance (1), they are there as often as
            old ones, or more often, on less evidence. The distance is multiplied by the ratio of the two distances to the
            power of `prediction_scale`.
        columns: the text columns that count, where the items have them.
        tokenizer: the backbone's or the model's own; None reads that of the folder from which the model came.

    Raises:
        InputError: no `item_id`, an id that is already in the catalogue or given twice, an item without any text, a
            column that holds no texts, a catalogue without texts to fit the regression on.

    Example:
        >>> model.add_items([{"item_id": "B9", "title": "Rose hand cream, 50 ml"}])  # doctest: +SKIP
    """
    catalogue = _required(model.catalogue, "catalogue", "items")
    if start not in ("regression", "words"):
        raise InputError(f"start is {start!r}; allowed are 'regression' and 'words'")
    if not 0 <= prediction_scale <= 1:
        raise InputError(f"prediction_scale is {prediction_scale}; it must lie between 0 and 1")
    together, new = extended_catalogue(catalogue, items)
    if not new.num_rows:
        return
    used = [name for name in columns if name in new.column_names]
    if start == "regression":
        used = [name for name in used if name in catalogue.table.column_names]
        if not used:
            raise InputError(
                f"start is 'regression', but the catalogue has none of the texts {list(columns)} that the new items have: "
                "there is nothing to fit it on; choose start='words'"
            )
    _check_texts(new, used)
    words = tokenizer if tokenizer is not None else _folder_tokenizer(model)
    word_rows = model.get_input_embeddings().weight.detach().float().cpu().numpy()
    both = [model.tables(side)[1] for side in ("collaborative", "content")]
    if start == "words":
        new_rows = [mean_word_rows(new, words, word_rows, used)] * 2
    else:
        features = [[mean_word_rows(one, words, word_rows, [name]) for name in used] for one in (catalogue.table, new)]
        trained = [table.weight.detach().float().cpu().numpy() for table in both]
        new_rows = [regress_rows(np.hstack(features[0]), rows, np.hstack(features[1]), prediction_scale) for rows in trained]
    for table, rows in zip(both, new_rows, strict=True):
        append_rows(table, torch.from_numpy(rows))
    model.set_catalogue(together)


@torch.no_grad()
def add_users(model: Any, histories: Mapping[Any, Iterable[Any]]) -> None:
    """Give new users an ID token by their histories; rows of old users and of all items stay the same to the bit.

    A new user's rows are the mean rows of the users that the model has, because nothing but the history is known yet. The
    prompt contains the history, so rows started from its items would count it twice.

    Args:
        histories: external user id -> external item ids, oldest first. Kept with the users where the model keeps
            histories at all.

    Raises:
        InputError: a user that the model has already, unknown items, an empty history.

    Example:
        >>> model.add_users({"zoe": ["B1", "B7"]})  # doctest: +SKIP
    """
    users = _required(model.users, "users", "users")
    catalogue = _required(model.catalogue, "catalogue", "items")
    if not isinstance(histories, Mapping):
        raise InputError(f"histories is a {type(histories).__name__}; give a dict of user ids and their lists of item ids")
    if not histories:
        return
    new = new_ids(list(histories), users.ids)
    rows = [catalogue.ids.indices_of(list(items)) for items in histories.values()]
    empty = [user for user, row in zip(histories, rows, strict=True) if not len(row)]
    if empty:
        raise InputError(f"the histories of {len(empty)} users are empty: {empty[:5]!r}; give each at least one item")
    ids = pa.concat_arrays([users.ids.array, new.array.cast(users.ids.array.type)])
    indptr = items = None
    if users.indptr is not None and users.items is not None:
        indptr = np.concatenate([users.indptr, users.indptr[-1] + np.cumsum([len(row) for row in rows])])
        items = np.concatenate([users.items, *rows]).astype(np.int32)
    add_user_rows(model, len(new))
    take_users(model, np.arange(len(ids)), KnownUsers(ids, indptr, items))


@torch.no_grad()
def add_user_rows(model: Any, count: int) -> None:
    """Append mean rows for `count` new users; `take_users` then sets their ids."""
    for side in ("collaborative", "content"):
        table = model.tables(side)[0]
        append_rows(table, table.weight.float().mean(0, keepdim=True).expand(count, -1))


@torch.no_grad()
def take_item_rows(model: Any, rows: np.ndarray) -> None:
    """Keep these items in the tables and the catalogue, in this order: (kept,) item indices, each once."""
    catalogue = _required(model.catalogue, "catalogue", "items")
    for side in ("collaborative", "content"):
        _replace_weight(model.tables(side)[1], model.tables(side)[1].weight[torch.from_numpy(rows)])
    model.set_catalogue(Catalogue(catalogue.table.take(pa.array(rows))))


@torch.no_grad()
def take_users(model: Any, rows: np.ndarray, users: KnownUsers) -> None:
    """Keep these users, in this order, as `users`: (kept,) user indices, each once."""
    for side in ("collaborative", "content"):
        _replace_weight(model.tables(side)[0], model.tables(side)[0].weight[torch.from_numpy(rows)])
    model.users = users
    model.config.num_users = len(users)


def _folder_tokenizer(model: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the folder from which the model was loaded, without ID tokens, which are not needed here."""
    file = None
    place = model.config.name_or_path
    if place:
        file = cached_file(place, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise InputError(f"the model came from {place or 'no folder'!r}, where there is no tokenizer.json; pass tokenizer=")
    return PreTrainedTokenizerFast(tokenizer_file=file)


def mean_word_rows(
    items: pa.Table, tokenizer: PreTrainedTokenizerBase, word_rows: np.ndarray, columns: Iterable[str]
) -> np.ndarray:
    """Return the mean word row of each item's texts.

    Args:
        items: text columns; word_rows: (N, K) word embeddings of the backbone.
        columns: those that count, where the table has them.

    Returns:
        (items, K) float32; NaN rows for items without any text.
    """
    parts = [text_column(items, name) for name in columns if name in items.column_names]
    texts = [" ".join(words) for words in zip(*parts, strict=True)] if parts else [""] * items.num_rows
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []
    rows = np.full((items.num_rows, word_rows.shape[1]), np.nan, dtype=np.float32)
    for item, ids in enumerate(encoded):
        if ids:
            rows[item] = word_rows[np.asarray(ids)].mean(axis=0)
    return rows


def regress_rows(features: np.ndarray, targets: np.ndarray, asked: np.ndarray, prediction_scale: float = 0.0) -> np.ndarray:
    """Return the predictions of a ridge regression with intercept, fitted in closed form.

    The penalty is that of the grid with the least generalized cross-validation error. Time grows with F^3.

    Args:
        features: (J, F); an entry that is not known (NaN) counts as the mean of its column, a row of them is left out.
        targets: (J, K).
        asked: (new, F).
        prediction_scale: the predictions' distance from the mean target is multiplied by r ** prediction_scale, where r is
            the distance of targets from it over that of fitted ones (root mean squares).

    Returns:
        (new, K) float32.

    Raises:
        InputError: no row of features is known.

    Example:
        >>> features = np.arange(8.0)[:, None]
        >>> regress_rows(features, 3 * features + 1, np.array([[10.0]])).round(1).tolist()
        [[31.0]]
    """
    known = ~np.isnan(features).all(axis=1)
    if not known.any():
        raise InputError("no item that the model has has a text: there is nothing to fit a regression on; choose start='words'")
    x, z = features[known].astype(np.float64), targets[known].astype(np.float64)
    x_mean, z_mean = np.ma.masked_invalid(x).mean(0).filled(0.0), z.mean(0)
    x, z = np.nan_to_num(x - x_mean), z - z_mean
    values, vectors = np.linalg.eigh(x.T @ x)  # (F,), (F, F)
    values = values.clip(min=0)
    answers = vectors.T @ (x.T @ z)  # (F, K)
    energy, all_energy = np.square(answers).sum(1), np.square(z).sum()
    count, best = len(x), (np.inf, np.inf)  # features without variance predict the mean
    for ridge in RIDGES * values.mean() if values.any() else ():
        shrunk = values / (values + ridge)
        left = all_energy - (energy * (values + 2 * ridge) / np.square(values + ridge)).sum()
        if count - 1 > shrunk.sum():
            best = min(best, (left / (count - 1 - shrunk.sum()) ** 2, ridge))
    weights = vectors @ (answers / (values + best[1])[:, None])
    fitted = (energy * values / np.square(values + best[1])).sum() if best[1] < np.inf else 0.0
    stretch = (all_energy / fitted) ** (prediction_scale / 2) if fitted > 0 else 1.0
    return (stretch * (np.nan_to_num(asked - x_mean) @ weights) + z_mean).astype(np.float32)


@torch.no_grad()
def append_rows(table: nn.Embedding, rows: torch.Tensor) -> None:
    """Put rows (new, K) behind those of a table, in the table's type and place."""
    if rows.shape[1] != table.embedding_dim or not rows.isfinite().all():
        raise InputError(
            f"new rows have shape {tuple(rows.shape)} and {int((~rows.isfinite()).sum())} NaN or infinite entries; "
            f"they need (new, {table.embedding_dim}) finite ones"
        )
    _replace_weight(table, torch.cat([table.weight, rows.to(table.weight)]))


def _replace_weight(table: nn.Embedding, weight: torch.Tensor) -> None:
    table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(weight)


def _check_texts(items: pa.Table, columns: Sequence[str]) -> None:
    """Raise InputError for items without text, or text columns that hold no texts."""
    for name in columns:
        if not is_text_type(items[name].type):
            kind = items[name].type
            raise InputError(f"items: column {name!r} has type {kind}; a text column holds strings or lists of strings")
    texts = zip(*(text_column(items, name) for name in columns), strict=True)
    silent = [row for row, parts in enumerate(texts) if not any(map(_SAYS.search, parts))] if columns else range(items.num_rows)
    if silent:
        named = items["item_id"].take(pa.array(silent[:5])).to_pylist()
        raise InputError(
            f"{len(silent)} of {items.num_rows} new items have no text in any of {list(columns)}: {named!r}; give them one: "
            "without interactions and texts there is nothing to know about them"
        )


def _required(part: Any, name: str, what: str) -> Any:
    if part is None:
        raise InputError(f"this model has no {name}: its {what} have no external ids, so none can be added or removed")
    return part


__all__ = [
    "ITEM_WORDS",
    "Start",
    "add_items",
    "add_user_rows",
    "add_users",
    "append_rows",
    "mean_word_rows",
    "regress_rows",
    "take_item_rows",
    "take_users",
]
