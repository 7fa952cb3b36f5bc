"""Interactions and texts of items and users from any source, under the column names of this package."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.bad_rows import first_of
from modeling_cllm4rec.corpora.column_roles import (
    KNOWN_COLUMNS,
    SEPARATED,
    TextColumns,
    check_text_columns,
    find_column,
    guess_texts,
    roles_of,
)
from modeling_cllm4rec.corpora.interactions import check_ids, check_interactions, clean_text_table
from modeling_cllm4rec.corpora.json_files import MIXED
from modeling_cllm4rec.corpora.memory_tables import TableLike
from modeling_cllm4rec.corpora.readers import Source, first_columns, nearest_names, open_source
from modeling_cllm4rec.corpora.text_cleaning import flagged_names, join_columns, split_texts
from modeling_cllm4rec.corpora.text_files import TextForm
from modeling_cllm4rec.corpora.times import likely_time_columns

ID_TYPES = ("auto", "string", "integer")
WHOLE = r"^(0|-?[1-9]\d{0,18})$"
"""Whole numbers without leading zeros that may fit into 64 bits."""
FRACTION = r"^-?\d+\.0$"
"""Whole numbers that were written as fractions."""
ARGUMENTS = {
    "user_id": "user_column",
    "item_id": "item_column",
    "rating": "rating_column",
    "timestamp": "timestamp_column",
    "review": "review_column",
}
"""Role -> the argument that names its column."""
Expand = Callable[[pa.Table], pa.Table]
"""Function from the rows of a file to interactions, for files with several in a row."""

logger = logging.getLogger(__name__)


class OpenInteractions(NamedTuple):
    """Interactions that are not read yet.

    Attributes:
        reader: the rows, with the columns of this package; see `interactions.check_interactions`.
        columns: all columns of the source.
        roles: role -> the column that it is read from.
    """

    reader: pa.RecordBatchReader
    columns: tuple[str, ...]
    roles: dict[str, str]


def open_interactions(
    source: TableLike | dict[str, TableLike],
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    rating_column: str | None = None,
    timestamp_column: str | None = None,
    review_column: str | None = None,
    split_column: str | None = None,
    with_split: bool = False,
    id_type: str = "auto",
    form: TextForm | None = None,
    time_format: str | None = None,
    expand: Expand | None = None,
) -> OpenInteractions:
    """Open a table of interactions of any size, and rename its columns to those of this package.

    Args:
        source: any source of `readers.open_source`, or split -> source.
        user_column: column of user ids; `None` means `user_id`, or else the one column with a name that is known
            (`column_roles.KNOWN_COLUMNS`). The same holds for the next four.
        item_column: column of item ids.
        rating_column: column of ratings, if there is one.
        timestamp_column: column of times, if there is one.
        review_column: column of review texts, if there is one.
        split_column: column of split names (default: `split`); read only `with_split`, where it is required.
        with_split: whether to read the split.
        id_type: see `typed_ids`. With `auto`, a file without types is read twice, the first time to find the type of the ids.
        form: delimiter, encoding and names of the columns.
        time_format: form of texts of times that are not ISO-8601, as `strptime` reads it.
        expand: for files with several interactions in a row.

    Raises:
        MissingFileError, InputError: as `readers.open_source`; a column is missing, has no definite role, or has two; the
            ids have several types. Errors of rows come while they are read.

    Example:
        >>> log = [{"userId": "ann", "movieId": 7, "rating": 4.5}]
        >>> open_interactions(log).reader.read_all().to_pylist()
        [{'user_id': 'ann', 'item_id': 7, 'rating': 4.5}]
    """
    if id_type not in ID_TYPES:
        raise InputError(f"id_type must be one of {', '.join(ID_TYPES)}, got {id_type!r}")
    by_split = source if type(source) is dict else {"": source}
    parts = {split: open_source(part, form, everything=False) for split, part in by_split.items()}
    first = next(iter(parts.values()))
    given = {
        "user_id": user_column,
        "item_id": item_column,
        "rating": rating_column,
        "timestamp": timestamp_column,
        "review": review_column,
        **({"split": split_column or "split"} if with_split and type(source) is not dict else {}),
    }
    roles = _find_roles(first, given)
    kinds = {name: _id_kind(list(parts.values()), roles[name], name, id_type, expand) for name in ("user_id", "item_id")}
    rows = _rows(parts, roles, kinds, time_format, expand)
    batch = next(rows, None)
    if batch is None:
        raise InputError(f"{first.name} has no rows")

    def batches() -> Iterator[pa.RecordBatch]:
        yield from batch.to_batches()
        for more in rows:
            yield from more.cast(batch.schema).to_batches()

    reader = pa.RecordBatchReader.from_batches(batch.schema, batches())
    return OpenInteractions(reader, first.columns, roles)


def read_interactions(source: TableLike, **arguments: Any) -> pa.Table:
    """Read a table of interactions into memory; see `open_interactions`, which has the same arguments.

    Returns:
        The table as `interactions.check_interactions` returns it.
    """
    return check_interactions(open_interactions(source, **arguments).reader.read_all())


def read_texts(
    source: TableLike,
    *,
    name: str,
    id_column: str | None = None,
    prefer: str | None = None,
    columns: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    text: TextColumns | None = None,
    separators: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    id_type: str = "auto",
    form: TextForm | None = None,
) -> pa.Table:
    """Read the texts of items or users, one row each, clean them, and give them the names of their roles.

    Args:
        source: any source of `readers.open_source`.
        name: `item_id` or `user_id`, the name of the ids in the result.
        id_column: column of ids; `None` means `prefer` if there is one, else `name`, else the one column with a known name.
        prefer: column of the ids in the interactions.
        columns: the columns to keep, in addition to those of `text` (`None`: all).
        exclude: columns to leave out.
        text: role -> its column, or several that are joined: `title`, `brand`, `categories`, `description` of items, `biography`
            of users. A role that is neither given nor a column is guessed from known names (`column_roles.KNOWN_TEXTS`).
        separators: column -> separator of several texts in one; the categories that are guessed are separated at `|`.
        flags: columns of `1` and `0`; the names of those that are `1` become the `categories`.
        id_type: as in `open_interactions`.
        form: as in `open_interactions`.

    Returns:
        The table as `interactions.clean_text_table` returns it.

    Raises:
        MissingFileError, InputError: as `readers.open_source` and `interactions.clean_text_table`; a column is missing.

    Example:
        >>> read_texts([{"movieId": 1, "movie_title": "Heat &amp; Dust", "genres": "Drama|Romance"}], name="item_id").to_pylist()
        [{'item_id': 1, 'title': 'Heat & Dust', 'categories': ['Drama', 'Romance']}]
    """
    opened = open_source(source, form, everything=columns is None)
    entity = name.removesuffix("_id")
    if id_column is None:
        id_column = prefer if prefer in opened.columns else find_column(name, opened.columns, opened.name, f"{entity}s_id_column")
    if id_column is None or id_column not in opened.columns:
        wanted = id_column or name
        raise InputError(
            f"{opened.name}: no column {wanted!r}; it has {first_columns(opened.columns)}"
            f"{nearest_names(wanted, opened.columns)}; name it with {entity}s_id_column"
        )
    given = {role: found for role, found in check_text_columns(text).items() if role in roles_of(name)}
    for column in exclude:
        if column not in opened.columns:
            listed = first_columns(opened.columns)
            raise InputError(
                f"{opened.name}: no column {column!r} to exclude; it has {listed}{nearest_names(column, opened.columns)}"
            )
        if column == id_column:
            raise InputError(f"{opened.name}: {column!r} is the column of ids and cannot be excluded")
    needed = list(dict.fromkeys([id_column, *(columns or ()), *(column for found in given.values() for column in found)]))
    kept = (*opened.columns, *needed) if columns is None else (*needed, *flags)
    kept = tuple(column for column in dict.fromkeys([id_column, *kept]) if column not in exclude or column in needed[1:])
    if name != id_column and name in kept:
        raise InputError(f"{opened.name}: ids are read from {id_column!r}, but there is a column {name!r}; exclude it")
    reader = opened.read(kept, needed)
    guessed = guess_texts([column for column in reader.schema.names if column != id_column], given, name)
    table = reader.read_all()
    if not table.num_rows:
        raise InputError(f"{opened.name} has no rows")
    field = table.schema.field(id_column)
    _refuse_mixed(field, name, opened.name, id_type)
    ids = typed_ids(table[id_column], name, opened.name, id_type, opened.untyped)
    others = {column: table[column] for column in table.column_names if column not in (id_column, *flags)}
    if flags:
        others["categories"] = flagged_names(table.select(list(flags)))
    cleaned = clean_text_table(pa.table({name: ids, **others}), name)
    return _with_roles(cleaned, given, guessed, separators or {}, name, opened.name)


def typed_ids(
    column: pa.ChunkedArray | pa.Array, name: str, source: object, id_type: str = "auto", untyped: bool = True, first_row: int = 1
) -> pa.ChunkedArray | pa.Array:
    """Convert ids to a type.

    Args:
        column: the ids.
        name: `user_id` or `item_id`.
        source: the file of the ids, for the message.
        id_type: `string`, `integer`, or `auto`: if the source is `untyped` and all ids are whole numbers without leading
            zeros, which fit into 64 bits, they become integers; otherwise they keep their type.
        untyped: whether the source has no types, as CSV files and the keys of JSON objects.
        first_row: number of the first row in messages.

    Raises:
        InputError: an id is empty, or is no whole number although `id_type` is `integer`.

    Example:
        >>> typed_ids(pa.array(["7", "10"]), "item_id", "a.csv").to_pylist()
        [7, 10]
    """
    if id_type not in ID_TYPES:
        raise InputError(f"id_type must be one of {', '.join(ID_TYPES)}, got {id_type!r}")
    if id_type == "auto" and not untyped:
        return column
    ids = check_ids(column, name, first_row)
    if id_type == "string":
        return ids.cast(pa.large_string())
    if pa.types.is_integer(ids.type):
        return ids
    whole = _fits(ids)
    if pc.all(whole).as_py():
        return ids.cast(pa.int64())
    if id_type == "auto":
        _refuse_floats(ids, name, str(source))
        return ids
    others = pc.filter(ids, pc.invert(whole))
    raise InputError(
        f"{source}: with id_type integer, {name} must be plain whole numbers, got {first_of(others)} (64 bits at most); "
        "id_type='string' keeps them as they are"
    )


def _fits(ids: pa.Array) -> pa.Array:
    """Check which texts are whole numbers of 64 bits without leading zeros."""
    whole = pc.match_substring_regex(ids, WHOLE)
    # Of 19 digits and a sign at most, those above 2**63 - 1 are too large; texts of one length compare as numbers do.
    digits = pc.replace_substring(ids, "-", "", max_replacements=1)
    large = pc.and_(pc.equal(pc.utf8_length(digits), 19), pc.greater(digits, pa.scalar(str(2**63 - 1), digits.type)))
    return pc.and_(whole, pc.invert(large))


def _refuse_floats(ids: pa.Array, name: str, source: str) -> None:
    """Refuse ids such as `1.0`, which are not those of other files."""
    if len(ids) and pc.all(pc.match_substring_regex(ids, FRACTION)).as_py():
        raise InputError(
            f"{source}: {name} holds {first_of(ids[:1])}, an integer that was written as a fraction, and so are all others; "
            f"write the file again after frame[{name!r}].astype('Int64'), or pass id_type='string' to keep the texts as they are"
        )


def _refuse_mixed(field: pa.Field, name: str, source: str, id_type: str) -> None:
    """Refuse ids of several types, of which 7 and '7' would become one."""
    if id_type != "string" and (field.metadata or {}).get(b"mixed") == MIXED[b"mixed"]:
        raise InputError(
            f"{source}: {name} mixes numbers and texts, and 7 is not '7'; convert them to one type with "
            f"frame[{name!r}].astype(str), or pass id_type='string'"
        )


def _find_roles(source: Source, given: Mapping[str, str | None]) -> dict[str, str]:
    """Find the column of each role, and log those that are guessed."""
    named = {role: column for role, column in given.items() if column is not None}
    if len(set(named.values())) < len(named):
        raise InputError(f"two columns would be read from the same one: {named}; name a different column for each")
    roles = dict(named)
    for column in named.values():
        if column not in source.columns:
            raise InputError(_no_column(source, column))
    for role in KNOWN_COLUMNS:
        if role in named:
            continue
        if role in ("user_id", "item_id") and role in roles.values():
            raise InputError(f"two columns would be read from the same one: {role}, as {named}; name a different column for each")
        found = find_column(role, source.columns, source.name, ARGUMENTS[role], tuple(roles.values()))
        if found is not None and found not in roles.values():
            roles[role] = found
        elif role in ("user_id", "item_id"):
            raise InputError(f"{_no_column(source, role)}; name it with {ARGUMENTS[role]}")
    guessed = [f"{role} from {column}" for role, column in roles.items() if role not in named and column != role]
    if guessed:
        logger.info("%s: %s (guessed from the names)", source.name, ", ".join(guessed))
    if "timestamp" in given and "timestamp" not in roles:
        likely = likely_time_columns([column for column in source.columns if column not in roles.values()])
        if likely:
            logger.info(
                "%s: no times are read; %s may be a column of times: --timestamp-column %s, in Python timestamp_column=%r",
                source.name,
                " or ".join(map(repr, likely)),
                likely[0],
                likely[0],
            )
    order = [role for role in given if role in roles]
    return {role: roles[role] for role in order}


def _no_column(source: Source, name: str) -> str:
    listed = first_columns(source.columns)
    looks_like_data = source.untyped and any(column.strip('"').isdigit() for column in source.columns)
    hint = "; the first line looks like data: write a line of names above it" if looks_like_data else ""
    return f"{source.name}: no column {name!r}; it has {listed}{nearest_names(name, source.columns)}{hint}"


def _id_kind(sources: Sequence[Source], column: str, name: str, id_type: str, expand: Expand | None) -> str:
    """Return how the ids are converted: `string`, `integer`, or `keep`."""
    if id_type != "auto":
        return id_type
    if not any(source.untyped for source in sources) or expand is not None:
        return "string" if expand is not None else "keep"
    floats: list[str] = []
    for source in sources:
        for batch in source.read([column], [column]):
            ids = pc.fill_null(batch.column(0).cast(pa.large_string()), "")
            others = ids.filter(pc.invert(_fits(ids)))
            fractions = not len(others) or pc.all(pc.match_substring_regex(others, FRACTION)).as_py()
            if 0 < len(others) < len(ids) or not fractions:
                return "string"
            floats += others[:1].to_pylist()
    if floats:
        _refuse_floats(pa.array(floats, pa.large_string()), name, sources[0].name)
    return "integer"


def _rows(
    parts: Mapping[str, Source],
    roles: Mapping[str, str],
    kinds: Mapping[str, str],
    time_format: str | None,
    expand: Expand | None,
) -> Iterator[pa.Table]:
    """Yield tables with the columns of this package."""
    for split, source in parts.items():
        present = {role: column for role, column in roles.items() if column in source.columns}
        missing = [column for role, column in roles.items() if role not in present]
        if missing:
            raise InputError(_no_column(source, missing[0]))
        reader = source.read(list(dict.fromkeys(present.values())), list(present.values()))
        for name in ("user_id", "item_id"):
            _refuse_mixed(reader.schema.field(roles[name]), name, source.name, kinds[name])
        first_row = 1
        for batch in reader:
            if not batch.num_rows:
                continue
            table = pa.Table.from_batches([batch])
            if expand is not None:
                table = expand(table)
            columns = {role: table[column] for role, column in present.items()}
            for name, kind in kinds.items():
                if kind != "keep":
                    columns[name] = typed_ids(columns[name], name, source.name, kind, source.untyped, first_row)
            if time_format is not None and "timestamp" in columns:
                columns["timestamp"] = _parsed_times(columns["timestamp"], time_format, source.name, first_row)
            if split:
                columns["split"] = pa.array([split] * table.num_rows, pa.large_string())
            first_row += batch.num_rows
            if table.num_rows:
                yield pa.table(columns)


def _parsed_times(column: pa.ChunkedArray, time_format: str, source: str, first_row: int) -> pa.Array:
    """Convert texts of times to UTC."""
    times = pd.to_datetime(column.to_pandas(), format=time_format, errors="coerce", utc=True)
    bad = np.flatnonzero(times.isna().to_numpy())
    if len(bad):
        value = column[int(bad[0])].as_py()
        raise InputError(f"{source}: timestamp in row {first_row + int(bad[0])} is {value!r}; the form is {time_format!r}")
    return pa.array(times.dt.tz_localize(None).dt.as_unit("ms"))


def _with_roles(
    table: pa.Table,
    given: Mapping[str, Sequence[str]],
    guessed: Mapping[str, Sequence[str]],
    separators: Mapping[str, str],
    name: str,
    source: str,
) -> pa.Table:
    """Give the text columns the names of their roles, and log which columns are read."""
    columns = {column: table[column].combine_chunks() for column in table.column_names}
    for column, separator in separators.items():
        if column in columns and not pa.types.is_list(columns[column].type):
            columns[column] = split_texts(columns[column], separator)
    named = {**given, **guessed}
    used = {column for found in named.values() for column in found}
    made: dict[str, pa.Array] = {}
    for role, found in named.items():
        if len(found) > 1:
            made[role] = join_columns([columns[column] for column in found], as_list=role == "categories")
        else:
            made[role] = columns[found[0]]
        if role == "categories" and found[0] != role and pa.types.is_large_string(made[role].type):
            if pc.any(pc.match_substring(made[role], SEPARATED)).as_py():
                made[role] = split_texts(made[role], SEPARATED)
    kept = {column: values for column, values in columns.items() if column not in used and column not in made}
    result = pa.table({name: kept.pop(name), **made, **kept})
    read = [
        f"{role} from {' and '.join(named[role])}" if role in named and tuple(named[role]) != (role,) else role
        for role in roles_of(name)
        if role in result.column_names
    ]
    unread = [column for column in kept if column not in roles_of(name)]
    logger.info(
        "%s: texts that models read: %s%s%s",
        source,
        ", ".join(read) or "none",
        f"; kept, not read by models: {', '.join(unread)}" if unread else "",
        f"; give one a role: --text {roles_of(name)[0]}={unread[0]!r}, in Python text={{{roles_of(name)[0]!r}: {unread[0]!r}}}"
        if unread and not read
        else "",
    )
    return result
