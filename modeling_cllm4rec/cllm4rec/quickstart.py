"""Train a CLLM4Rec recommender on a table of interactions in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import pandas as pd
import pyarrow as pa

from modeling_cllm4rec.cllm4rec.arguments import INIT_COLUMNS, FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.cllm4rec.pretraining import pretrain
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.interactions import read_interactions, read_texts
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.hub.loading import load_recommender

if TYPE_CHECKING:
    from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation

TableLike: TypeAlias = pd.DataFrame | pa.Table | str | Path
"""A table in memory, or a file or data set that `readers.read_table` reads."""


def train_recommender(
    interactions: TableLike,
    backbone: str,
    output: str | Path,
    *,
    items: TableLike | None = None,
    users: TableLike | None = None,
    prepare: Mapping[str, Any] | None = None,
    pretraining: Mapping[str, Any] | None = None,
    finetuning: Mapping[str, Any] | None = None,
    **shared: Any,
) -> CLLM4RecForRecommendation:
    """Prepare a table of interactions, pretrain and finetune CLLM4Rec on it, and return the recommender.

    Args:
        interactions: one row per interaction: `user_id`, `item_id`, and optionally `rating`, `timestamp`, `review`, `split`.
        backbone: name or path of a causal language model.
        output: folder of the run, where the model is saved; the data folder is written to `OUTPUT/data`.
        items: `item_id` and texts (`title`, `brand`, `categories`, `description`).
        users: `user_id` and `biography`.
        prepare: arguments of `preparation.prepare_tables`, such as `{"split": "temporal", "k_core": 5}`.
        pretraining, finetuning: arguments of one stage, fields of `PretrainArguments` and `FinetuneArguments`.
        shared: arguments of both stages, such as `epochs=5, batch_size=64`. The default of `max_text_tokens` is 128 here, because
            without a limit a single long review ends the run; the commands have no limit by default.

    Returns:
        The finished model, loaded from `output`.

    Raises:
        InputError: the tables have another form than `prepare_tables` needs, or an argument has a value that is not allowed.
        ExistingFileError: `output` holds a run already.

    Example:
        >>> frame = pd.DataFrame({"user_id": ["ann"] * 3, "item_id": [1, 2, 3]})
        >>> model = train_recommender(frame, "gpt2", "runs/mine")  # doctest: +SKIP
        >>> model.recommend(users=["ann"], k=10).to_pandas()  # doctest: +SKIP
    """
    settings = dict(prepare or {})
    if isinstance(interactions, (str, Path)):
        pairs = read_interactions(interactions, with_split=settings.get("split") == "given")
    else:
        pairs = _table(interactions)
    texts = {name: _texts(table, name) for name, table in (("item_id", items), ("user_id", users))}
    data = prepare_tables(pairs, texts["item_id"], texts["user_id"], Path(output) / "data", **settings)
    common = {"data": str(data.folder), "output": str(output), "max_text_tokens": 128, **shared}
    first_stage = {"init_ids": "text" if _has_words(data) else "random", **common, **(pretraining or {})}
    pretrain(PretrainArguments(backbone=backbone, **first_stage))
    finetune(FinetuneArguments(**{**common, **(finetuning or {})}))
    return cast("CLLM4RecForRecommendation", load_recommender(output))


def _table(source: pd.DataFrame | pa.Table) -> pa.Table:
    """Convert a data frame to an Arrow table.

    Raises:
        InputError: a column mixes types.
    """
    if not isinstance(source, pd.DataFrame):
        return source
    try:
        return pa.Table.from_pandas(source, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"a column of the table mixes types ({error}); convert it to one type first") from error


def _texts(source: TableLike | None, name: str) -> pa.Table | None:
    """Read a table of texts from a file, or convert one in memory."""
    if source is None:
        return None
    return read_texts(source, id_column=name, name=name) if isinstance(source, (str, Path)) else _table(source)


def _has_words(data: RecommendationData) -> bool:
    """Check whether any item has a text that its row can be initialized from."""
    present = [name for name in INIT_COLUMNS if name in data.items.column_names]
    return any(data.items[name].null_count < data.num_items for name in present)
