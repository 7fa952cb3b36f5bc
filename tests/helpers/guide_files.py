"""Input files of the guides: the synthetic data set in the forms that the guides read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from modeling_cllm4rec.corpora.splits import leave_one_out_split
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset


def frames_of(dataset: SyntheticDataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return interactions and items of the synthetic data set with integer ids."""
    interactions = dataset.interactions.to_pandas().drop(columns="review").drop_duplicates(["user_id", "item_id"])
    items = dataset.items.to_pandas()
    items["categories"] = items["categories"].map("|".join)
    item_number = {name: number for number, name in enumerate(items["item_id"])}
    interactions["item_id"] = interactions["item_id"].map(item_number)
    interactions["user_id"] = pd.factorize(interactions["user_id"])[0]
    items["item_id"] = range(len(items))
    return interactions, items


def csv_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write the input files of the guide about CSV files."""
    names = {"user_id": "userId", "item_id": "movieId", "categories": "genres"}
    interactions.rename(columns=names).to_csv(folder / "ratings.csv", index=False)
    items.rename(columns=names)[["movieId", "title", "genres"]].to_csv(folder / "movies.csv", index=False)


def plain_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write the input files of the guides about backbones and splits."""
    interactions.to_csv(folder / "interactions.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)


def changing_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write the first interactions and items, the new items, and all interactions and items."""
    first = items[items["item_id"] < 36]
    plain_files(folder, interactions[interactions["item_id"] < 36], first)
    items[items["item_id"] >= 36].to_csv(folder / "new_items.csv", index=False)
    interactions.to_csv(folder / "interactions_now.csv", index=False)
    items.to_csv(folder / "items_now.csv", index=False)


def splits_of(interactions: pd.DataFrame) -> list[pd.DataFrame]:
    """Split interactions into train, validation and test by time."""
    codes = leave_one_out_split(interactions["user_id"].to_numpy(), interactions["timestamp"].to_numpy())
    return [interactions[codes == code] for code in range(3)]


def recbole_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write a RecBole data set, and one with a given split."""
    kinds = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
    header = {name: f"{name}:{kind}" for name, kind in kinds.items()}

    def write(frame: pd.DataFrame, name: str) -> None:
        path = folder / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.rename(columns=header).to_csv(path, sep="\t", index=False)

    write(interactions, "tiny/tiny.inter")
    write(items[["item_id", "title"]].rename(columns={"title": "title:token_seq"}), "tiny/tiny.item")
    for word, part in zip(("train", "valid", "test"), splits_of(interactions), strict=True):
        write(part, f"split/split.{word}.inter")


def cllm4rec_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write the matrices and reviews of a released CLLM4Rec data set, and titles."""
    released = folder / "released"
    (released / "user_item_texts").mkdir(parents=True)
    shape = (interactions["user_id"].max() + 1, len(items))
    parts = splits_of(interactions)
    for word, part in zip(("train", "val", "test"), parts, strict=True):
        matrix = sparse.csr_matrix((np.ones(len(part)), (part["user_id"], part["item_id"])), shape=shape)
        sparse.save_npz(released / f"{word}_matrix.npz", matrix)
    with open(released / "user_item_texts" / "review.jsonl", "w", encoding="utf-8") as file:
        for user, item in parts[0][["user_id", "item_id"]].itertuples(index=False):
            print(json.dumps([f"user_{user} wrote the following review for item_{item}:", "Good."]), file=file)
    items[["item_id", "title"]].to_csv(folder / "titles.csv", index=False)


def lcrec_files(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
    """Write a released LC-Rec data set with its semantic IDs."""
    released = folder / "released"
    released.mkdir()
    ordered = interactions.sort_values("timestamp", kind="stable")
    content = {
        "inter": {str(user): [int(item) for item in history] for user, history in ordered.groupby("user_id")["item_id"]},
        "item": {str(row.item_id): {"title": row.title, "description": row.description} for row in items.itertuples()},
        "index": {str(item): [f"<a_{item // 16}>", f"<b_{item % 16}>"] for item in items["item_id"]},
    }
    for kind, value in content.items():
        (released / f"Tiny.{kind}.json").write_text(json.dumps(value))


Files = Callable[[Path, pd.DataFrame, pd.DataFrame], None]
FILES: dict[str, Files] = {
    "from-csv-to-the-hub": csv_files,
    "own-backbone": plain_files,
    "own-training": plain_files,
    "training": plain_files,
    "own-split": plain_files,
    "quickstart": plain_files,
    "choose-a-system": plain_files,
    "add-a-baseline": plain_files,
    "hybrid": plain_files,
    "changing-catalogue": changing_files,
    "from-recbole": recbole_files,
    "from-cllm4rec-files": cllm4rec_files,
    "from-lcrec-files": lcrec_files,
}
"""Guide -> function that writes its input files."""
