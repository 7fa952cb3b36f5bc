"""A second implementation of cleaning, indexing and splitting: plain numpy, all rows in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

SPLITS = ("train", "validation", "test")


def prepared(
    users: list,
    items: list,
    times: list | None,
    ratings: list,
    split: str,
    *,
    seed: int = 0,
    min_rating: float | None = None,
    k_core: int = 0,
    cuts: tuple[float, float] = (0.8, 0.9),
    short_users: str = "train",
) -> tuple[list, list, dict[str, list]]:
    """Return the ids of users and items in the order of their indices, and the columns of `interactions.parquet`."""
    user_ids, user = np.unique(np.array(users), return_inverse=True)
    item_ids, item = np.unique(np.array(items), return_inverse=True)
    time = np.arange(len(user)) if times is None else np.array(times)
    rating = np.array(ratings, dtype=float)

    last: dict[tuple[int, int], int] = {}
    for row in np.argsort(time, kind="stable").tolist():
        last[user[row], item[row]] = row
    rows = np.array(sorted(last.values()))
    if min_rating is not None:
        rows = rows[rating[rows] >= min_rating]
    while k_core and len(rows):
        enough = (np.bincount(user[rows])[user[rows]] >= k_core) & (np.bincount(item[rows])[item[rows]] >= k_core)
        if enough.all():
            break
        rows = rows[enough]
    if short_users == "drop":
        rows = rows[np.bincount(user[rows])[user[rows]] >= 3]

    codes = _split(user[rows], item[rows], time[rows], split, seed, cuts)
    users_seen, items_seen = (list(dict.fromkeys(column[rows].tolist())) for column in (user, item))
    user_index, item_index = (
        np.array([seen.index(code) for code in column[rows]], dtype=np.int32) if len(rows) else np.zeros(0, np.int32)
        for seen, column in ((users_seen, user), (items_seen, item))
    )
    order = np.lexsort((time[rows], user_index))
    columns = {
        "user_index": user_index[order].tolist(),
        "item_index": item_index[order].tolist(),
        "split": [SPLITS[code] for code in codes[order]],
        "rating": rating[rows][order].tolist(),
    }
    if times is not None:
        columns["timestamp"] = time[rows][order].tolist()
    return user_ids[users_seen].tolist(), item_ids[items_seen].tolist(), columns


def _split(user: np.ndarray, item: np.ndarray, time: np.ndarray, split: str, seed: int, cuts: tuple[float, float]) -> np.ndarray:
    if split == "temporal":
        first, second = (np.sort(time)[int(cut * len(time))] for cut in cuts)
        return (time >= first).astype(int) + (time >= second)
    draws = np.empty(len(user))
    draws[np.lexsort((item, user))] = np.random.default_rng(seed).random(len(user))
    codes = np.zeros(len(user), dtype=int)
    for one in np.unique(user):
        mine = np.flatnonzero(user == one)
        if len(mine) < 3:
            continue
        if split == "leave-one-out":
            mine = mine[np.argsort(time[mine], kind="stable")]
            codes[mine[-2:]] = 1, 2
        else:
            held = max(1, len(mine) // 10)
            mine = mine[np.lexsort((item[mine], draws[mine]))]
            codes[mine[:held]], codes[mine[held : 2 * held]] = 2, 1
    return codes


def as_table(users: list, items: list, times: list | None, ratings: list) -> pa.Table:
    """Return the same rows as a table of interactions."""
    columns = {"user_id": users, "item_id": items, "rating": pa.array(ratings, pa.float64())}
    return pa.table(columns if times is None else columns | {"timestamp": times})
