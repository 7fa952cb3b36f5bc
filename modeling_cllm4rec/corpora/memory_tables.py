"""Tables in memory, of any library, as Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.json_files import MIXED

TableLike: TypeAlias = Any
"""A path or name, or a table in memory: pandas, polars, pyarrow, `datasets.Dataset`, or a list of dicts."""


def is_in_memory(source: TableLike) -> bool:
    """Check whether a source is a table in memory, not a path or a name."""
    return not isinstance(source, (str, Path))


def as_table(source: TableLike) -> pa.Table:
    """Return a table in memory as an Arrow table.

    Columns of several scalar types become text, and their fields say so (see `json_files.MIXED`).

    Raises:
        InputError: it is none of the kinds that `open_source` names.
    """
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatchReader):
        return source.read_all()
    if isinstance(source, pd.DataFrame):
        names = [str(name) for name in source.columns]
        if len(set(names)) < len(names):
            raise InputError("the table: two columns have the same name; rename one of them")
        return _from_columns({name: source.iloc[:, place] for place, name in enumerate(names)})
    if hasattr(source, "__arrow_c_stream__"):  # polars, and others that offer the interface of Arrow
        return pa.table(source)
    if isinstance(source, (list, tuple)) and all(isinstance(row, Mapping) for row in source):
        keys = dict.fromkeys(key for row in source for key in row)
        return _from_columns({str(key): [row.get(key) for row in source] for key in keys})
    if type(source).__module__.startswith("datasets."):
        if isinstance(source, Mapping):
            first = next(iter(source))
            raise InputError(f"the data set has the splits {', '.join(source)}; pass one of them, such as dataset[{first!r}]")
        return source.with_format("arrow")[:]
    hint = "; call collect() first" if hasattr(source, "collect") else ""
    raise InputError(
        f"a table must be a path, a data frame of pandas or polars, a pyarrow.Table, a datasets.Dataset or a list of dicts, got "
        f"{type(source).__module__}.{type(source).__qualname__}{hint}"
    )


def _from_columns(values: Mapping[str, Any]) -> pa.Table:
    """Build a table from lists and columns of pandas; a column of several scalar types becomes text."""
    columns, fields = [], []
    for name, column in values.items():
        metadata = None
        try:
            array = pa.array(column, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            if any(isinstance(value, (dict, list, bytes)) for value in column):
                raise InputError(f"column {name!r} holds objects and other values; leave it out") from None
            texts = [None if _is_missing(value) else str(value) for value in column]
            array, metadata = pa.array(texts, pa.large_string()), MIXED
        columns.append(array)
        fields.append(pa.field(name, array.type, metadata=metadata))
    return pa.table(columns, pa.schema(fields))


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)
