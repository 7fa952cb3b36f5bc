"""The prepared data folder: interactions, items and users as Parquet, their description as JSON."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from modeling_cllm4rec.core.errors import CLLM4RecError, ExistingFileError, FileWriteError, InputError, MissingFileError
from modeling_cllm4rec.corpora.atomic_files import atomic_folder, sweep_folder
from modeling_cllm4rec.corpora.bad_rows import first_of
from modeling_cllm4rec.corpora.hub_folders import (
    BENCHMARK_FILE,
    benchmark_description,
    check_data_folder,
    download,
    is_hub_name,
    origin_of,
    upload,
)
from modeling_cllm4rec.corpora.interaction_files import (
    INTERACTION_TYPES,
    POSITION,
    check_interaction_table,
    interaction_parts,
    read_parquet,
    require_file,
)
from modeling_cllm4rec.corpora.interactions import check_texts, is_written
from modeling_cllm4rec.corpora.mapped_tables import Histories, collect_histories, mapped_folder, read_mapped, write_mapped
from modeling_cllm4rec.corpora.splits import SPLITS
from modeling_cllm4rec.corpora.times import ORDER, UNITS

FORMAT = 2
"""Version of the format of the folder. Format 1 had one file of interactions, with a column of splits and without ids."""
TABLES = ("items", "users")
"""Files of one row per item or user; the interactions have one file per split."""
INFO_FILE = "dataset.json"
README = "README.md"
FILES = (README, INFO_FILE, *(f"{name}.parquet" for name in (*TABLES, *SPLITS)))
"""All files of the folder that are read and uploaded."""
HELD_OUT_REVIEWS = "held_out_reviews"
"""File of the reviews of validation and test pairs, where `prepare` was asked for it; training reads no such file."""
ROW_GROUP = 100_000
"""Rows that a writer of a table holds in memory together."""
MAPPED_BYTES = 4 << 20
"""Size of the Parquet files from which on their tables are mapped; smaller ones are loaded faster than they are mapped."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecommendationData:
    """A prepared data folder.

    Attributes:
        users: row i is user_index i; `user_id` and text columns.
        items: row j is item_index j; `item_id` and text columns.
        interactions: one row per (user, item) pair: `user_index`, `item_index` (int32), `split`, and optionally `rating`,
            `timestamp` (see `time_unit`), `review`; sorted by user_index, then by time (or by order in the source).
        info: the contents of `dataset.json`: `format`, `statistics`, `protocol`, `sources`.
        folder: path of the folder.
        mapped: the interactions that are mapped, and the folder of their files, if they are; see `mapped_tables`.
    """

    users: pa.Table
    items: pa.Table
    interactions: pa.Table
    info: dict[str, Any]
    folder: Path
    mapped: tuple[pa.Table, Path] | None = field(default=None, repr=False, compare=False)

    @property
    def num_users(self) -> int:
        """Return the number I of users."""
        return int(self.users.num_rows)

    @property
    def num_items(self) -> int:
        """Return the number J of items."""
        return int(self.items.num_rows)

    @property
    def repository(self) -> str | None:
        """Return the dataset repository of the Hub that the folder came from, None for a local folder."""
        origin = origin_of(self.folder)
        return None if origin is None else origin[0]

    @property
    def revision(self) -> str | None:
        """Return the commit of the dataset repository that the folder came from, None for a local folder."""
        origin = origin_of(self.folder)
        return None if origin is None else origin[1]

    @property
    def name(self) -> str:
        """Return the name of the folder, or `OWNER/NAME` of one that came from the Hub."""
        return self.repository or self.folder.resolve().name

    @property
    def time_unit(self) -> str:
        """Return the unit of `timestamp`: `s`, `ms`, `us` or `ns` since 1970, or `order` for numbers that only order."""
        return str(self.info.get("time_unit", "s"))

    @classmethod
    def load(cls, folder: str | Path) -> RecommendationData:
        """Read a prepared folder.

        A folder of more than `MAPPED_BYTES` is read into memory only where it is used, and processes share that memory. The
        first process writes the files for this into the folder.

        Args:
            folder: a path; or `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, a folder on the Hub, which is downloaded into the
                cache of `huggingface_hub`.

        Raises:
            MissingFileError: the folder or one of its files is missing, or cannot be downloaded.
            InputError: a file cannot be read or has another format, or the tables do not fit together.
        """
        folder = download(str(folder)) if is_hub_name(folder) else Path(folder)
        check_data_folder(folder)
        info = _read_info(folder / INFO_FILE)
        sources = [folder / f"{name}.parquet" for name in (*TABLES, *SPLITS)]
        for source in sources:
            require_file(source)
        place = None
        if sum(source.stat().st_size for source in sources) >= MAPPED_BYTES:
            place = mapped_folder(folder, sources, lambda temporary: _write_mapped(folder, temporary, info))
        if place is not None:
            tables = {name: read_mapped(place / f"{name}.arrow") for name in (*TABLES, "interactions")}
            data = cls(info=info, folder=folder, mapped=(tables["interactions"], place), **tables)
            data.check_counts()  # All else was checked when the files were written.
            return data
        tables = {name: read_parquet(folder / f"{name}.parquet") for name in TABLES}
        data = cls(info=info, folder=folder, interactions=pa.concat_tables(interaction_parts(folder)).combine_chunks(), **tables)
        data.validate()
        return data

    def save(self, folder: str | Path, overwrite: bool = False) -> RecommendationData:
        """Write the folder, whole or not at all.

        Args:
            folder: must not exist, or be empty.
            overwrite: whether to replace an existing data folder, once the new one is complete.

        Returns:
            The same data with its new path.

        Raises:
            ExistingFileError: the folder holds something that must not be replaced.
            InputError: the tables do not fit together.
            FileWriteError: the folder cannot be written, such as on a full disk.
        """
        folder = Path(folder)
        self.validate()
        with new_folder(folder, overwrite) as temporary:
            files = write_tables(temporary, self.users, self.items, [self.interactions])
            write_description(temporary, folder, self.info, files)
        return replace(self, folder=folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        benchmark: bool = False,
        token: str | None = None,
        message: str | None = None,
    ) -> str:
        """Upload the folder, with its card, to a dataset repository of the Hub.

        The files hold the histories of all users, so a new repository is private by default.

        Args:
            repo_id: `OWNER/NAME`, or `NAME` in your own account; made if there is no such repository.
            private: whether a new repository is private; an existing one stays as it is.
            benchmark: add `eval.yaml`, which declares leaderboards of its test split; see `hub_folders.benchmark_description`.
            token: access token; None uses that of `hf auth login` or `HF_TOKEN`.
            message: commit message.

        Returns:
            Address of the commit.

        Raises:
            MissingFileError: the folder does not exist, because it was not saved.
        """
        if not (self.folder / INFO_FILE).is_file():
            raise MissingFileError(f"{self.folder} is no data folder on disk; save it first, then push it")
        more = {BENCHMARK_FILE: benchmark_description(self.name, self.info).encode()} if benchmark else {}
        return upload(self.folder, FILES, repo_id, private=private, more=more, token=token, message=message)

    def split(self, name: str) -> pa.Table:
        """Return the interactions of a split as its file has them.

        Args:
            name: `train`, `validation` or `test`.

        Returns:
            `user_id`, `item_id`, the optional columns of `interactions`, `position` (int32, the number of the row among all
            interactions of its user, from 0), `user_index` and `item_index`.

        Raises:
            InputError: there is no such split.
        """
        if name not in SPLITS:
            raise InputError(f"name is {name!r}; a split must be one of {', '.join(SPLITS)}")
        return _split_rows(_with_positions(self.interactions), self.users, self.items, name)

    def histories(self, *splits: str) -> Histories:
        """Return the items of each user in some splits, in the order of the file (by time, if there are timestamps).

        Args:
            splits: one or more of `train`, `validation`, `test`.

        Returns:
            Histories of all I users; users without an interaction in these splits have an empty history.

        Raises:
            InputError: no split is named, or one is unknown.
        """
        unknown = [name for name in splits if name not in SPLITS]
        if unknown or not splits:
            raise InputError(f"splits must be one or more of {', '.join(SPLITS)}, got {list(splits)}")
        # The files are those of the loaded interactions, not of others that a copy of this object has.
        place = self.mapped[1] if self.mapped is not None and self.mapped[0] is self.interactions else None
        return collect_histories(self.interactions, sorted(set(splits)), self.num_users, place)

    def reviews(self) -> pa.Table:
        """Return the training pairs with a review that is not blank: `user_index`, `item_index`, `review`."""
        names = ["user_index", "item_index", "review"]
        if "review" not in self.interactions.column_names:
            return pa.schema([(name, INTERACTION_TYPES[name]) for name in names]).empty_table()
        train = pc.equal(self.interactions["split"], "train")
        return self.interactions.filter(pc.and_(train, is_written(self.interactions["review"]))).select(names)

    def validate(self) -> None:
        """Check that the tables and the statistics fit together.

        Raises:
            InputError: they do not; the table and the column are named.
        """
        check_texts(self.items, "item_id")
        check_texts(self.users, "user_id")
        check_interaction_table(self.interactions, self.num_users, self.num_items, self.time_unit)
        self.check_counts()

    def check_counts(self) -> None:
        """Check that the tables have the numbers of rows that `dataset.json` lists.

        Raises:
            InputError: they have others.
        """
        counts = {"users": self.num_users, "items": self.num_items, "interactions": self.interactions.num_rows}
        for name, count in counts.items():
            if self.info["statistics"].get(name) != count:
                raise InputError(
                    f"{INFO_FILE} lists {self.info['statistics'].get(name)} {name}, but the tables have {count}; "
                    "the files are not of one folder: prepare it again"
                )


def has_validation(data: RecommendationData) -> bool:
    """Check whether the data has validation interactions, and log a warning where it has none."""
    if len(data.histories("validation").items):
        return True
    logger.warning("the data has no validation interactions, so no epoch is selected: the weights of the last epoch are kept")
    return False


class WrittenFiles(NamedTuple):
    """Files of the tables of a data folder.

    Attributes:
        rows: split -> number of rows.
        columns: `interactions`, `items`, `users` -> names of the columns.
    """

    rows: dict[str, int]
    columns: dict[str, list[str]]


class TableWriter:
    """Write a table to Parquet, some rows at a time; the file does not depend on how the rows were divided."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self._waiting: pa.Table | None = None
        self.num_rows = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and self._waiting is not None and (self._waiting.num_rows or self._writer is None):
            self._write(self._waiting)
        if self._writer is not None:
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append rows; all calls have the same columns."""
        self.num_rows += table.num_rows
        waiting = table if self._waiting is None else pa.concat_tables([self._waiting, table])
        whole = waiting.num_rows // ROW_GROUP * ROW_GROUP
        if whole:
            self._write(waiting.slice(0, whole))
        self._waiting = waiting.slice(whole)

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd")
        # One array a column, because the pages of a row group follow the chunks of its columns.
        for start in range(0, max(1, table.num_rows), ROW_GROUP):
            self._writer.write_table(table.slice(start, ROW_GROUP).combine_chunks(), ROW_GROUP)


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, which becomes the data folder when the block ends without an error.

    Raises:
        ExistingFileError: see `check_output`.
        FileWriteError: the folder cannot be written, such as on a full disk.
    """
    check_output(folder, overwrite)
    try:
        # A unique name, because any other folder next to the data folder may belong to the user.
        with atomic_folder(folder.resolve(), unique=True) as temporary:
            yield temporary
    except CLLM4RecError:
        raise
    except OSError as error:
        raise FileWriteError(
            f"the data folder {folder} could not be written ({error}); an earlier data folder is unchanged"
        ) from error


def write_tables(folder: Path, users: pa.Table, items: pa.Table, interactions: Iterable[pa.Table]) -> WrittenFiles:
    """Write the tables of a data folder.

    Args:
        folder: an existing folder.
        users, items: see `RecommendationData`.
        interactions: parts of `RecommendationData.interactions` in order; all rows of a user are in one part.
    """
    with ExitStack() as stack:
        writers = {name: stack.enter_context(TableWriter(folder / f"{name}.parquet")) for name in (*TABLES, *SPLITS)}
        for name, table in (("items", items), ("users", users)):
            writers[name].write(table)
        columns = {name: table.column_names for name, table in (("items", items), ("users", users))}
        for part in interactions:
            numbered = _with_positions(part)
            for name in SPLITS:
                rows = _split_rows(numbered, users, items, name)
                writers[name].write(rows)
                columns = {"interactions": rows.column_names} | columns
    return WrittenFiles({name: writers[name].num_rows for name in SPLITS}, columns)


def write_description(temporary: Path, folder: Path, info: dict[str, Any], files: WrittenFiles) -> None:
    """Write `dataset.json` and the dataset card to the temporary folder that becomes `folder`."""
    (temporary / INFO_FILE).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (temporary / README).write_text(dataset_card(folder.resolve().name, info, files), encoding="utf-8")


def _with_positions(interactions: pa.Table) -> pa.Table:
    """Add the number of each row among those of its user; rows are sorted by user."""
    users = interactions["user_index"].to_numpy()
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    positions = np.arange(len(users)) - np.repeat(starts, np.diff(np.append(starts, len(users))))
    return interactions.append_column(POSITION, pa.array(positions.astype(np.int32)))


def _split_rows(numbered: pa.Table, users: pa.Table, items: pa.Table, name: str) -> pa.Table:
    """Return the rows of a split as its file has them."""
    chosen = numbered.filter(pc.equal(numbered["split"], name))
    ids = {
        "user_id": users["user_id"].take(chosen["user_index"]),
        "item_id": items["item_id"].take(chosen["item_index"]),
    }
    others = ("rating", "timestamp", "review", POSITION, "user_index", "item_index")
    return pa.table(ids | {column: chosen[column] for column in others if column in chosen.column_names})


def check_output(folder: str | Path, overwrite: bool = False) -> None:
    """Check that a data folder may be written to a path.

    Raises:
        ExistingFileError: the path is a file or a folder that is not empty; with `overwrite`, a folder that is not empty and no
            data folder.
    """
    folder = Path(folder)
    sweep_folder(folder.resolve())  # which may put a folder back that a killed process was replacing
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExistingFileError(f"{folder} is a file; the output must be a folder that does not exist yet or is empty")
    names = sorted(path.name for path in folder.iterdir())
    if names and INFO_FILE not in names:
        raise ExistingFileError(
            f"{folder} holds {first_of(names)} and is no data folder, so it is never replaced; choose another output"
        )
    if names and not overwrite:
        raise ExistingFileError(
            f"{folder} holds a data folder already ({first_of(names)}); pass overwrite=True to replace "
            "it, or choose another output"
        )


def _write_mapped(folder: Path, place: Path, info: dict[str, Any]) -> None:
    """Check the tables of a folder, and write them as files that processes map, some rows at a time."""
    tables = {name: read_parquet(folder / f"{name}.parquet") for name in TABLES}
    for name, table in tables.items():
        check_texts(table, f"{name.removesuffix('s')}_id")
        write_mapped(place / f"{name}.arrow", [table])

    def checked() -> Iterator[pa.Table]:
        for part in interaction_parts(folder):
            check_interaction_table(part, tables["users"].num_rows, tables["items"].num_rows, info.get("time_unit", "s"))
            yield part

    write_mapped(place / "interactions.arrow", checked())


def _read_info(path: Path) -> dict[str, Any]:
    """Read `dataset.json` and check its format."""
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; prepare the folder again with `cllm4rec prepare`")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); prepare the folder again") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        found = info.get("format") if isinstance(info, dict) else None
        raise InputError(f"{path}: format must be {FORMAT}, got {found!r}; prepare the folder again with this version")
    if info.get("time_unit", "s") not in (*UNITS, ORDER):
        raise InputError(f"{path}: time_unit must be one of {', '.join(UNITS)}, {ORDER}, got {info['time_unit']!r}")
    for name in ("statistics", "protocol", "sources"):
        if name not in info:
            raise InputError(f"{path}: {name!r} is missing; prepare the folder again")
    return info


def dataset_card(name: str, info: dict[str, Any], files: WrittenFiles) -> str:
    """Return the dataset card of a folder: statistics, protocol, sources, and the splits for the `datasets` library.

    Args:
        name: the title.
        info: the contents of `dataset.json`.
        files: the files of the tables.

    Example:
        >>> info = {"statistics": {}, "protocol": {"line": "given split"}, "sources": []}
        >>> print(dataset_card("mine", info, WrittenFiles({"train": 3}, {})).splitlines()[1])
        pretty_name: mine
    """
    # The `datasets` library cannot read a split without rows next to others.
    splits = [{"split": split, "path": f"{split}.parquet"} for split in SPLITS if files.rows.get(split)]
    configs = [
        {"config_name": "interactions", "data_files": splits, "default": True},
        *({"config_name": table, "data_files": f"{table}.parquet"} for table in TABLES),
    ]
    licence = info.get("license")
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence or "") is not None
    head = yaml.safe_dump(
        {
            "pretty_name": name,
            **({} if not licence else {"license": licence} if known else {"license": "other", "license_name": licence}),
            **({"language": info["language"]} if info.get("language") else {}),
            "tags": ["recommendation", "cllm4rec"],
            "size_categories": [size_category(sum(files.rows.values()))],
            "configs": configs,
        },
        sort_keys=False,
        allow_unicode=True,
    )
    statistics = "\n".join(f"| {key.replace('_', ' ')} | {value:,} |" for key, value in info["statistics"].items())
    columns = "\n".join(
        f"| `{table}` | {', '.join(f'`{column}`' for column in names)} |" for table, names in files.columns.items()
    )
    sources = "\n".join(f"| {one.get('table')} | {one.get('file')} | `{one.get('sha256')}` |" for one in info["sources"])
    return f"""---
{head}---

# {name}

Interactions of users with items, prepared for recommendation with `cllm4rec`.

- Split and filters: {info["protocol"]["line"]}.
- Licence: {licence or "not stated"}.

## Use

```python
from datasets import load_dataset

interactions = load_dataset("{name}")  # train, validation, test
items = load_dataset("{name}", "items", split="train")  # all items; `datasets` calls a single split train
```

`cllm4rec pretrain --data {name}` and the other commands read the folder. `user_index` and `item_index` are row numbers of the
users and items, `position` numbers the interactions of a user over all splits. Only train pairs have a review.

## Tables

| table | columns |
|---|---|
{columns}

## Statistics

| | |
|---|---|
{statistics}

## Sources

| table | file | SHA-256 |
|---|---|---|
{sources or "| tables in memory | | |"}
"""


def size_category(rows: int) -> str:
    """Return the Hub's name for a number of rows.

    >>> size_category(999), size_category(1000), size_category(2_000_000_000)
    ('n<1K', '1K<n<10K', '1B<n<10B')
    """
    if rows < 1000:
        return "n<1K"
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    place = min(len(str(rows)) - 4, len(names) - 2)
    return f"{names[place]}<n<{names[place + 1]}"
