"""Item vectors and the query encoder: the score of an item is the dot product of its vector and the query's.

CLLM4Rec scores item j for a prompt with the state h of its last token as h . z_j, z_j being the collaborative row of the item
(section 3.4 of arXiv 2311.01343). A vector database of the z_j, queried with h, returns the model's recommendations. LC-Rec's
item head does the same. LC-Rec without one has no query: the cosine of two of its item vectors says how similar the items are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.core.similar_items import unit_vectors
from modeling_cllm4rec.exports.nearest_items import INDEX_FILE, Recall, build_index, measure_recall
from modeling_cllm4rec.exports.output_folder import new_output_folder, require_exportable

ENCODER_FOLDER, ABOUT_FILE = "query_encoder", "vectors.json"
ITEMS, USERS = "item_vectors", "user_vectors"
_ROWS_AT_ONCE = 65536


def encode_histories(model: RecommenderModel, users: np.ndarray | None, histories: Sequence[np.ndarray]) -> np.ndarray:
    """Encode (queries, K) float32 vectors of prompts, in evaluation mode.

    Args:
        model: as loaded; also from the folder `query_encoder` of an export. It scores by vectors.
        users: (queries,) user indices, -1 for unknown users; None if all users are unknown.
        histories: item indices of each, oldest first.

    Example:
        >>> queries = encode_histories(model, None, [model.catalogue.ids.indices_of(["B1"])])  # doctest: +SKIP
    """
    return model.query_vectors(model.build_prompts(users, histories)).cpu().numpy()


def export_vectors(
    model: Any,
    folder: str | Path,
    *,
    include_users: bool = True,
    with_index: bool = True,
    k: int = 10,
    queries: int = 1000,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Write item vectors, the query encoder, vectors of known users, and an approximate index with its recall.

    Args:
        model: a model with catalogue that is ready to recommend. Of one that does not score by vectors (LC-Rec without an item
            head) only item vectors are written, and the index is by cosine.
        folder: new or empty output folder for `item_vectors.parquet` (`item_id`, `title`, `vector`), `item_vectors.safetensors`
            (J, K), the same files for users (`user_id`, `vector`), `query_encoder/` (a model folder, without histories),
            `items.usearch`, `vectors.json`.
        include_users: False exports no user vectors, which reveal information about histories.
        with_index: build the index and measure its recall.
        k, queries, seed: recall@k is measured on `queries` random users, or items for an index by cosine, drawn with `seed`.
        batch_size: users per batch.
        progress: show a progress bar.

    Returns:
        The contents of `vectors.json`: `items`, `width`, `users`, `score` (`"dot product"` or `"cosine"`), `index` and `recall`
        (None without an index).

    Raises:
        InputError: a hybrid, a model that is not ready, or k, queries, batch_size or seed is out of range.
        ExistingFileError: the folder is not empty.
        MissingPackageError: usearch, which builds the index, is not installed.
    """
    require_exportable(model, "export vectors")
    for name, value, most in (("k", k, model.num_items), ("queries", queries, None), ("batch_size", batch_size, None)):
        if value < 1 or (most is not None and value > most):
            raise InputError(f"{name} is {value}; it must be 1 or more" + (f", up to the {most} items" if most else ""))
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or more")
    if with_index:
        require("usearch", "vectors", "the index of vectors", "pass with_index=False")
    with new_output_folder(folder) as temporary:
        items = model.item_vectors(np.arange(model.num_items))
        table = model.catalogue.table
        titles = {"title": table["title"]} if "title" in table.column_names else {}
        write_vectors(temporary / ITEMS, {"item_id": model.catalogue.ids.array, **titles}, items)
        users, draws = np.zeros(0, np.int64), np.random.default_rng(seed)
        query_vectors = None
        if model.scores_by_vectors:
            model.save_pretrained(temporary / ENCODER_FOLDER, include_histories=False)
            users = known_users(model)
            chosen = draws.permutation(len(users))[:queries]
            if include_users and len(users):
                vectors = encode_users(model, users, batch_size, progress)
                write_vectors(temporary / USERS, {"user_id": model.users.ids.array.take(pa.array(users))}, vectors)
                query_vectors = vectors[chosen]
            elif with_index and len(users):
                query_vectors = encode_users(model, users[chosen], batch_size, progress)
        elif with_index:
            items = unit_vectors(items)
            query_vectors = items[draws.permutation(len(items))[:queries]]
        recall = None
        if with_index:
            index = build_index(items, "ip" if model.scores_by_vectors else "cos")
            index.save(str(temporary / INDEX_FILE))
            recall = None if query_vectors is None else measure_recall(index, items, query_vectors, k)
        about = {
            "items": len(items),
            "width": items.shape[1],
            "users": len(users) if include_users else 0,
            "score": "dot product" if model.scores_by_vectors else "cosine",
            "index": INDEX_FILE if with_index else None,
            "recall": None if recall is None else recall._asdict(),
        }
        (temporary / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def known_users(model: RecommenderModel) -> np.ndarray:
    """Return the indices of the users whose stored histories the model can read, an empty array if it stores none."""
    if model.users is None or not model.users.has_histories:
        return np.zeros(0, np.int64)
    return np.flatnonzero(model.readable(np.arange(len(model.users)), "skip"))


def write_vectors(path: Path, columns: dict[str, Any], vectors: np.ndarray) -> None:
    """Write ids and (n, K) float32 vectors as `path.parquet`, and the vectors alone as `path.safetensors`."""
    width = vectors.shape[1]
    schema = pa.schema([(name, values.type) for name, values in columns.items()] + [("vector", pa.list_(pa.float32(), width))])
    with pq.ParquetWriter(path.with_suffix(".parquet"), schema) as writer:
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            rows = vectors[start : start + _ROWS_AT_ONCE]
            lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), pa.float32()), width)
            parts = [values.slice(start, len(rows)) for values in columns.values()]
            writer.write_table(pa.Table.from_arrays([*parts, lists], schema=schema))
    save_file({path.name: np.ascontiguousarray(vectors)}, path.with_suffix(".safetensors"))


def encode_users(model: RecommenderModel, users: np.ndarray, batch_size: int, progress: bool = False) -> np.ndarray:
    """Encode (users, K) float32 vectors of known users; histories of similar length share a batch to need little padding."""
    if model.users is None:
        raise InputError("encode_users: this model has no users; pass histories to encode_histories")
    histories = [model.users.history(int(user)) for user in users]
    order = np.argsort([len(history) for history in histories], kind="stable")
    vectors = np.zeros((len(users), model.config.hidden_size), np.float32)
    with tqdm(total=len(users), desc="encoding", unit="user", disable=not progress) as bar:
        for start in range(0, len(users), batch_size):
            rows = order[start : start + batch_size]
            vectors[rows] = encode_histories(model, users[rows], [histories[row] for row in rows])
            bar.update(len(rows))
    return vectors


__all__ = ["Recall", "encode_histories", "encode_users", "export_vectors", "known_users", "write_vectors"]
