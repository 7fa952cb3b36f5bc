"""Items withheld from all training, to be added afterwards: what a model does with items that are new."""

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
"""What is measured and told, and what choices are made on."""


@dataclass(frozen=True)
class HeldOutItems:
    """A data folder without some items, and these items apart.

    Attributes:
        data: the data without the withheld items; users who have nothing else are left out.
        items: the withheld items: `item_id`, the text columns, `part`.
        interactions: everything that users did with them, of all splits: `user_id`, `item_id`.
    """

    data: RecommendationData
    items: pa.Table
    interactions: pa.Table

    @classmethod
    def load(cls, folder: str | Path) -> HeldOutItems:
        """Read what `hold_out_items` wrote.

        Raises:
            MissingFileError: there is no such folder, or it is a data folder from which nothing was withheld.
        """
        data = RecommendationData.load(folder)
        for name in (ITEMS_FILE, INTERACTIONS_FILE):
            if not (Path(folder) / name).is_file():
                raise MissingFileError(
                    f"{folder} has no {name}: no items were withheld from it; `hold_out_items` writes such a folder"
                )
        return cls(data, pq.read_table(Path(folder) / ITEMS_FILE), pq.read_table(Path(folder) / INTERACTIONS_FILE))

    def part(self, name: str) -> pa.Table:
        """The items of one part, without the column `part`.

        Raises:
            InputError: another name than those of `PARTS`, or a part without items.
        """
        if name not in PARTS:
            raise InputError(f"part is {name!r}; allowed are {', '.join(PARTS)}")
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
    """Write a data folder without a random share of the items, and beside its tables the withheld items.

    Args:
        data: a prepared folder.
        output: the folder to write.
        share: share of the items to be reported on.
        tuning_share: share of the items that choices are made on; withheld, too, and none of those reported on.
        seed: start of the random numbers that choose the items.
        overwrite: replace a data folder that is there.

    Raises:
        InputError: shares outside [0, 1), or such that no item is withheld or none stays.
        ExistingFileError: `output` holds something and is not to be replaced.
    """
    for name, value in (("share", share), ("tuning_share", tuning_share)):
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value}; it must be 0 or more and lie below 1")
    counts = [round(share * data.num_items), round(tuning_share * data.num_items)]
    if not 0 < counts[0] or sum(counts) >= data.num_items:
        raise InputError(
            f"share {share} and tuning_share {tuning_share} withhold {counts[0]} and {counts[1]} of {data.num_items} items; "
            "at least one must be withheld to report on, and one must stay"
        )
    order = np.random.default_rng(seed).permutation(data.num_items)
    rows = order[: sum(counts)]  # in random order: that of the data may tell how popular an item is, and ties go to the first
    parts = np.repeat(PARTS, counts)
    items = data.items.take(pa.array(rows)).append_column("part", pa.array(parts, pa.string()))

    is_withheld = np.zeros(data.num_items, dtype=bool)
    is_withheld[rows] = True
    table = data.interactions
    users, indices = (table[name].to_numpy() for name in ("user_index", "item_index"))
    named = table.drop_columns(["user_index", "item_index"])
    named = named.append_column("user_id", data.users["user_id"].take(pa.array(users)))
    named = named.append_column("item_id", data.items["item_id"].take(pa.array(indices)))
    new = pa.array(is_withheld[indices])
    kept = prepare_tables(
        named.filter(pc.invert(new)),
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
    interactions = named.filter(new).select(["user_id", "item_id"])
    pq.write_table(items, Path(output) / ITEMS_FILE)
    pq.write_table(interactions, Path(output) / INTERACTIONS_FILE)
    return HeldOutItems(kept, items, interactions)
