"""Prepare a data folder from tables of interactions, items and users."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.bad_rows import first_of
from modeling_cllm4rec.corpora.data_folder import (
    FORMAT,
    HELD_OUT_REVIEWS,
    RecommendationData,
    TableWriter,
    check_output,
    new_folder,
    write_description,
    write_tables,
)
from modeling_cllm4rec.corpora.interaction_store import Bounds, Entities, IntArray, InteractionStore
from modeling_cllm4rec.corpora.interactions import clean_text_table, is_written
from modeling_cllm4rec.corpora.splits import (
    LEAST_INTERACTIONS,
    SHORT_USERS,
    SPLITS,
    SplitCodes,
    Splitter,
    check_no_split_is_empty,
    check_split,
    split_names,
)

ON_MISSING = ("error", "keep")
"""Treatment of items or users that have interactions but no row of texts."""
REPEATS = ("first", "last")
"""Interactions of a repeated (user, item) pair that may be kept."""
STEPS = ("checking", "cleaning", "indexing", "splitting", "writing")
"""The steps of `prepare_tables`, in order."""

HELD_OUT_COLUMNS = ("user_index", "item_index", "split", "review")

logger = logging.getLogger(__name__)


def prepare_folder(
    interactions: pa.Table | pa.RecordBatchReader,
    items: pa.Table | None,
    users: pa.Table | None,
    output: str | Path,
    *,
    split: str = "random",
    seed: int = 42,
    temporal_cuts: tuple[float, float] = (0.8, 0.9),
    order: str = "time",
    repeats: str = "last",
    short_users: str = "train",
    min_rating: float | None = None,
    k_core: int = 0,
    min_user_interactions: int | None = None,
    max_user_interactions: int | None = None,
    min_item_interactions: int | None = None,
    max_item_interactions: int | None = None,
    keep_all_items: bool = False,
    on_missing_item: str = "error",
    on_missing_user: str = "error",
    held_out_reviews: bool = False,
    memory_limit: str | None = None,
    overwrite: bool = False,
    sources: Sequence[dict[str, str]] = (),
    source_columns: Sequence[str] = (),
    data_license: str | None = None,
    data_language: Sequence[str] = (),
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Clean, index and split interactions, and write the data folder, with any number of interactions.

    The interactions are never in memory as a whole: a database engine holds them, within `memory_limit`, and writes the rest to
    a temporary folder next to the output. The tables of items and users are in memory.

    Users are numbered in order of first appearance in the interactions. Items are numbered in the order of `items`, or, without
    it, in order of first appearance. A review is kept only if its pair is in train.

    The filters run in this order: one of repeated pairs is kept (`repeats`), `min_rating`, the numbers of interactions,
    `short_users`.

    Args:
        interactions: `user_id`, `item_id` and any of `rating`, `timestamp`, `review`, `split`; other columns are
            dropped. See `interactions.check_interactions`.
        items: `item_id` and text columns, or `None`. See `interactions.clean_text_table`.
        users: `user_id` and text columns, or `None`. Users without interactions are dropped.
        output: the folder to write.
        split, seed, temporal_cuts: see `splits.Splitter`.
        order: `time`: the times order the interactions of a user, and of equal times the rows; `rows`: the rows alone do.
        repeats: which of a user's interactions with the same item is kept, `last` or `first`, in the order of `order`. The
            released preprocessing of LC-Rec keeps the first.
        short_users: treatment of users with fewer than three interactions by `random` and `leave-one-out`: `train` (all of them
            are in train), `drop` or `error`.
        min_rating: the lowest rating that is kept. The "rating > 3" of the paper, with whole stars, is 4.
        k_core: least number of interactions of each user and each item that is kept; 0 keeps all.
        min_user_interactions, max_user_interactions, min_item_interactions, max_item_interactions: users and items with fewer or
            more interactions are removed, until none is left.
        keep_all_items: whether to keep items of `items` without an interaction.
        on_missing_item: treatment of items that have interactions but are not in `items`: `error`, or `keep` them after the
            others, with null texts.
        on_missing_user: the same for users.
        held_out_reviews: whether to write the reviews of validation and test pairs to a file of their own, from which
            `evaluation.search_queries` makes queries. Nothing else reads that file.
        memory_limit: memory of the engine as in `4GB`; by default half of the machine's.
        overwrite: whether to replace an existing data folder, once the new one is complete.
        sources: `{"table", "file", "sha256"}` of the files of the tables, for the record.
        source_columns: all columns of the source of the interactions, from which messages name likely ones.
        data_license: name of the licence of the data, for the cards of models trained on it.
        data_language: ISO 639 codes of the languages of the texts, such as `en`, for the cards of data and models.
        on_step: called with each of `STEPS` when it begins.

    Returns:
        The contents of `dataset.json`.

    Raises:
        InputError: an argument or a table is not valid; see the functions named above.
        ExistingFileError: `output` holds something that must not be replaced.
        FileWriteError: the folder cannot be written.
        MemoryLimitError: `memory_limit` is too small.

    Example:
        >>> import tempfile
        >>> log = pa.table({"user_id": ["ann"] * 3 + ["bob"], "item_id": [10, 20, 30, 10], "timestamp": [1, 2, 3, 4]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     info = prepare_folder(log, None, None, Path(folder, "data"), split="leave-one-out")
        >>> info["protocol"]["line"].split("; ")[:2]
        ['leave-one-out split (last is test, last but one validation)', '1 user with fewer than 3 interactions in train only']
    """
    begin = on_step or (lambda step: None)
    begin("checking")
    _check_languages(data_language)
    output = Path(output)
    check_output(output, overwrite)
    for name, value, allowed in (
        ("on_missing_item", on_missing_item, ON_MISSING),
        ("on_missing_user", on_missing_user, ON_MISSING),
        ("repeats", repeats, REPEATS),
        ("short_users", short_users, SHORT_USERS),
    ):
        if value not in allowed:
            raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if keep_all_items and items is None:
        raise InputError("keep_all_items needs a table of items")
    bounds = _bounds(k_core, min_user_interactions, max_user_interactions, min_item_interactions, max_item_interactions)
    check_split(split, interactions.schema.names, order, seed, temporal_cuts, source_columns)
    if items is not None:
        items = clean_text_table(items, "item_id")
    if users is not None:
        users = clean_text_table(users, "user_id")
    with new_folder(output, overwrite) as temporary:
        work = temporary / "work"
        work.mkdir()
        with InteractionStore(work, memory_limit, order == "time") as store:
            store.load(interactions, with_split=split == "given")
            del interactions
            begin("cleaning")
            filters = _clean(store, repeats, min_rating, k_core, bounds)
            users_left, few = _treat_short_users(store, split, short_users, filters)
            for step in filters:
                logger.info("%s %s: removed %d rows", step["filter"], step["value"], step["removed"])
            begin("indexing")
            items_left = store.entities("item")
            item_table = _item_table(items_left.ids, items, on_missing_item, keep_all_items)
            user_table = _user_table(users_left.ids, users, on_missing_user)
            item_indices = np.zeros(int(items_left.codes.max()) + 1, dtype=np.int32)
            item_indices[items_left.codes] = (
                np.arange(len(items_left.ids))
                if items is None
                else pc.index_in(items_left.ids, value_set=item_table["item_id"].combine_chunks()).to_numpy()
            )
            begin("splitting")
            splitter = Splitter(store, users_left, split, work, seed=seed, temporal_cuts=temporal_cuts)
            begin("writing")
            counts = SplitCounts(user_table.num_rows, item_table.num_rows)
            with ExitStack() as stack:
                held_out = None
                if held_out_reviews:
                    if not store.has_reviews():
                        raise InputError(
                            "held_out_reviews is True, but no interaction has a review; leave it out, or name the column of the "
                            "reviews with review_column=..."
                        )
                    held_out = stack.enter_context(TableWriter(temporary / f"{HELD_OUT_REVIEWS}.parquet"))
                parts = _interactions(store, splitter, users_left.codes, item_indices, counts, held_out)
                files = write_tables(temporary, user_table, item_table, parts)
            if held_out is not None:
                files.columns[HELD_OUT_REVIEWS] = list(HELD_OUT_COLUMNS)
            splitter.close()
        statistics = counts.statistics()
        check_no_split_is_empty(splitter.protocol, {name: int(statistics[name]) for name in SPLITS})
        protocol: dict[str, Any] = splitter.protocol | ({"order": "rows"} if order == "rows" else {}) | {"filters": filters}
        if few:
            statistics["short_users"] = few
            protocol["short_users"] = {"fewer_than": LEAST_INTERACTIONS, "users": few, "in": "train"}
        info = {
            "format": FORMAT,
            "statistics": statistics,
            "protocol": protocol | {"line": protocol_line(protocol)},
            "sources": list(sources),
            **({} if data_license is None else {"license": data_license}),
            **({"language": list(data_language)} if data_language else {}),
            **({} if store.time_unit is None else {"time_unit": store.time_unit}),
        }
        write_description(temporary, output, info, files)
        shutil.rmtree(work)
    return info


def _check_languages(codes: Sequence[str]) -> None:
    """Check that languages are ISO 639 codes, as the Hub writes them.

    Raises:
        InputError: one is not.
    """
    if isinstance(codes, str) or not all(re.fullmatch(r"[a-z]{2,3}|multilingual", code) for code in codes):
        raise InputError(
            f"data_language is {codes!r}; give a list of ISO 639 codes of two or three small letters, such as ['en', 'de'], or "
            "['multilingual']"
        )


def prepare_tables(
    interactions: pa.Table | pa.RecordBatchReader,
    items: pa.Table | None,
    users: pa.Table | None,
    output: str | Path,
    **arguments: Any,
) -> RecommendationData:
    """Write a data folder and load it; see `prepare_folder`, which has the same arguments.

    Example:
        >>> import tempfile
        >>> pairs = pa.table({"user_id": ["ann"] * 3 + ["bob"] * 3, "item_id": [10, 20, 30, 10, 20, 40]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = prepare_tables(pairs, None, None, Path(folder, "data"), split="leave-one-out", order="rows")
        >>> data.num_users, data.num_items, data.histories("train").items.tolist()
        (2, 4, [0, 0])
    """
    prepare_folder(interactions, items, users, output, **arguments)
    return RecommendationData.load(output)


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
    line = [words[protocol["split"]] + (" by the order of the rows" if protocol.get("order") == "rows" else "")]
    if "short_users" in protocol:
        short = protocol["short_users"]
        users = "1 user" if short["users"] == 1 else f"{short['users']} users"
        line.append(f"{users} with fewer than {short['fewer_than']} interactions in train only")
    return "; ".join([*line, *(_filter_words(step) for step in protocol["filters"])])


def _filter_words(step: dict[str, Any]) -> str:
    """Return the words of one filter."""
    value = step["value"]
    if step["filter"] == "interactions":
        parts = []
        for entity in ("user", "item"):
            least, most = value[f"min_{entity}"], value[f"max_{entity}"]
            if least is not None or most is not None:
                limits = [f"{least} or more"] * (least is not None) + [f"{most} or fewer"] * (most is not None)
                parts.append(f"{entity}s with {' and '.join(limits)} interactions")
        return ", ".join(parts)
    words = {
        "duplicates": "{} of repeated pairs kept",
        "min_rating": "rating >= {:g}",
        "k_core": "{}-core",
        "short_users": "users with fewer than {} interactions dropped",
    }
    return words[step["filter"]].format(value)


def _bounds(
    k_core: int,
    min_user: int | None,
    max_user: int | None,
    min_item: int | None,
    max_item: int | None,
) -> tuple[Bounds, Bounds]:
    """Return the bounds of the interactions of users and items, in addition to the k-core."""
    if k_core < 0:
        raise InputError(f"k_core must be at least 0 (off), got {k_core}")
    values = {
        "min_user_interactions": min_user,
        "max_user_interactions": max_user,
        "min_item_interactions": min_item,
        "max_item_interactions": max_item,
    }
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
        if value is not None and k_core and name.startswith("min"):
            raise InputError(f"k_core is {k_core} and {name} is {value}; k_core is both minima, so give one of the two")
    for entity, least, most in (("user", min_user, max_user), ("item", min_item, max_item)):
        if most is not None and (least or k_core or 0) > most:
            raise InputError(f"max_{entity}_interactions is {most}, below the least number {least or k_core}; exchange them")
    return Bounds(min_user, max_user), Bounds(min_item, max_item)


def _clean(
    store: InteractionStore, repeats: str, min_rating: float | None, k_core: int, bounds: tuple[Bounds, Bounds]
) -> list[dict[str, Any]]:
    """Filter the interactions.

    Returns:
        For each filter in order `{"filter", "value", "removed"}`, `removed` in rows.

    Raises:
        InputError: a repeated pair has two splits, a rating is missing, or no row is left.
    """
    removed = store.keep_one_of_pairs(last=repeats == "last")
    filters: list[dict[str, Any]] = [{"filter": "duplicates", "value": repeats, "removed": removed}]
    if min_rating is not None:
        filters.append({"filter": "min_rating", "value": min_rating, "removed": store.keep_well_rated(min_rating)})
    users, items = bounds
    if any(bound is not None for bound in (*users, *items)):
        value = {"min_user": users.least or k_core or None, "max_user": users.most}
        value |= {"min_item": items.least or k_core or None, "max_item": items.most}
        removed = store.keep_within(Bounds(value["min_user"], users.most), Bounds(value["min_item"], items.most))
        filters.append({"filter": "interactions", "value": value, "removed": removed})
    elif k_core:
        removed = store.keep_within(Bounds(k_core), Bounds(k_core))
        filters.append({"filter": "k_core", "value": k_core, "removed": removed})
    _check_left(store, filters)
    return filters


def _treat_short_users(
    store: InteractionStore, split: str, short_users: str, filters: list[dict[str, Any]]
) -> tuple[Entities, int]:
    """Drop or refuse the users with too few interactions for the split.

    Returns:
        The users that are left, and how many of them have too few interactions and are in train only.
    """
    users = store.entities("user")
    if split not in ("random", "leave-one-out"):
        return users, 0
    short = users.ids.filter(pa.array(users.rows < LEAST_INTERACTIONS))
    if len(short) and short_users == "error":
        raise InputError(
            f"split {split!r} needs at least {LEAST_INTERACTIONS} interactions of each user, but {len(short)} of "
            f"{len(users.ids)} users have fewer: {first_of(short)}; pass short_users='train' to keep them in train, or 'drop'"
        )
    if short_users == "drop":
        removed = store.drop_short_users(LEAST_INTERACTIONS) if len(short) else 0
        filters.append({"filter": "short_users", "value": LEAST_INTERACTIONS, "removed": removed})
        _check_left(store, filters)
        return (store.entities("user") if removed else users), 0
    return users, len(short)


def _check_left(store: InteractionStore, filters: list[dict[str, Any]]) -> None:
    if not store.num_left:
        steps = "; ".join(f"{step['filter']} {step['value']} removed {step['removed']}" for step in filters)
        raise InputError(
            f"no interaction is left of {store.num_rows}: {steps}; lower min_rating, k_core or the least numbers of interactions"
        )


def _interactions(
    store: InteractionStore,
    splitter: Splitter,
    users: IntArray,
    item_indices: npt.NDArray[np.int32],
    counts: SplitCounts,
    held_out: TableWriter | None = None,
) -> Iterator[pa.Table]:
    """Yield the parts of `RecommendationData.interactions` in order, count them, and write the reviews that they do not have.

    If no pair has a review, there is no such column.
    """
    with_reviews = store.has_reviews()
    for table in store.by_user(users, with_reviews):
        codes = splitter.split_users(table)
        items = item_indices[table["i"].to_numpy()]
        columns = {"user_index": table["user_index"], "item_index": pa.array(items), "split": split_names(codes)}
        if "rating" in table.column_names:
            columns["rating"] = table["rating"]
        for name in ("stored_time", "time"):
            if name in table.column_names:
                columns.setdefault("timestamp", table[name])
        written = np.zeros(table.num_rows, dtype=bool)
        if with_reviews:
            written = is_written(table["review"]).to_numpy()
            train = pa.array(codes == SPLITS.index("train"))
            reviews = table["review"].cast(pa.large_string())
            columns["review"] = pc.if_else(train, reviews, None)
            if held_out is not None:
                every = pa.table({**columns, "review": reviews}).select(HELD_OUT_COLUMNS)
                held_out.write(every.filter(pc.and_(pa.array(written), pc.invert(train))))
        counts.add(table["user_index"].to_numpy(), items, codes, written)
        yield pa.table(columns)


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
    if len(missing):
        logger.info("%d of %d %ss with interactions have no texts: %s", len(missing), len(ids), entity, first_of(missing))
    if len(missing) and on_missing == "error":
        raise InputError(
            f"{len(missing)} of {len(ids)} {entity}s with interactions are not among the {entity}s: {first_of(missing)}; "
            f"add them, or pass on_missing_{entity}='keep' (their texts are then null)"
        )
    return missing


class SplitCounts:
    """Count the interactions, users and items of each split, some rows at a time."""

    def __init__(self, num_users: int, num_items: int) -> None:
        self._rows = np.zeros(len(SPLITS), dtype=np.int64)
        self._users = np.zeros((len(SPLITS), num_users), dtype=bool)
        self._items = np.zeros(num_items, dtype=bool)
        self._reviews = np.zeros(len(SPLITS), dtype=np.int64)

    def add(self, users: IntArray, items: IntArray, codes: SplitCodes, written: npt.NDArray[np.bool_]) -> None:
        """Count rows: (rows,) user indices, item indices, split codes, and whether there is a review that is not blank."""
        self._rows += np.bincount(codes, minlength=len(SPLITS))
        self._users[codes, users] = True
        self._items[items[codes == SPLITS.index("train")]] = True
        self._reviews += np.bincount(codes[written], minlength=len(SPLITS))

    def statistics(self) -> dict[str, int | float]:
        """Return the counts by name."""
        num_users, num_items, rows = self._users.shape[1], len(self._items), int(self._rows.sum())
        counts: dict[str, int | float] = {"users": num_users, "items": num_items, "interactions": rows}
        counts |= dict(zip(SPLITS, self._rows.tolist(), strict=True))
        counts["density"] = round(rows / (num_users * num_items), 9)
        missing = (~self._users).sum(axis=1).tolist()
        counts |= {f"users_without_{split}": number for split, number in zip(SPLITS, missing, strict=True)}
        counts["items_without_train"] = int((~self._items).sum())
        counts["reviews"] = int(self._reviews[SPLITS.index("train")])
        counts["reviews_withheld"] = int(self._reviews.sum()) - counts["reviews"]
        return counts


def count_statistics(table: pa.Table, num_users: int, num_items: int) -> dict[str, int | float]:
    """Count users, items and interactions, and the users and items without an interaction in a split."""
    counts = SplitCounts(num_users, num_items)
    codes = pc.index_in(table["split"], value_set=pa.array(SPLITS, table["split"].type))
    written = np.zeros(table.num_rows, dtype=bool)
    counts.add(table["user_index"].to_numpy(), table["item_index"].to_numpy(), codes.to_numpy(), written)
    statistics = counts.statistics()
    return {name: value for name, value in statistics.items() if not name.startswith("reviews")}
