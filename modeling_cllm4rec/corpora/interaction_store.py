"""Interactions in DuckDB: any number of rows, within a memory limit, on all cores.

Rows come in as Arrow tables and leave as Arrow tables, so nothing else of the package knows the engine. What does not fit into
the memory limit is written to a folder of the caller's. Ids become codes as soon as all rows are in; a code is the position of an
id in the sorting order of all ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import FileWriteError, InputError, MemoryLimitError
from modeling_cllm4rec.corpora.bad_rows import NAMED, first_of, reject
from modeling_cllm4rec.corpora.interactions import check_interactions, is_written
from modeling_cllm4rec.corpora.times import ORDER, SMALLEST, TOO_LARGE, UNITS, exact_units, unit_of

IntArray = npt.NDArray[np.int64]
CHUNK = 250_000
"""Rows that are in memory outside of the engine at a time."""
ROWS_OF_ROUND = 4_000_000
"""Rows of two integers that are in memory at a time."""
CHUNK_BYTES = 2**28
"""Bytes of rows that are checked at a time."""
EXACT = 2**53
"""Whole numbers up to this magnitude are exact in floating point."""
CUT = "timestamp has whole numbers of 16 and more digits, which the fractions of other rows would cut,"
MEMORY_SHARE = 0.5
"""Share of the machine's memory that the engine takes at most, where no limit is given."""
SPLITS = ("train", "validation", "test")
"""The values of a split column; a split code is a position in this tuple."""


class Bounds(NamedTuple):
    """Least and largest number of interactions of a user or an item; `None` is no bound."""

    least: int | None = None
    most: int | None = None

    def outside(self, counts: IntArray) -> npt.NDArray[np.bool_]:
        """Return which of (n,) users or items have rows, and are removed for their number.

        >>> Bounds(2, 3).outside(np.array([0, 1, 2, 3, 4])).tolist()
        [False, True, False, False, True]
        """
        least, most = self.least or 0, np.iinfo(np.int64).max if self.most is None else self.most
        outside: npt.NDArray[np.bool_] = (counts > 0) & ((counts < least) | (counts > most))
        return outside


class Entities(NamedTuple):
    """Users or items that have rows, in order of first appearance.

    Attributes:
        ids: (n,) external ids.
        codes: (n,) codes.
        rows: (n,) numbers of rows.
    """

    ids: pa.Array
    codes: IntArray
    rows: IntArray


class InteractionStore:
    """Interactions, first as rows of ids, then as rows of codes.

    Args:
        folder: an existing folder for the rows that do not fit into memory; the caller removes it.
        memory_limit: memory of the engine as in `4GB` or `500MB`; `None` is half of the machine's.
        by_time: whether time orders the rows of a user, where there are times; otherwise the order in which rows came in does.

    Attributes:
        num_rows: number of rows that came in.
        num_left: number of rows that are left after the filters.
        columns: names of the columns that came in.
        time_unit: see `data_folder.RecommendationData.time_unit`; `None` without times.

    Raises:
        InputError: `memory_limit` is not a size.
    """

    def __init__(self, folder: Path, memory_limit: str | None = None, by_time: bool = True) -> None:
        self._engine = duckdb.connect(
            config={
                "memory_limit": _size(memory_limit),
                "temp_directory": str(folder),
                "preserve_insertion_order": "false",
                # No extension is needed, and looking for them takes half of the start.
                "autoload_known_extensions": "false",
                "autoinstall_known_extensions": "false",
                "arrow_large_buffer_size": "true",  # Reviews of one batch may have more than 2 GB.
            }
        )
        self._by_time, self._folder = by_time, folder
        self._tables: set[str] = set()
        self.num_rows = 0
        self.num_left = 0
        self.columns: tuple[str, ...] = ()
        self.time_unit: str | None = None
        self._time_type: pa.DataType | None = None

    def __enter__(self) -> InteractionStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._engine.close()

    # Rows of ids.

    def load(self, source: pa.Table | pa.RecordBatchReader, with_split: bool = False) -> None:
        """Check and take in all rows, give the ids codes, and find the unit of the times.

        Args:
            source: `user_id`, `item_id` and any of `rating`, `timestamp`, `review`, `split`; other columns are dropped.
            with_split: whether to read `split`.

        Raises:
            InputError: as `interactions.check_interactions`, a split is unknown, or the times mix units.
        """
        for piece in _pieces(source):
            table = check_interactions(piece, self.num_rows + 1)
            if not with_split and "split" in table.column_names:
                table = table.drop_columns(["split"])
            self._add(table)
        if not self.num_rows:
            raise InputError("interactions: the table has no rows")
        del piece, table
        pa.default_memory_pool().release_unused()
        self.num_left = self.num_rows
        with _engine_errors():
            self._give_codes()

    def _add(self, table: pa.Table) -> None:
        rows = pa.array(np.arange(self.num_rows, self.num_rows + table.num_rows))
        columns: dict[str, Any] = {"row": rows, "user_id": table["user_id"], "item_id": table["item_id"]}
        if "rating" in table.column_names:
            columns["rating"] = table["rating"]
        if "timestamp" in table.column_names:
            columns["time"] = self._times(table["timestamp"])
        if "split" in table.column_names:
            columns["split"] = _split_codes(table["split"])
        if not self.num_rows:
            self.columns = tuple(table.column_names)
            self._id_types = {name: table[name].type for name in ("user_id", "item_id")}
        with _engine_errors():
            self._insert("raw", pa.table(columns))
            if "review" in table.column_names:
                reviews = pa.table({"row": rows, "review": table["review"], "written": is_written(table["review"])})
                self._insert("reviews", reviews.filter(reviews["review"].is_valid()))
        self.num_rows += table.num_rows

    def _insert(self, name: str, table: pa.Table) -> None:
        """Append rows to a table of the engine, which is made at the first call."""
        self._engine.register("arriving", table)
        self._run(f"insert into {name} from arriving" if name in self._tables else f"create table {name} as from arriving")
        self._tables.add(name)
        self._engine.unregister("arriving")

    def _times(self, times: pa.ChunkedArray) -> pa.Array:
        """Return times as numbers, and bring those that are in already to the same type and unit."""
        kind, values = times.type, times.combine_chunks()
        before = self._time_type
        if before is None or before == kind:
            pass
        elif pa.types.is_timestamp(kind) != pa.types.is_timestamp(before):
            found = "dates" if pa.types.is_timestamp(kind) else "numbers"
            raise InputError(f"timestamp mixes numbers and dates: {found} from row {self.num_rows + 1} on; write all in one form")
        elif pa.types.is_timestamp(kind):
            finer = max(kind.unit, before.unit, key=list(UNITS).index)
            try:
                values, kind = values.cast(pa.timestamp(finer)), pa.timestamp(finer)
                self._run(f"update raw set time = time * {UNITS[finer] // UNITS[before.unit]}")
            except (pa.ArrowInvalid, duckdb.OutOfRangeException) as error:
                raise InputError(f"{TOO_LARGE} in {finer}, which other rows need; write all times in a coarser unit") from error
        elif pa.types.is_integer(kind):  # Fractions came before.
            values, kind = _as_floats(values, self.num_rows + 1), pa.float64()
        else:
            first = self._value(f"select min(row) + 1 from raw where abs(time) > {EXACT}")
            if first is not None:
                raise InputError(f"{CUT} (rows {first} and {self.num_rows + 1} on); write all as whole numbers")
            self._run("alter table raw alter time type double")
        self._time_type = kind
        return values.cast(pa.int64()) if pa.types.is_timestamp(kind) else values

    def _give_codes(self) -> None:
        """Replace ids by codes."""
        # Rows stay in the order of the query, so the row number of an id is its place in the sorting order.
        for entity in ("user", "item"):
            self._run(f"create table {entity}s as select distinct {entity}_id from raw order by {entity}_id")
        time = ""
        if "timestamp" in self.columns:
            expression, self.time_unit = self._exact_time()
            time = f"{expression} as time, " if self._by_time else f"raw.row as time, {expression} as stored_time, "
        columns = "".join(f"{name}, " for name in ("rating", "split") if name in self.columns)
        self._run(
            f"""create table kept as
            select raw.row as row, {time}{columns}users.rowid::integer as u, items.rowid::integer as i
            from raw join users using (user_id) join items using (item_id)"""
        )
        self._run("drop table raw")

    def _exact_time(self) -> tuple[str, str]:
        """Return the SQL expression of the times that are stored, and their unit."""
        kind = self._time_type
        assert kind is not None
        if pa.types.is_timestamp(kind):
            return "time", kind.unit
        smallest, largest = self._row(f"select min(abs(time)) filter (abs(time) >= {SMALLEST['s']}), max(abs(time)) from raw")
        try:
            unit = unit_of(largest if smallest is None else smallest, largest)
        except InputError as error:
            rows = [self._value(f"select min(row) + 1 from raw where abs(time) = {value!r}") for value in (smallest, largest)]
            raise InputError(f"{error} (rows {rows[0]} and {rows[1]})") from None
        if pa.types.is_integer(kind):
            return "time", unit or "s"
        for finer, factor in exact_units(unit):
            whole = f"round(time * {factor}) / {factor} = time"
            if largest * factor < 2**63 and self._value(f"select bool_and({whole}) from raw"):
                return f"round(time * {factor})::bigint", finer
        return "time", ORDER

    # Rows of codes.

    def keep_one_of_pairs(self, last: bool = True) -> int:
        """Keep the last or first row of each (user, item) pair by time, then by order, and return the number of rows removed.

        Raises:
            InputError: a repeated pair has more than one split.
        """
        with _engine_errors():
            self._run("create table repeated as select u, i from kept group by u, i having count(*) > 1")
            if not self._value("select count(*) from repeated"):
                return 0
            if "split" in self.columns:
                self._check_one_split()
            direction = "desc" if last else "asc"
            time = f"time {direction}, " if "timestamp" in self.columns else ""
            self._run(
                f"""create table others as select row from
                (select row, row_number() over (partition by u, i order by {time}row {direction}) as place
                 from kept semi join repeated using (u, i)) where place > 1"""
            )
            return self._delete("row in (from others)")

    def _check_one_split(self) -> None:
        pairs = self._table(
            """select user_id, item_id from
            (select u, i, min(row) as first from kept semi join repeated using (u, i) group by u, i
             having min(split) != max(split)) as pairs
            join users on users.rowid = u join items on items.rowid = i order by first"""
        )
        if pairs.num_rows:
            users, items = (first_of(pairs[name][:NAMED]) for name in ("user_id", "item_id"))
            raise InputError(
                f"{pairs.num_rows} repeated (user, item) pairs have more than one split: users {users} with items {items}; "
                "a pair may be in one split only"
            )

    def keep_well_rated(self, min_rating: float) -> int:
        """Keep rows with a rating of at least `min_rating`, and return the number of rows removed.

        Raises:
            InputError: there is no column of ratings, or one of the rows has none.
        """
        if "rating" not in self.columns:
            raise InputError(
                f"min_rating {min_rating} needs a column of ratings; name it with rating_column=..., or leave min_rating unset"
            )
        with _engine_errors():
            missing = self._value("select count(*) from kept where rating is null")
            if missing:
                raise InputError(f"min_rating {min_rating} needs all ratings, but rating is missing in {missing} rows")
            return self._delete(f"rating < {float(min_rating)!r}")

    def keep_within(self, users: Bounds, items: Bounds) -> int:
        """Remove users and items whose number of rows is out of bounds, until none is, and return the number of rows removed.

        With the same least number for both this is the k-core: the largest set of rows in which all users and items have it.
        """
        with _engine_errors():
            # Rounds over two arrays of codes in a file; the engine would group all rows by user and by item in each round.
            sizes = [int(self._value(f"select count(*) from {entity}s")) for entity in ("user", "item")]
            pairs = np.memmap(self._folder / "pairs", dtype=np.int32, mode="w+", shape=(2, self.num_left))
            start = 0
            for batch in self._engine.sql("select u, i from kept").to_arrow_reader(CHUNK):
                for place, name in enumerate("ui"):
                    pairs[place, start : start + batch.num_rows] = batch[name].to_numpy()
                start += batch.num_rows
            removed = _out_of_bounds(pairs, sizes, (users, items))
            del pairs
            (self._folder / "pairs").unlink()
            if not any(len(codes) for codes in removed):
                return 0
            for name, codes in zip("ui", removed, strict=True):
                self._engine.register(f"removed_{name}", pa.table({"code": codes}))
            number = self._delete("u in (select code from removed_u) or i in (select code from removed_i)")
            for name in "ui":
                self._engine.unregister(f"removed_{name}")
        return number

    def drop_short_users(self, least: int) -> int:
        """Remove users with fewer rows than `least`, and return the number of rows removed."""
        with _engine_errors():
            return self._delete(f"u in (select u from kept group by u having count(*) < {least})")

    def entities(self, entity: str) -> Entities:
        """Return the users or items that have rows, in order of first appearance.

        Args:
            entity: `user` or `item`.
        """
        column = entity[0]
        with _engine_errors():
            found = self._table(
                f"""select {entity}_id as id, {column} as code, rows from
                (select {column}, min(row) as first, count(*) as rows from kept group by {column}) as seen
                join {entity}s on {entity}s.rowid = {column} order by first"""
            ).combine_chunks()
        ids = found["id"].cast(self._id_types[f"{entity}_id"])
        return Entities(_one(ids), found["code"].to_numpy().astype(np.int64), found["rows"].to_numpy().astype(np.int64))

    def time_at(self, share: float) -> int | float:
        """Return the time of the row after this share of all rows, in order of time."""
        with _engine_errors():
            place = int(share * self.num_left)
            time: int | float = self._value(f"select time from kept order by time limit 1 offset {place}")
        return time

    def has_reviews(self) -> bool:
        """Check whether one of the rows has a review that is not blank."""
        if "review" not in self.columns:
            return False
        with _engine_errors():
            return bool(self._value("select count(*) from reviews semi join kept using (row) where written"))

    def by_user(self, users: IntArray, with_reviews: bool = False) -> Iterator[pa.Table]:
        """Yield the rows in the order of users, then of time, then of rows; the rows of one user are in one table.

        Args:
            users: (n,) codes of users in their order.
            with_reviews: whether to add `review`, null where there is none.

        Yields:
            `user_index` (position in `users`), `u`, `i`, `row`, and `time`, `stored_time`, `rating`, `split` if there are any.
        """
        positions = pa.table({"u": users.astype(np.int32), "user_index": np.arange(len(users), dtype=np.int32)})
        self._engine.register("positions", positions)
        time = "time, " if "timestamp" in self.columns else ""
        join, review = ("left join reviews on reviews.row = kept.row", ", review") if with_reviews else ("", "")
        rest: pa.Table | None = None
        with _engine_errors():
            # The sort is within the engine, so the reader gets the rows one batch after the other.
            reader = self._engine.sql(
                f"""select positions.user_index, kept.*{review} from kept join positions using (u) {join}
                order by user_index, {time}kept.row"""
            ).to_arrow_reader(CHUNK // 5 if with_reviews else CHUNK)
            for batch in reader:
                part = pa.Table.from_batches([batch])
                rest = part if rest is None else pa.concat_tables([rest, part])
                last = np.searchsorted(rest["user_index"].to_numpy(), rest["user_index"][-1].as_py())
                if last:
                    yield rest.slice(0, last)
                    rest = rest.slice(last).combine_chunks()
        if rest is not None and rest.num_rows:
            yield rest
        self._engine.unregister("positions")

    def _delete(self, condition: str) -> int:
        removed = int(self._value(f"delete from kept where {condition}"))
        self.num_left -= removed
        return removed

    def _value(self, query: str) -> Any:
        return self._row(query)[0]

    def _row(self, query: str) -> tuple[Any, ...]:
        return self._run(query)[0]

    def _run(self, query: str) -> list[tuple[Any, ...]]:
        # The engine refuses other work until all rows of a result are fetched.
        return self._engine.execute(query).fetchall()

    def _table(self, query: str) -> pa.Table:
        return self._engine.sql(query).to_arrow_table()


def _out_of_bounds(
    pairs: npt.NDArray[np.int32], sizes: Sequence[int], bounds: Sequence[Bounds]
) -> tuple[npt.NDArray[np.int32], ...]:
    """Return the codes of the users and of the items that bounds remove.

    Args:
        pairs: (2, rows) codes of user and item of each row; it is overwritten.
        sizes: numbers of user codes and item codes.
        bounds: of users and items.
    """
    gone = [np.zeros(size, dtype=bool) for size in sizes]
    left = pairs.shape[1]
    while True:
        counts = [np.zeros(size, dtype=np.int64) for size in sizes]
        for start in range(0, left, ROWS_OF_ROUND):
            for codes, total in zip(pairs[:, start : min(start + ROWS_OF_ROUND, left)], counts, strict=True):
                total += np.bincount(codes, minlength=len(total))
        # Removing users lowers the counts of items and the other way around, so the rounds repeat until nothing changes.
        outside = [bound.outside(total) for bound, total in zip(bounds, counts, strict=True)]
        if not any(found.any() for found in outside):
            return tuple(np.flatnonzero(found).astype(np.int32) for found in gone)
        end = 0
        for start in range(0, left, ROWS_OF_ROUND):
            part = pairs[:, start : min(start + ROWS_OF_ROUND, left)]
            kept = part[:, ~(outside[0][part[0]] | outside[1][part[1]])]
            pairs[:, end : end + kept.shape[1]] = kept
            end += kept.shape[1]
        left = end
        for found, total in zip(outside, gone, strict=True):
            total |= found


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Name the way out where the engine has no more memory or disk."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        if "max_temp_directory_size" in str(error):
            raise FileWriteError(f"no space is left next to the output for what does not fit into memory ({error})") from error
        reason = str(error).splitlines()[0]  # The other lines advise on settings of the engine.
        raise MemoryLimitError(
            f"memory_limit is too small for this data ({reason}); give more with memory_limit='8GB' or so"
        ) from error
    except duckdb.IOException as error:
        raise FileWriteError(f"what does not fit into memory cannot be written next to the output ({error})") from error


def _pieces(source: pa.Table | pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Yield the rows of a source in tables of about `CHUNK` rows; a table that is empty is yielded, so that it is checked."""
    if isinstance(source, pa.Table):
        rows = max(1, min(CHUNK, CHUNK_BYTES * source.num_rows // max(1, source.nbytes)))
        for start in range(0, max(1, source.num_rows), rows):
            yield source.slice(start, rows)
        return
    waiting: list[pa.RecordBatch] = []
    for batch in source:
        waiting.append(batch)
        if sum(part.num_rows for part in waiting) >= CHUNK or sum(part.nbytes for part in waiting) >= CHUNK_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if any(part.num_rows for part in waiting):
        yield pa.Table.from_batches(waiting)


def _size(memory_limit: str | None) -> str:
    """Return the limit as the engine reads it."""
    if memory_limit is None:
        return f"{int(MEMORY_SHARE * psutil.virtual_memory().total / 1e6)}MB"
    if not re.fullmatch(r"[1-9]\d*(\.\d+)? ?(MB|GB|TB)", memory_limit):
        raise InputError(f"memory_limit must be a size such as '4GB' or '500MB', got {memory_limit!r}")
    return memory_limit


def _split_codes(splits: pa.ChunkedArray) -> pa.Array:
    """Return the (rows,) codes of split names."""
    codes = pc.index_in(splits, value_set=pa.array(SPLITS, splits.type))
    if codes.null_count:
        unknown = pc.unique(splits.filter(codes.is_null()))
        raise InputError(f"split has the values {first_of(unknown)}; they must be {', '.join(SPLITS)}, spelled like this")
    return _one(codes).cast(pa.int8())


def _as_floats(values: pa.Array, first_row: int) -> pa.Array:
    reject(values, pc.greater(pc.abs(values), EXACT).to_numpy(zero_copy_only=False), CUT, first_row)
    return values.cast(pa.float64())


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


__all__ = ["CHUNK", "MEMORY_SHARE", "SPLITS", "Bounds", "Entities", "InteractionStore"]
