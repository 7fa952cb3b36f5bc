"""Cold items: items withheld from all training and added afterwards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables

ITEMS_FILE, INTERACTIONS_FILE = "withheld_items.parquet", "withheld_interactions.parquet"
PARTS = ("report", "tuning")
"""Items that results are reported on, and items that settings are tuned on."""


@dataclass(frozen=True)
class HeldOutItems:
    """A data folder without some items, and the withheld items.

    Attributes:
        data: the data without the withheld items, and without users who have no other item.
        items: the withheld items: `item_id`, the text columns, `part`.
        interactions: the interactions with these items in all splits: `user_id`, `item_id`.
    """

    data: RecommendationData
    items: pa.Table
    interactions: pa.Table

    @classmethod
    def load(cls, folder: str | Path) -> HeldOutItems:
        """Read a folder that `hold_out_items` wrote.

        Raises:
            MissingFileError: there is no such folder, or it is a data folder from which nothing was withheld.
            InputError: a file cannot be read.
        """
        data = RecommendationData.load(folder)
        for name in (ITEMS_FILE, INTERACTIONS_FILE):
            if not (Path(folder) / name).is_file():
                raise MissingFileError(
                    f"{folder} has no {name}: no items were withheld from it; `hold_out_items` writes such a folder"
                )
        items, interactions = (_read_parquet(Path(folder) / name) for name in (ITEMS_FILE, INTERACTIONS_FILE))
        return cls(data, items, interactions)

    def part(self, name: str) -> pa.Table:
        """Return the items of one part, without the column `part`.

        Raises:
            InputError: the name is not in `PARTS`, or the part has no items.
        """
        if name not in PARTS:
            raise InputError(f"part is {name!r}; it must be one of {', '.join(PARTS)}")
        chosen = self.items.filter(pc.equal(self.items["part"], name)).drop_columns(["part"])
        if not chosen.num_rows:
            raise InputError(f"no items were withheld for {name}; split again with a share above 0")
        return chosen


def hold_out_items(
    data: RecommendationData,
    output: str | Path,
    *,
    share: float = 0.1,
    tuning_share: float = 0.05,
    seed: int = 0,
    overwrite: bool = False,
) -> HeldOutItems:
    """Write a data folder without a random share of the items, and the withheld items in the same folder.

    Args:
        data: a prepared folder.
        output: the folder to write.
        share: share of the items to report on.
        tuning_share: share of the items to tune settings on; also withheld, and disjoint from the items to report on.
        seed: seed of the choice of items.
        overwrite: whether to replace an existing data folder.

    Raises:
        InputError: a share is outside [0, 1), no item would be withheld, or none would stay.
        ExistingFileError: `output` holds something that must not be replaced.
    """
    for name, value in (("share", share), ("tuning_share", tuning_share)):
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value}; it must be 0 or more and below 1")
    counts = [round(share * data.num_items), round(tuning_share * data.num_items)]
    if not 0 < counts[0] or sum(counts) >= data.num_items:
        raise InputError(
            f"share {share} and tuning_share {tuning_share} withhold {counts[0]} and {counts[1]} of {data.num_items} items; "
            "at least one must be withheld to report on, and one must stay"
        )
    order = np.random.default_rng(seed).permutation(data.num_items)
    # In random order: ties in a ranking go to the first item, and the order of the data may follow popularity.
    rows = order[: sum(counts)]
    parts = np.repeat(PARTS, counts)
    items = data.items.take(pa.array(rows)).append_column("part", pa.array(parts, pa.string()))

    is_withheld = np.zeros(data.num_items, dtype=bool)
    is_withheld[rows] = True
    table = data.interactions
    users, indices = (table[name].to_numpy() for name in ("user_index", "item_index"))
    with_ids = table.drop_columns(["user_index", "item_index"])
    with_ids = with_ids.append_column("user_id", data.users["user_id"].take(pa.array(users)))
    with_ids = with_ids.append_column("item_id", data.items["item_id"].take(pa.array(indices)))
    with_withheld_item = pa.array(is_withheld[indices])
    kept = prepare_tables(
        with_ids.filter(pc.invert(with_withheld_item)),
        data.items.filter(pa.array(~is_withheld)),
        data.users,
        output,
        split="given",
        keep_all_items=True,
        sources=data.info["sources"],
        overwrite=overwrite,
    )
    line = f"{data.info['protocol']['line']}; {counts[0]} + {counts[1]} items withheld, seed {seed}"
    withheld = {"report": counts[0], "tuning": counts[1], "seed": seed}
    protocol = {**data.info["protocol"], "line": line, "withheld": withheld}
    kept = dataclasses.replace(kept, info={**kept.info, "protocol": protocol}).save(output, overwrite=True)
    interactions = with_ids.filter(with_withheld_item).select(["user_id", "item_id"])
    pq.write_table(items, Path(output) / ITEMS_FILE)
    pq.write_table(interactions, Path(output) / INTERACTIONS_FILE)
    return HeldOutItems(kept, items, interactions)


def _read_parquet(path: Path) -> pa.Table:
    """Read one table of the withheld items."""
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is truncated or not Parquet ({error}); withhold the items again") from error
