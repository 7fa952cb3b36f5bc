"""Columns of a table of items that the page can show and a saved model does not hold: prices and addresses of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.catalogue import Catalogue
from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.corpora.readers import read_table

PRICE = "price"
"""Name of the column with prices, where none is named."""
MOST_HOSTS = 20
"""Hosts that a policy names one by one; beyond, it allows all hosts of their schemes."""


@dataclass(frozen=True)
class ItemColumns:
    """Prices and addresses of pictures, by item_index.

    Attributes:
        prices: (J,) float64, NaN where unknown; None without a column of prices.
        images: J addresses, None where an item has none; None without a column of pictures.
    """

    prices: npt.NDArray[np.float64] | None = None
    images: list[str | None] | None = None

    @classmethod
    def read(
        cls, catalogue: Catalogue, items: Any = None, *, images: str | None = None, prices: str | None = None
    ) -> ItemColumns:
        """Read the columns of a table of items.

        Args:
            catalogue: the items of the models; rows of other items are passed over.
            items: table or file (Parquet, CSV, JSON lines) with `item_id`; None for the catalogue's own table.
            images: column with the address of a picture, or a list of which the first counts; None shows no pictures.
            prices: column of numbers, also as text; None takes `price` if it is there and holds numbers.

        Raises:
            InputError: no such column, prices that are no numbers, or an address that is not http or https.

        Example:
            >>> table = pa.table({"item_id": ["B2", "B1"], "price": [2.5, None]})
            >>> ItemColumns.read(Catalogue(["B1", "B2"]), table).prices.tolist()
            [nan, 2.5]
        """
        table = catalogue.table if items is None else items if isinstance(items, pa.Table) else read_table(items)
        for argument, column in (("images", images), ("prices", prices), ("items", "item_id")):
            if column is not None and column not in table.column_names:
                raise InputError(
                    f"{argument} is {column!r}, which is no column of the items; {nearest(column, table.column_names)}"
                    + ("" if items is not None else "; give the table of items that has it (items)")
                )
        if prices is None and PRICE in table.column_names and _numbers(table[PRICE]) is not None:
            prices = PRICE
        given = catalogue.ids.indices_of(_typed(catalogue, table["item_id"]), "skip")
        rows = np.full(len(catalogue), -1)
        rows[given[given >= 0]] = np.flatnonzero(given >= 0)
        take = pa.array(rows, mask=rows < 0)
        return cls(
            None if prices is None else _prices(prices, table[prices].take(take)),
            None if images is None else _addresses(images, table[images].take(take)),
        )

    @property
    def image_hosts(self) -> list[str]:
        """Return the origins of all pictures (`https://host`), or their schemes where there are many hosts."""
        parts = [urlsplit(address) for address in self.images or [] if address]
        hosts = sorted({f"{part.scheme}://{part.netloc}" for part in parts})
        return hosts if len(hosts) <= MOST_HOSTS else sorted({f"{part.scheme}:" for part in parts})

    def image(self, index: int) -> str | None:
        """Return the address of an item's picture."""
        return None if self.images is None else self.images[index]

    def price(self, index: int) -> float | None:
        """Return the price of an item, None where it is unknown."""
        found = None if self.prices is None else float(self.prices[index])
        return None if found is None or np.isnan(found) else found


def _typed(catalogue: Catalogue, ids: pa.ChunkedArray) -> list[Any]:
    """Return ids in the type of the catalogue's: a CSV file has all of them as text."""
    if catalogue.ids.is_text == pa.types.is_integer(ids.type):
        return catalogue.ids.parse(pc.cast(ids, pa.string()).to_pylist())
    return list(ids.to_pylist())


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column as float64, None if it does not hold numbers. A CSV file has them as text."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, column.type), trimmed)
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        return None
    try:
        return pc.cast(column, pa.float64())
    except pa.ArrowInvalid:
        return None


def _prices(name: str, column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    numbers = _numbers(column)
    if numbers is None:
        raise InputError(f"prices is {name!r}, a column of {column.type}; it must hold numbers; convert it first")
    return np.asarray(pc.fill_null(numbers, float("nan")).to_numpy(), dtype=np.float64)


def _addresses(name: str, column: pa.ChunkedArray) -> list[str | None]:
    found: list[str | None] = []
    for value in column.to_pylist():
        first = next(iter(value), None) if isinstance(value, list) else value
        if first is not None and not isinstance(first, str):
            raise InputError(
                f"images is {name!r}, a column of {column.type}; it must hold addresses of pictures, or lists of them"
            )
        address = (first or "").strip() or None
        if address is not None:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.netloc or set(address) & set(" ;,'\"<>\\"):
                raise InputError(
                    f"images is {name!r}, which holds {address[:100]!r}; allowed are addresses that begin with https:// or "
                    "http:// and have no spaces, quotes, commas or semicolons; correct the column"
                )
        found.append(address)
    return found
