"""Columns of times: any form -> numbers that keep the full value, and the unit that they count.

Numbers are never rounded. Integers stay as they are, and their unit is recognised by its magnitude: seconds, milliseconds,
microseconds and nanoseconds since 1970 differ by a factor of a thousand, and times of one log do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.bad_rows import reject

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Unit -> how many of it are one second."""
ORDER = "order"
"""The unit of fractions that no unit down to nanoseconds holds exactly: they order interactions, and are stored as float64."""
SMALLEST = {"s": 10**8, "ms": 10**11, "us": 10**14, "ns": 10**17}
"""Unit -> the magnitude from which a number is taken to count it: 1973 for all four. Smaller numbers fit any unit."""
LIMIT = 2**63
"""Times are stored as int64, so their magnitude is below this."""
TOO_LARGE = "timestamp does not fit into 64 bits"
"""Message about a time beyond 64 bits."""
FAR_DATE = f"{TOO_LARGE} in ns, which pandas 2 counts in all dates and pandas 3 in dates with nine decimals,"
COMPLAINT = "timestamp is neither seconds since 1970 nor an ISO-8601 time"
OTHER_DATES = "write such dates as 2024-12-31, with pandas: frame[COLUMN] = pandas.to_datetime(frame[COLUMN], dayfirst=True)"
"""Advice about dates in another form than ISO-8601."""
DATE = r"^\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\b"
"""A text that begins with a date in any order of day, month and year."""
_TIME_WORDS = ("time", "date", "_dt", "dt_", "timestamp", "_ts", "_at", "created", "when", "unix")


def parse_times(column: pa.Array, first_row: int = 1) -> pa.Array:
    """Convert numbers, ISO-8601 texts or datetimes to one of three types, without rounding.

    Args:
        column: (rows,) integers, floats, texts, dates or timestamps.
        first_row: number of the first row in messages.

    Returns:
        (rows,) int64 for whole numbers, float64 for others, and for dates and texts timestamps in the coarsest unit that holds
        them all.

    Raises:
        InputError: a time is missing, in none of these forms, or does not fit into 64 bits.

    Example:
        >>> parse_times(pa.array(["1970-01-01T00:00:01.5", "1970-01-01"], pa.large_string())).type
        TimestampType(timestamp[ms])
    """
    reject(column, pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False), COMPLAINT, first_row)
    kind = column.type
    if pa.types.is_integer(kind):
        if kind == pa.uint64():
            large = pc.greater_equal(column, pa.scalar(LIMIT, kind)).to_numpy(zero_copy_only=False)
            reject(column, large, TOO_LARGE, first_row)
        return column.cast(pa.int64())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _whole_if_possible(column.cast(pa.float64()).to_numpy(zero_copy_only=False), column, first_row)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        if pa.types.is_date(kind):
            column = column.cast(pa.timestamp("s" if pa.types.is_date32(kind) else "ms"))
        return _coarsest(column.cast(pa.int64()).to_numpy(), column.type.unit)
    if pa.types.is_large_string(kind):
        return _parse_texts(column, first_row)
    raise InputError(f"{COMPLAINT}, got {kind}")


def unit_of(smallest: int | float, largest: int | float) -> str | None:
    """Return the unit that numbers of these magnitudes count, `None` if they fit any, as 1, 2, 3, ... do.

    Args:
        smallest: least magnitude of those that `SMALLEST["s"]` or more.
        largest: greatest magnitude.

    Raises:
        InputError: the two magnitudes are of different units.

    Example:
        >>> unit_of(1_593_878_903_000, 1_593_878_904_000)
        'ms'
    """
    units = [[unit for unit in UNITS if SMALLEST[unit] <= value] for value in (smallest, largest)]
    if not units[1]:
        return None
    if len(units[0]) != len(units[1]):
        raise InputError(
            f"timestamp mixes units: {smallest:.15g} counts {units[0][-1]} and {largest:.15g} counts {units[1][-1]} since 1970; "
            "write all times in one unit"
        )
    return units[0][-1]


def exact_units(unit: str | None) -> Sequence[tuple[str, int]]:
    """Return the units in which fractions of `unit` may be whole, the coarsest first, and the factor to each.

    >>> exact_units("ms")
    [('us', 1000), ('ns', 1000000)]
    """
    names = list(UNITS)
    start = names.index(unit or "s")
    return [(finer, UNITS[finer] // UNITS[names[start]]) for finer in names[start + 1 :]]


def likely_time_columns(names: Sequence[str]) -> list[str]:
    """Return the names that look like those of a column of times.

    >>> likely_time_columns(["asin", "unixReviewTime", "t_dat", "price"])
    ['unixReviewTime', 't_dat']
    """
    return [name for name in names if name == "ts" or any(word in name.lower() for word in (*_TIME_WORDS, "t_dat"))]


def _parse_texts(column: pa.Array, first_row: int) -> pa.Array:
    """Convert texts: all of them whole numbers, numbers, or ISO-8601 times."""
    texts = pc.utf8_trim_whitespace(column)
    if pc.all(pc.match_substring_regex(texts, r"^-?\d{1,18}$")).as_py():
        return texts.cast(pa.int64())
    numbers = pd.to_numeric(texts.to_pandas(), errors="coerce").to_numpy(np.float64)
    if np.isnan(numbers).all():
        times = pd.to_datetime(column.to_pandas(), errors="coerce", utc=True, format="ISO8601")
        bad = times.isna().to_numpy()
        if times.dt.unit == "ns":  # 64 bits count nanoseconds of the years 1678 to 2261
            years = column.to_pandas().str.extract(r"^\s*(\d{4})-", expand=False).astype(np.float64)
            reject(column, bad & ((years < 1678) | (years > 2261)).to_numpy(), FAR_DATE, first_row)
        reject(column, bad, COMPLAINT, first_row, OTHER_DATES if pc.any(pc.match_substring_regex(texts, DATE)).as_py() else "")
        return _coarsest(times.astype("int64").to_numpy(), times.dt.unit)
    strange = np.isnan(numbers)
    if pd.to_datetime(column.filter(pa.array(strange)).to_pandas(), errors="coerce", utc=True, format="ISO8601").notna().all():
        reject(column, strange, "timestamp mixes numbers and dates, so write all in one form; there is a date", first_row)
    reject(column, strange, COMPLAINT, first_row)
    reject(column, np.abs(numbers) >= LIMIT, TOO_LARGE, first_row)
    long = pc.match_substring_regex(texts, r"^[+-]?\d{16,}$").to_numpy(zero_copy_only=False)
    if long.any():  # A float has 15 to 17 digits.
        whole = pc.match_substring_regex(texts, r"^-?\d+$").to_numpy(zero_copy_only=False)
        complaint = "timestamp has whole numbers of 16 and more digits, which fractions in the column would cut, and a fraction"
        reject(column, ~whole, complaint, first_row)
        return texts.cast(pa.int64())
    return _whole_if_possible(numbers, column, first_row)


def _whole_if_possible(numbers: npt.NDArray[np.float64], column: pa.Array, first_row: int) -> pa.Array:
    """Return floats as int64 where all are whole, else as they are."""
    reject(column, ~np.isfinite(numbers), COMPLAINT, first_row)
    reject(column, np.abs(numbers) >= LIMIT, TOO_LARGE, first_row)
    return pa.array(numbers.astype(np.int64) if (numbers == np.floor(numbers)).all() else numbers)


def _coarsest(values: npt.NDArray[np.int64], unit: str) -> pa.Array:
    """Return times in the coarsest unit that holds them all."""
    names = list(UNITS)
    while unit != "s" and not (values % 1000).any():
        values, unit = values // 1000, names[names.index(unit) - 1]
    return pa.array(values).cast(pa.timestamp(unit))


__all__ = ["ORDER", "SMALLEST", "TOO_LARGE", "UNITS", "exact_units", "likely_time_columns", "parse_times", "unit_of"]
