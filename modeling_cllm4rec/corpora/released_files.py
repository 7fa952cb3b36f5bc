"""Released data sets: atomic files of RecBole, matrices of CLLM4Rec, JSON files of LC-Rec.

Each reader returns tables with the column names of this package for `preparation.prepare_tables`, with the split of the files
if they have one.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from scipy import sparse

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.bad_rows import first_of
from modeling_cllm4rec.corpora.readers import PICKLE
from modeling_cllm4rec.corpora.sources import typed_ids
from modeling_cllm4rec.corpora.splits import SPLITS

RECBOLE_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
"""Word in the name of a RecBole file -> split."""
MATRICES = {"train": "train_matrix.npz", "validation": "val_matrix.npz", "test": "test_matrix.npz"}
REVIEWS, PICKLED_REVIEWS = Path("user_item_texts", "review.jsonl"), Path("user_item_texts", "review.pkl")
TO_JSON_LINES = (
    'python -c \'import json, pickle; [print(json.dumps(pair)) for pair in pickle.load(open("review.pkl", "rb"))]\' '
    "> review.jsonl"
)
PAIR = re.compile(r"user_(\d+)\b.*\bitem_(\d+)\b", re.DOTALL)

logger = logging.getLogger(__name__)


class SourceFiles(NamedTuple):
    """Files of a RecBole data set.

    Attributes:
        interactions: split -> file; the only key is `all` if the files have no split.
        items, users: files of texts, None if there are none.
    """

    interactions: dict[str, Path]
    items: Path | None
    users: Path | None


class SourceTables(NamedTuple):
    """Tables in external ids.

    Attributes:
        interactions: `user_id`, `item_id`, and `split` and `review` if the files have them.
        items: `item_id` and texts; None if there are none.
        files: table -> its files.
    """

    interactions: pa.Table
    items: pa.Table | None
    files: dict[str, list[Path]]


def find_recbole_files(folder: str | Path) -> SourceFiles:
    """Find the atomic files of a RecBole data set.

    Args:
        folder: holds either NAME.inter, or NAME.train.inter, NAME.valid.inter and NAME.test.inter; and optionally NAME.item and
            NAME.user.

    Raises:
        MissingFileError: the folder, its files or a split are missing.
        InputError: the folder holds more than one data set.
    """
    folder = _folder(folder)
    names = {path.name.removesuffix(".inter"): path for path in sorted(folder.glob("*.inter"))}
    if not names:
        raise MissingFileError(f"{folder}: there is no .inter file; name the folder of a RecBole data set")
    divided = {name: path for name, path in names.items() if name.rpartition(".")[2] in RECBOLE_SPLITS}
    stems = {name.rpartition(".")[0] if name in divided else name for name in names}
    if len(stems) > 1:
        raise InputError(f"{folder} holds more than one data set: {', '.join(sorted(stems))}; give each a folder of its own")
    stem = stems.pop()
    if stem in names and divided:
        raise InputError(f"{folder} holds {stem}.inter and a split of it; keep one of them")
    interactions = {"all": names[stem]} if stem in names else {}
    if divided:
        missing = [word for word in RECBOLE_SPLITS if f"{stem}.{word}" not in divided]
        if missing:
            raise MissingFileError(f"{folder}: {stem}.{missing[0]}.inter is missing; a given split needs all three files")
        interactions = {split: divided[f"{stem}.{word}"] for word, split in RECBOLE_SPLITS.items()}
    texts = [path if path.exists() else None for path in (folder / f"{stem}.item", folder / f"{stem}.user")]
    return SourceFiles(interactions, *texts)


def read_cllm4rec_files(folder: str | Path, reviews: bool = True) -> SourceTables:
    """Read the released files of CLLM4Rec: three sparse matrices of users and items, and the reviews of training pairs.

    User and item ids are the numbers of rows and columns. `meta.pkl` is not needed, because the matrices have a shape.

    Args:
        folder: holds `train_matrix.npz`, `val_matrix.npz`, `test_matrix.npz`, written by `scipy.sparse.save_npz`, and
            optionally `user_item_texts/review.jsonl` with one `["user_3 ... item_5:", "text"]` per line.
        reviews: whether to read the reviews.

    Returns:
        Interactions with `split` (and `review`), and the items, one per column.

    Raises:
        MissingFileError: a matrix is missing.
        InputError: a file is a pickle or holds one, the matrices differ in shape, a pair is in two splits, or a review has no
            pair.
    """
    folder = _folder(folder)
    matrices = {split: _matrix(folder / file) for split, file in MATRICES.items()}
    shapes = {split: matrix.shape for split, matrix in matrices.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"{folder}: the matrices have different shapes: {shapes}; they must have the same users and items")
    num_users, num_items = shapes["train"]
    users, items = (np.concatenate(parts) for parts in zip(*(matrix.nonzero() for matrix in matrices.values()), strict=True))
    codes = np.repeat(np.arange(len(SPLITS)), [matrix.nnz for matrix in matrices.values()])
    order = np.lexsort((items, codes, users))
    users, items, codes = users[order].astype(np.int64), items[order].astype(np.int64), codes[order]
    pairs = np.unique(users * num_items + items)
    if len(pairs) < len(users):
        repeated = len(users) - len(pairs)
        raise InputError(f"{folder}: {repeated} pairs are in more than one matrix; a pair may be in one split only")
    table = pa.table({"user_id": users, "item_id": items, "split": pa.array(SPLITS).take(pa.array(codes))})
    files = {"interactions": [folder / file for file in MATRICES.values()]}
    if reviews and (folder / REVIEWS).exists():
        table = table.append_column("review", _reviews(folder / REVIEWS, users * num_items + items, num_users, num_items))
        files["interactions"].append(folder / REVIEWS)
    elif reviews and (folder / PICKLED_REVIEWS).exists():
        raise InputError(
            f"{folder / PICKLED_REVIEWS} {PICKLE}; if you trust its origin, convert it to JSON lines in its folder with "
            f"{TO_JSON_LINES} or read no texts with reviews=False"
        )
    return SourceTables(table, pa.table({"item_id": np.arange(num_items)}), files)


def read_lcrec_files(folder: str | Path, id_type: str = "auto") -> SourceTables:
    """Read the released files of LC-Rec: ordered histories, and the texts of items.

    Args:
        folder: holds NAME.inter.json, `{user: [items, oldest first]}`, and where there are texts NAME.item.json,
            `{item: {"title": ..., ...}}`; each may be gzipped.
        id_type: as in `interactions.read_interactions`; keys of JSON objects are texts, also those of numbers.

    Returns:
        Interactions in the order of the histories, and the items in the order of their file, None without one.

    Raises:
        MissingFileError: there are no interactions.
        InputError: the folder holds more than one data set, or a file is no JSON or has another form.
    """
    folder = _folder(folder)
    inter, item = _one_json(folder, "inter"), _one_json(folder, "item")
    if inter is None:
        raise MissingFileError(f"{folder}: there is no NAME.inter.json; name the folder of a released data set of LC-Rec")
    histories = read_json_object(inter)
    for user, history in histories.items():
        if not isinstance(history, list) or any(type(item_id) not in (int, str) for item_id in history):
            raise InputError(f"{inter}: user {user!r} has {history!r}; it must be a list of item ids")
    user_ids = [user for user, history in histories.items() for _ in history]
    item_ids = [str(item_id) for history in histories.values() for item_id in history]
    pairs = pa.table(
        {
            "user_id": typed_ids(pa.array(user_ids, pa.large_string()), "user_id", inter, id_type),
            "item_id": typed_ids(pa.array(item_ids, pa.large_string()), "item_id", inter, id_type),
        }
    )
    if item is None:
        logger.warning("%s has no NAME.item.json: without item texts, LC-Rec can train on the task seqrec alone", folder)
        return SourceTables(pairs, None, {"interactions": [inter]})
    return SourceTables(pairs, _lcrec_items(item, id_type), {"interactions": [inter], "items": [item]})


def _lcrec_items(item: Path, id_type: str) -> pa.Table:
    """Return the items of NAME.item.json, in the order of the file."""
    texts = read_json_object(item)
    for item_id, columns in texts.items():
        if not isinstance(columns, dict):
            raise InputError(f"{item}: item {item_id!r} has {columns!r}; it must be an object of texts, such as title")
    names = dict.fromkeys(name for columns in texts.values() for name in columns)
    ids = typed_ids(pa.array(texts, pa.large_string()), "item_id", item, id_type)
    try:
        table = {name: pa.array([columns.get(name) for columns in texts.values()]) for name in names}
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{item}: the values of a field are of different types ({error}); write them all as texts") from error
    return pa.table({"item_id": ids, **table})


def _folder(folder: str | Path) -> Path:
    """Check that a folder exists."""
    if not Path(folder).is_dir():
        raise MissingFileError(f"{folder}: there is no such folder")
    return Path(folder)


def _matrix(path: Path) -> sparse.csr_matrix:
    """Read a sparse matrix."""
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; the released files of CLLM4Rec are {', '.join(MATRICES.values())}")
    try:
        matrix = sparse.load_npz(path)  # scipy reads no pickled arrays here
    except (ValueError, BadZipFile, KeyError, OSError, EOFError) as error:
        if "pickle" in str(error):
            raise InputError(f"{path} {PICKLE}; write the matrix with scipy.sparse.save_npz") from error
        raise InputError(f"{path} is no sparse matrix of scipy.sparse.save_npz: {error}") from error
    matrix = sparse.csr_matrix(matrix)
    matrix.eliminate_zeros()
    return matrix


def _reviews(path: Path, pairs: np.ndarray, num_users: int, num_items: int) -> pa.Array:
    """Read the (interactions,) review of each pair, null where there is none."""
    texts: dict[int, str] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            user, item, text = _review(path, number, line)
            if user >= num_users or item >= num_items:
                raise InputError(f"{path}: line {number} has user {user} and item {item}, which the matrices lack")
            if user * num_items + item in texts:
                raise InputError(f"{path}: line {number} is a second review of item {item} by user {user}; keep one")
            texts[user * num_items + item] = text
    without_pair = np.setdiff1d(np.fromiter(texts, np.int64, len(texts)), pairs)
    if len(without_pair):
        user, item = divmod(int(without_pair[0]), num_items)
        raise InputError(
            f"{path}: {len(without_pair)} reviews have no pair in the matrices; the first is of user {user} and item {item}"
        )
    return pa.array([texts.get(pair) for pair in pairs.tolist()], pa.large_string())


def _review(path: Path, number: int, line: bytes) -> tuple[int, int, str]:
    """Parse one line of the reviews into user, item and text."""
    try:
        pair = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}: line {number} is not JSON ({error})") from error
    is_pair = isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
    match = PAIR.search(pair[0]) if is_pair else None
    if match is None:
        raise InputError(
            f'{path}: line {number} must be ["user_3 ... item_5:", "text"] with words, not token ids; got '
            f"{line.decode().strip()[:80]}"
        )
    return int(match[1]), int(match[2]), pair[1].strip()


def _one_json(folder: Path, kind: str) -> Path | None:
    """Find the one file of a kind, plain or gzipped; None if there is none."""
    found = sorted([*folder.glob(f"*.{kind}.json"), *folder.glob(f"*.{kind}.json.gz")])
    if len(found) > 1:
        raise InputError(f"{folder} holds more than one data set: {first_of([path.name for path in found])}; give each a folder")
    return found[0] if found else None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object with ids as keys, which may be gzipped.

    Raises:
        InputError: the file cannot be read, is no JSON, or holds no object or an empty one.
    """
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
        value = json.loads(text)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path} must be a JSON object with ids as keys, got {type(value).__name__} of {len(value or ())}")
    return value
