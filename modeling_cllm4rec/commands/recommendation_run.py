"""What `cllm4rec recommend` does once its flags are known to be right: load the model, and write or print the answers."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_cllm4rec.commands.command_line import cell
from modeling_cllm4rec.commands.model_flags import placement
from modeling_cllm4rec.commands.ray_engine import recommend_on_ray
from modeling_cllm4rec.commands.recommendation_tables import Asked, asked_users, open_parts, tables
from modeling_cllm4rec.commands.shares import Share
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.hub.loading import load_recommender


def recommend(arguments: argparse.Namespace, share: Share, folder: bool) -> None:
    """Answer what the flags ask for.

    Args:
        arguments: the flags.
        share: the parts that this process writes into a folder.
        folder: whether the output is a folder of parts.

    Raises:
        MissingFileError, InputError: those of the parts that this calls.
    """
    if arguments.engine == "ray":
        print(recommend_on_ray(arguments), file=sys.stderr)
        return
    model = load_recommender(arguments.model, **placement(arguments))
    model.check_ready()
    asked = asked_users(arguments, model)
    if folder:
        print(write_folder(arguments, model, asked, share), file=sys.stderr)
    elif arguments.output:
        rows = write(tables(arguments, model, asked, progress=True), Path(arguments.output))
        print(f"{rows} recommendations written to {arguments.output}", file=sys.stderr)
    else:
        show(tables(arguments, model, asked), model, arguments.json)


def write(parts: Iterator[pa.Table], path: Path) -> int:
    """Stream tables into one Parquet file, whole or not at all; returns its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head, rows = next(parts), 0
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, head.schema) as writer:
        for table in itertools.chain([head], parts):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def write_folder(arguments: argparse.Namespace, model: RecommenderModel, asked: Asked, share: Share) -> str:
    """Write the parts of this process into a folder; returns a line about them."""
    folder, progress = open_parts(arguments, model, asked), share.process == 0
    written, there = folder.write_share(share, lambda start, stop: tables(arguments, model, asked, start, stop, progress))
    return f"{written} parts written, {there} were there before; {folder.state()}"


def show(parts: Iterator[pa.Table], model: RecommenderModel, as_json: bool) -> None:
    """Print recommendations with titles, as columns or as JSON lines."""
    assert model.catalogue is not None
    for table in parts:
        titles = model.catalogue.titles(model.catalogue.ids.indices_of(table["item"].to_pylist()))
        for row, title in zip(table.to_pylist(), titles, strict=True):
            if as_json:
                print(json.dumps({**row, "title": title}, ensure_ascii=False))
            else:
                print(f"{cell(row['user'])}\t{row['rank']:>3}\t{cell(row['item'])}\t{row['score']:.3f}\t{cell(title)}")
