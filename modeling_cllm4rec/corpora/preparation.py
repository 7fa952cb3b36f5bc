"""Prepare a data folder from tables of interactions, items and users."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import FORMAT, RecommendationData, check_output, is_written
from modeling_cllm4rec.corpora.interactions import check_interactions, check_texts, clean_interactions, first_of
from modeling_cllm4rec.corpora.splits import SPLITS, SplitCodes, assign_splits, split_names

ON_MISSING = ("error", "keep")
"""Treatment of items or users that have interactions but no row of texts."""
STEPS = ("checking", "cleaning", "indexing", "splitting", "writing")
"""The steps of `prepare_tables`, in order."""

logger = logging.getLogger(__name__)


def prepare_tables(
    interactions: pa.Table,
    items: pa.Table | None,
    users: pa.Table | None,
    output: str | Path,
    *,
    split: str = "random",
    seed: int = 42,
    temporal_cuts: tuple[float, float] = (0.8, 0.9),
    min_rating: float | None = None,
    k_core: int = 0,
    keep_all_items: bool = False,
    on_missing_item: str = "error",
    on_missing_user: str = "error",
    overwrite: bool = False,
    sources: Sequence[dict[str, str]] = (),
    data_license: str | None = None,
    on_step: Callable[[str], None] | None = None,
) -> RecommendationData:
    """Clean, index and split interactions, and write the data folder.

    Users are numbered in order of first appearance in the interactions. Items are numbered in the order of `items`, or, without
    it, in order of first appearance. A review is kept only if its pair is in train.

    Args:
        interactions: `user_id`, `item_id` and any of `rating`, `timestamp`, `review`, `split`; other columns are
            dropped. See `interactions.check_interactions`.
        items: `item_id` and text columns, or `None`. See `interactions.check_texts`.
        users: `user_id` and text columns, or `None`. Users without interactions are dropped.
        output: the folder to write.
        split, seed, temporal_cuts: see `splits.assign_splits`.
        min_rating, k_core: see `interactions.clean_interactions`.
        keep_all_items: whether to keep items of `items` without an interaction.
        on_missing_item: treatment of items that have interactions but are not in `items`: `error`, or `keep` them after the
            others, with null texts.
        on_missing_user: the same for users.
        overwrite: whether to replace an existing data folder, once the new one is complete.
        sources: `{"table", "file", "sha256"}` of the files of the tables, for the record.
        data_license: name of the licence of the data, for the cards of models trained on it.
        on_step: called with each of `STEPS` when it begins.

    Returns:
        The data, as `RecommendationData.load(output)` returns it.

    Raises:
        InputError: an argument or a table is not valid; see the functions named above.
        ExistingFileError: `output` holds something that must not be replaced.
        FileWriteError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> pairs = pa.table({"user_id": ["ann"] * 3 + ["bob"] * 3, "item_id": [10, 20, 30, 10, 20, 40]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = prepare_tables(pairs, None, None, Path(folder, "data"), split="leave-one-out")
        >>> data.num_users, data.num_items, data.histories("train").items.tolist()
        (2, 4, [0, 0])
    """
    begin = on_step or (lambda step: None)
    begin("checking")
    check_output(Path(output), overwrite)
    for name, value in (("on_missing_item", on_missing_item), ("on_missing_user", on_missing_user)):
        if value not in ON_MISSING:
            raise InputError(f"{name} must be one of {', '.join(ON_MISSING)}, got {value!r}")
    if keep_all_items and items is None:
        raise InputError("keep_all_items needs a table of items")
    table = check_interactions(interactions)
    if split != "given" and "split" in table.column_names:
        table = table.drop_columns(["split"])
    table, reviews = _set_reviews_apart(table)
    del interactions  # so that the texts are in memory once, unless the caller keeps them
    if items is not None:
        items = check_texts(items, "item_id")
    if users is not None:
        users = check_texts(users, "user_id")
    begin("cleaning")
    table, filters = clean_interactions(table, min_rating, k_core)
    for step in filters:
        logger.info("%s %s: removed %d rows", step["filter"], step["value"], step["removed"])
    begin("indexing")
    item_table = _item_table(pc.unique(table["item_id"]), items, on_missing_item, keep_all_items)
    user_table = _user_table(pc.unique(table["user_id"]), users, on_missing_user)
    begin("splitting")
    codes, split_protocol = assign_splits(table, split, seed=seed, temporal_cuts=temporal_cuts)
    indexed = _index_interactions(table, codes, user_table, item_table)
    statistics = count_statistics(indexed, user_table.num_rows, item_table.num_rows)
    indexed, review_counts = _add_reviews(indexed, reviews)
    statistics |= review_counts
    protocol = split_protocol | {"filters": filters}
    info = {
        "format": FORMAT,
        "statistics": statistics,
        "protocol": protocol | {"line": protocol_line(protocol)},
        "sources": list(sources),
        **({} if data_license is None else {"license": data_license}),
    }
    begin("writing")
    return RecommendationData(user_table, item_table, indexed, info, Path(output)).save(output, overwrite)


def protocol_line(protocol: dict[str, Any]) -> str:
    """Describe in one line how the data was filtered and split.

    >>> protocol_line({"split": "random", "seed": 1, "filters": [{"filter": "k_core", "value": 5, "removed": 0}]})
    'random split 80/10/10 per user, seed 1; 5-core'
    """
    cuts = " and ".join(f"{cut:g}" for cut in protocol.get("temporal_cuts", ()))
    words = {
        "random": f"random split 80/10/10 per user, seed {protocol['seed']}",
        "leave-one-out": "leave-one-out split (last is test, last but one validation)",
        "temporal": f"temporal split at the shares {cuts} of all interactions",
        "given": "given split",
    }
    filters = {
        "duplicates": "{value} of repeated pairs kept",
        "min_rating": "rating >= {value:g}",
        "k_core": "{value}-core",
    }
    return "; ".join([words[protocol["split"]], *(filters[step["filter"]].format(**step) for step in protocol["filters"])])


def _item_table(ids: pa.Array, items: pa.Table | None, on_missing: str, keep_all: bool) -> pa.Table:
    """Return the items in the order of their table or of `ids`; items that only `ids` has come last."""
    if items is None:
        return pa.table({"item_id": ids})
    known = _same_type(items, ids, "item_id")
    missing = _missing(ids, known, on_missing, "item")
    rows = np.arange(len(known)) if keep_all else np.flatnonzero(pc.is_in(known["item_id"], value_set=ids).to_numpy())
    return pa.concat_tables([known.take(pa.array(rows)), pa.table({"item_id": missing})], promote_options="default")


def _user_table(ids: pa.Array, users: pa.Table | None, on_missing: str) -> pa.Table:
    """Return the users in the order of `ids`."""
    if users is None:
        return pa.table({"user_id": ids})
    known = _same_type(users, ids, "user_id")
    _missing(ids, known, on_missing, "user")
    rows = pc.index_in(ids, value_set=known["user_id"].combine_chunks())
    texts = [name for name in known.column_names if name != "user_id"]
    taken = known.take(rows)
    return pa.table({"user_id": ids, **{name: taken[name] for name in texts}})


def _same_type(table: pa.Table, ids: pa.Array, name: str) -> pa.Table:
    """Convert the ids of a table to the type of the interactions; only integers of another width are converted."""
    kind = table[name].type
    if kind != ids.type and not (pa.types.is_integer(kind) and pa.types.is_integer(ids.type)):
        raise InputError(
            f"{name} is {ids.type} in the interactions, but {kind} in the {name.removesuffix('_id')}s; "
            "read both as one type, with id_type='string' or id_type='integer'"
        )
    return table.set_column(table.column_names.index(name), name, table[name].cast(ids.type))


def _missing(ids: pa.Array, known: pa.Table, on_missing: str, entity: str) -> pa.Array:
    """Return the ids without a row in `known`.

    Raises:
        InputError: there are some, and `on_missing` is `error`.
    """
    missing = ids.filter(pc.invert(pc.is_in(ids, value_set=known[f"{entity}_id"].combine_chunks())))
    if len(missing) and on_missing == "error":
        raise InputError(
            f"{len(missing)} of {len(ids)} {entity}s with interactions are not among the {entity}s: {first_of(missing)}; "
            f"add them, or pass on_missing_{entity}='keep' (their texts are then null)"
        )
    return missing


def _set_reviews_apart(table: pa.Table) -> tuple[pa.Table, pa.Array]:
    """Replace the reviews of a table by row numbers, `row`, and return the reviews as one array, null where there are none.

    Texts are large. Set apart, they are copied at the beginning and at the end, and not by each filter.
    """
    reviews = pa.nulls(table.num_rows, pa.large_string())
    if "review" in table.column_names:
        reviews = table["review"].combine_chunks()
        table = table.drop_columns(["review"])
    return table.append_column("row", pa.array(np.arange(table.num_rows))), reviews


def _add_reviews(table: pa.Table, reviews: pa.Array) -> tuple[pa.Table, dict[str, int]]:
    """Replace `row` by `review`, null outside train, and count the reviews that are kept and withheld.

    If no pair has a review, the table gets no such column.
    """
    rows, train = table["row"].to_numpy(), pc.equal(table["split"], "train").to_numpy()
    written = is_written(reviews).to_numpy(zero_copy_only=False)[rows]
    counts = {"reviews": int((written & train).sum()), "reviews_withheld": int((written & ~train).sum())}
    table = table.drop_columns(["row"])
    if written.any():
        table = table.append_column("review", reviews.take(pa.array(rows, mask=~train)))
    return table, counts


def _index_interactions(table: pa.Table, codes: SplitCodes, users: pa.Table, items: pa.Table) -> pa.Table:
    """Return the rows with indices in place of ids and with their split, in the order of `interactions.parquet`."""
    columns = {
        name: pc.index_in(table[f"{entity}_id"], value_set=ids[f"{entity}_id"].combine_chunks()).combine_chunks()
        for name, entity, ids in (("user_index", "user", users), ("item_index", "item", items))
    }
    columns["split"] = split_names(codes)
    columns |= {name: table[name] for name in ("rating", "timestamp", "row") if name in table.column_names}
    times = (table["timestamp"].to_numpy(),) if "timestamp" in table.column_names else ()
    order = np.lexsort((*times, columns["user_index"].to_numpy()))
    return pa.table(columns).take(pa.array(order))


def count_statistics(table: pa.Table, num_users: int, num_items: int) -> dict[str, int | float]:
    """Count users, items and interactions, and the users and items without an interaction in a split."""
    counts: dict[str, int | float] = {"users": num_users, "items": num_items, "interactions": table.num_rows}
    rows = {split: table.filter(pc.equal(table["split"], split)) for split in SPLITS}
    counts |= {split: part.num_rows for split, part in rows.items()}
    counts["density"] = round(table.num_rows / (num_users * num_items), 9)
    counts |= {f"users_without_{split}": num_users - len(pc.unique(rows[split]["user_index"])) for split in SPLITS}
    counts["items_without_train"] = num_items - len(pc.unique(rows["train"]["item_index"]))
    return counts
