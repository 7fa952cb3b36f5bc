"""Where `cllm4rec prepare` reads from: tables that the flags name, or a folder in the form of another project."""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.released_files import (
    SourceTables,
    find_recbole_files,
    read_cllm4rec_files,
    read_lcrec_files,
)
from modeling_cllm4rec.corpora.sources import read_interactions, read_texts, typed_ids
from modeling_cllm4rec.corpora.splits import SPLITS

FORMATS = ("recbole", "cllm4rec", "lcrec")
_COLUMNS = ("rating_column", "timestamp_column", "review_column", "split_column")
MEANINGLESS = {
    None: ("no_reviews",),
    "recbole": ("no_reviews",),
    "cllm4rec": (*_COLUMNS, "id_type"),
    "lcrec": (*_COLUMNS, "no_reviews", "item_columns", "exclude_item_columns"),
}
"""Format -> flags that say nothing about it."""
Files = dict[str, list[str | Path]]
"""Table -> what it is read from."""


def find_sources(args: argparse.Namespace) -> tuple[Files, str]:
    """Find the files of each table by the flags or the names in the folder, and the kind of split.

    Raises:
        MissingFileError, ValueError: the folder does not hold what its format says, or a table is given twice.
    """
    for flag in MEANINGLESS[args.format]:
        if vars(args)[flag] not in (None, False, "auto", []):
            form = f"--format {args.format}" if args.format else "--interactions"
            raise InputError(f"--{flag.replace('_', '-')} says nothing about {form}; leave it out")
    named: Files = {name: [vars(args)[name]] for name in ("interactions", "items", "users") if vars(args)[name]}
    split = {"cllm4rec": "given", "lcrec": "leave-one-out"}.get(args.format, "random")
    if args.format == "recbole":
        found = find_recbole_files(args.folder)
        split = "random" if "all" in found.interactions else "given"
        files: Files = {"interactions": list(found.interactions.values())}
        files |= {name: [path] for name, path in (("items", found.items), ("users", found.users)) if path}
        _refuse_twice(files, named)
        named = files | named
    if args.split == "given" and split != "given" and args.format is not None:
        raise InputError(f"--split given: the files of {args.folder} have no split; choose another, or leave it out")
    return named, args.split or split


def read_sources(args: argparse.Namespace, files: Files, split: str) -> dict[str, pa.Table]:
    """Read the tables; files read by a folder's reader are added to `files`."""
    tables: dict[str, pa.Table] = {}
    if args.format in ("cllm4rec", "lcrec"):
        read = _released(args)
        _refuse_twice({name: list(paths) for name, paths in read.files.items()}, files)
        tables = {"interactions": read.interactions, "items": read.items}
        files |= {name: list(paths) for name, paths in read.files.items()}
    else:
        tables["interactions"] = _interactions(args, files["interactions"], split)
    for name in ("items", "users"):
        if name in files and not (name in tables and args.format == "lcrec"):
            tables[name] = _texts(args, name, files[name][0])
    return tables


def _released(args: argparse.Namespace) -> SourceTables:
    if args.format == "cllm4rec":
        return read_cllm4rec_files(args.folder, reviews=not args.no_reviews)
    return read_lcrec_files(args.folder, args.id_type)


def _refuse_twice(found: Files, named: Files) -> None:
    for name in found:
        if name in named:
            raise InputError(f"--{name} names {named[name][0]}, but the folder has {found[name][0]}; leave one of them out")


def _interactions(args: argparse.Namespace, sources: list[str | Path], split: str) -> pa.Table:
    """Read the interactions; of three files, each is one split."""
    if len(sources) == 1:
        return _interaction_file(args, sources[0], args.id_type, with_split=split == "given")
    parts = []
    for name, source in zip(SPLITS, sources, strict=True):
        part = _interaction_file(args, source, "string")
        parts.append(part.append_column("split", pa.array([name] * part.num_rows)))
    table = pa.concat_tables(parts)
    for place, name in enumerate(("user_id", "item_id")):
        table = table.set_column(place, name, typed_ids(table[name], name, sources[0], args.id_type))
    return table


def _interaction_file(args: argparse.Namespace, source: str | Path, id_type: str, with_split: bool = False) -> pa.Table:
    return read_interactions(
        source,
        user_column=args.user_column,
        item_column=args.item_column,
        rating_column=args.rating_column,
        timestamp_column=args.timestamp_column,
        review_column=args.review_column,
        split_column=args.split_column,
        with_split=with_split,
        id_type=id_type,
    )


def _texts(args: argparse.Namespace, table: str, source: str | Path) -> pa.Table:
    entity = table.removesuffix("s")
    values = vars(args)
    return read_texts(
        source,
        id_column=values[f"{table}_id_column"] or values[f"{entity}_column"],
        name=f"{entity}_id",
        columns=values[f"{entity}_columns"],
        exclude=values[f"exclude_{entity}_columns"],
        id_type=args.id_type,
    )
