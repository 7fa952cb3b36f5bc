"""Tables of a data folder as Arrow files that processes map: they take memory only where they are read, and share it.

The files are made from the Parquet files by the first process that loads the folder, and stay in its hidden folder `.arrow` until
those files change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.errors import CLLM4RecError
from modeling_cllm4rec.core.ragged import RaggedRows
from modeling_cllm4rec.corpora.atomic_files import atomic_file, atomic_folder

FOLDER = ".arrow"
VERSION = 1
"""Version of the files; those of other versions are made again."""
ROWS_OF_BATCH = 1_000_000
"""Rows that are written, and later read, together."""

logger = logging.getLogger(__name__)


class Histories(NamedTuple):
    """Item indices of many users as compressed rows: user i has `items[indptr[i]:indptr[i + 1]]`.

    Attributes:
        indptr: (users + 1,) int64 start of each user.
        items: (nnz,) int32 item indices.
    """

    indptr: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]

    def rows(self) -> RaggedRows:
        """Return the histories as a sequence with one array of item indices for each user, which are views.

        Example:
            >>> rows = Histories(np.array([0, 2, 3]), np.array([7, 8, 9], dtype=np.int32)).rows()
            >>> len(rows), rows[0].tolist()
            (2, [7, 8])
        """
        return RaggedRows(self.items, self.indptr)


def mapped_folder(folder: Path, sources: Sequence[Path], write: Callable[[Path], None]) -> Path | None:
    """Return the folder of the mapped files, which `write` fills if there is none of the sources as they are now.

    Args:
        folder: the data folder.
        sources: the files that the mapped ones are made from; they exist.
        write: writes the files into an empty folder.

    Returns:
        The folder; `None` if nothing can be written into the data folder, which is logged.
    """
    state = [VERSION, *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources)]
    place = folder.resolve() / FOLDER / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    if place.is_dir():
        return place
    logger.info("%s: the tables are written once as files that processes map (%s)", folder, place.parent)
    try:
        with atomic_folder(place, unique=True) as temporary:
            write(temporary)
    except CLLM4RecError:
        raise
    except OSError as error:
        logger.warning(
            "%s: nothing can be written there (%s), so each process loads the tables into its own memory", folder, error
        )
        return None
    for other in place.parent.iterdir():
        if other != place and not other.name.startswith("."):  # Those with a dot are being written, or are swept later.
            shutil.rmtree(other, ignore_errors=True)
    return place


def write_mapped(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write a table that comes in parts to an Arrow file, in batches of `ROWS_OF_BATCH` rows."""
    writer, waiting = None, []
    try:
        for table in tables:
            if writer is None:
                writer = pa.ipc.new_file(str(path), table.schema)
            waiting.append(table)
            if sum(part.num_rows for part in waiting) >= ROWS_OF_BATCH:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
        if waiting and writer is not None:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    finally:
        if writer is not None:
            writer.close()


def read_mapped(path: Path) -> pa.Table:
    """Map an Arrow file."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def collect_histories(interactions: pa.Table, splits: Sequence[str], num_users: int, folder: Path | None = None) -> Histories:
    """Return the items of each user in some splits, in the order of the rows.

    Args:
        interactions: `user_index`, `item_index` and `split`, sorted by user.
        splits: names of splits.
        num_users: number I of users.
        folder: where the histories are kept as files that are mapped; `None`: they are in memory.
    """
    names = pa.array(splits, interactions["split"].type)
    batches = interactions.select(["user_index", "item_index", "split"]).to_batches()
    if folder is None:
        counts, items = np.zeros(num_users, dtype=np.int64), []
        for batch in batches:
            chosen = batch.filter(pc.is_in(batch["split"], value_set=names))
            counts += np.bincount(chosen["user_index"].to_numpy(), minlength=num_users)
            items.append(chosen["item_index"].to_numpy().astype(np.int32))
        return Histories(_starts(counts), np.concatenate([np.zeros(0, dtype=np.int32), *items]))
    paths = [folder / f"histories-{'-'.join(sorted(splits))}.{part}.npy" for part in Histories._fields]
    if not all(path.is_file() for path in paths):
        counts = np.zeros(num_users, dtype=np.int64)
        for batch in batches:
            users = batch.filter(pc.is_in(batch["split"], value_set=names))["user_index"].to_numpy()
            if len(users):  # Rows are sorted by user, so the users of a batch are a short range.
                counts[users[0] : users[-1] + 1] += np.bincount(users - users[0])
        indptr = _starts(counts)
        with atomic_file(paths[1]) as temporary:
            stored = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.int32, shape=(int(indptr[-1]),))
            start = 0
            for batch in batches:
                items_of_batch = batch.filter(pc.is_in(batch["split"], value_set=names))["item_index"].to_numpy()
                stored[start : start + len(items_of_batch)] = items_of_batch
                start += len(items_of_batch)
            stored.flush()
            del stored
        with atomic_file(paths[0]) as temporary, open(temporary, "wb") as file:
            np.save(file, indptr)
    return Histories(*(np.load(path, mmap_mode="r").view(np.ndarray) for path in paths))


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


__all__ = ["Histories", "collect_histories", "mapped_folder", "read_mapped", "write_mapped"]
