"""The stage `index-items`: item texts to semantic IDs by embeddings, RQ-VAE or k-means, and unique codes (section III-B)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.core.errors import ExistingFileError, InputError
from modeling_cllm4rec.core.saved_folder import CURVES_FILE
from modeling_cllm4rec.corpora.atomic_files import atomic_file, check_output_folder
from modeling_cllm4rec.corpora.data_folder import INFO_FILE, RecommendationData
from modeling_cllm4rec.corpora.item_embeddings import embedding_settings, item_embeddings, write_item_embeddings
from modeling_cllm4rec.evaluation.training_curves import RECORD_FILE
from modeling_cllm4rec.hub.model_card import save_record, training_record
from modeling_cllm4rec.lcrec.arguments import INDEX_FILE, WITHOUT_EMBEDDINGS, IndexArguments
from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
from modeling_cllm4rec.lcrec.index_methods import (
    co_occurrence_semantic_ids,
    random_codes,
    vanilla_semantic_ids,
    with_co_occurrence,
)
from modeling_cllm4rec.lcrec.modeling_rqvae import INDEXER_FOLDER, RQVAEModel, residual_k_means
from modeling_cllm4rec.lcrec.released_files import read_released_semantic_ids
from modeling_cllm4rec.lcrec.rqvae_training import CHECKPOINTS, IndexProgress, train_rqvae
from modeling_cllm4rec.lcrec.semantic_id_report import REPORT_FILES, check_plots, save_report, semantic_id_report
from modeling_cllm4rec.lcrec.semantic_ids import (
    LEVEL_LETTERS,
    SemanticIds,
    assign_unique_codes,
    nearest_codes,
)
from modeling_cllm4rec.lcrec.uniform_mapping import spread_conflicts, spread_last_level
from modeling_cllm4rec.training.argument_names import current_record
from modeling_cllm4rec.training.estimates import check_memory, indexing_memory
from modeling_cllm4rec.training.run_folder import RUN_FILE

logger = logging.getLogger(__name__)

SETTINGS_FILE, EMBEDDINGS_FILE = "index.json", "embeddings.parquet"
STAGE = "index-items"
NOT_PART_OF_AN_INDEX = ("resume", "overwrite", "stop_after_epochs", "save_every", "output", "data", "plots", "max_memory")


def index_items(arguments: IndexArguments, embeddings: np.ndarray | None = None) -> tuple[SemanticIds | None, IndexProgress]:
    """Make the semantic IDs of a data folder and save them with indexer, embeddings and report in `arguments.output`.

    Args:
        embeddings: (J, width) of the items; None encodes their texts.

    Returns:
        The semantic IDs and the progress. There are no IDs if the run was stopped before its end, and in all processes of a
        launch but the first, which works alone.

    Raises:
        ExistingFileError: the output folder holds an index and neither `resume` nor `overwrite` is set, or something else.
        InputError: NaN embeddings, fewer items than codes, more items than semantic IDs, no co-occurrence, plots without
            matplotlib, or a resumed run with other arguments or embeddings.

    Example:
        >>> index_items(IndexArguments(data="data/mine", output="runs/mine-index"))  # doctest: +SKIP
    """
    if int(os.environ.get("RANK", "0")):
        return None, IndexProgress(finished=True)
    if arguments.plots:
        check_plots()
    data = RecommendationData.load(arguments.data)
    items, folder = IdMap(data.items["item_id"], "item_id"), arguments.folder
    check_output_folder(folder)
    identity = _identity(arguments, items)
    _check_sizes(len(items), arguments)
    _check_folder(arguments, identity)
    given, semantic_ids = embeddings, ids_without_embeddings(arguments, data, items)
    if semantic_ids is not None:
        embeddings = None
        identity["codes_sha256"] = hashlib.sha256(semantic_ids.codes.tobytes()).hexdigest()
    elif embeddings is None:
        embeddings = item_embeddings(
            data,
            encoder=arguments.encoder,
            fields=arguments.fields,
            pooling=arguments.pooling,
            cache=folder / EMBEDDINGS_FILE,
            on_missing_text=arguments.on_missing_text,
            batch_size=arguments.encode_batch_size,
            max_text_tokens=arguments.max_text_tokens,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
    if embeddings is not None:
        _check_embeddings(embeddings, items)
        if arguments.co_occurrence:
            embeddings = with_co_occurrence(embeddings, data.histories("train"), arguments.co_occurrence)
        embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        identity["embeddings_sha256"] = hashlib.sha256(embeddings.data.cast("B")).hexdigest()
        width = embeddings.shape[1]
        quantized = width if arguments.method == "rk-means" else arguments.latent_dim
        estimate = indexing_memory(len(items), width, arguments.codebook_size, quantized)
        logger.info("index-items: an estimate of %s", estimate.line())
        check_memory(estimate, arguments.max_memory, "use a smaller codebook_size and more num_levels")
    _claim(arguments, identity)
    if given is not None and embeddings is not None:  # for the item head of `align`
        write_item_embeddings(folder / EMBEDDINGS_FILE, data.items, given)
    progress = IndexProgress(finished=True)
    settings = dict(identity)
    if semantic_ids is not None:
        report = semantic_id_report(semantic_ids)
    else:
        assert embeddings is not None
        indexer, progress = _indexer(arguments, embeddings)
        if not progress.finished:
            return None, progress
        latents, codebooks = indexer.latents(embeddings), indexer.codebook_array
        plain = nearest_codes(latents, codebooks)
        earlier = {"nearest": plain}
        if arguments.uniform_mapping != "none":
            spread = spread_conflicts if arguments.uniform_mapping == "conflicts" else spread_last_level
            earlier["uniform"] = spread(latents, codebooks, plain, arguments.sinkhorn_epsilon, seed=arguments.seed)
        unique = assign_unique_codes(latents, codebooks, earlier.get("uniform", plain))
        semantic_ids = SemanticIds(unique, arguments.codebook_size)
        report = semantic_id_report(semantic_ids, embeddings, indexer, earlier)
        if not arguments.co_occurrence:  # a new item has no co-occurrence, so the indexer could not encode it
            indexer.save_pretrained(folder / INDEXER_FOLDER)
            settings["item_encoder"] = arguments.item_encoder
    with atomic_file(folder / INDEX_FILE) as temporary:
        semantic_ids.save(temporary, items)
    report |= {"epochs": progress.epoch, "last_losses": progress.losses[-10:]}
    save_report(folder, report, arguments.plots)
    settings["report"] = report
    settings["codes_fingerprint"] = semantic_ids.fingerprint
    # The settings are written after the index: without them, a killed run is not taken for a finished one.
    with atomic_file(folder / SETTINGS_FILE) as temporary:
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    steps = progress.epoch * -(-len(items) // arguments.per_device_train_batch_size)
    save_record(folder, STAGE, {**training_record(arguments, progress), "steps": steps})
    logger.info("semantic IDs of %d items saved in %s", len(items), folder)
    return semantic_ids, progress


def ids_without_embeddings(arguments: IndexArguments, data: RecommendationData, items: IdMap) -> SemanticIds | None:
    """Return the semantic IDs of a method that reads no item texts; None for the others."""
    levels, size, seed = arguments.num_levels, arguments.codebook_size, arguments.seed
    match arguments.method:
        case "given":
            return read_released_semantic_ids(arguments.codes, items, levels, size, arguments.repair)
        case "random":
            return SemanticIds(random_codes(len(items), levels, size, seed), size)
        case "vanilla":
            return vanilla_semantic_ids(len(items))
        case "co-occurrence":
            return co_occurrence_semantic_ids(data.histories("train"), len(items), levels, size, seed)
    return None


def _indexer(arguments: IndexArguments, embeddings: np.ndarray) -> tuple[RQVAEModel, IndexProgress]:
    if arguments.method == "rk-means":
        model = residual_k_means(embeddings, arguments.num_levels, arguments.codebook_size, arguments.seed)
        return model, IndexProgress(finished=True)
    config = RQVAEConfig(
        embeddings.shape[1],
        arguments.hidden_dims,
        arguments.latent_dim,
        arguments.num_levels,
        arguments.codebook_size,
        beta=arguments.beta,
        sinkhorn_epsilon=arguments.sinkhorn_epsilon,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        model = RQVAEModel(config)
    return model, train_rqvae(model, embeddings, arguments)


def _check_sizes(num_items: int, arguments: IndexArguments) -> None:
    if arguments.method == "vanilla":
        return
    if arguments.num_levels > len(LEVEL_LETTERS):
        raise InputError(f"num_levels is {arguments.num_levels}; a semantic ID has at most {len(LEVEL_LETTERS)} levels")
    if num_items < arguments.codebook_size and arguments.method not in WITHOUT_EMBEDDINGS:
        raise InputError(
            f"{num_items} items are fewer than the {arguments.codebook_size} codes of a level, which K-means cannot start from; "
            f"lower codebook_size to {num_items} or less"
        )
    room = arguments.codebook_size**arguments.num_levels
    if num_items > room:
        raise InputError(
            f"{num_items} items are more than the {room} semantic IDs of {arguments.num_levels} levels of "
            f"{arguments.codebook_size} codes; raise num_levels or codebook_size"
        )


def _check_embeddings(embeddings: np.ndarray, items: IdMap) -> None:
    if embeddings.ndim != 2 or len(embeddings) != len(items):
        raise InputError(f"embeddings have shape {embeddings.shape}; {len(items)} items need one row each")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(1))
    if len(bad):
        raise InputError(
            f"the embeddings of {len(bad)} items are NaN or infinite, first {items.ids_of(bad[:5])}; check their texts and the "
            "encoder"
        )


def _identity(arguments: IndexArguments, items: IdMap) -> dict[str, Any]:
    given = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in NOT_PART_OF_AN_INDEX}
    return {**given, "catalogue_fingerprint": items.fingerprint}


def _check_folder(arguments: IndexArguments, identity: Mapping[str, Any]) -> None:
    """Raise if the output folder holds something else, or an index that is neither resumed nor overwritten."""
    folder = arguments.folder
    record = folder / RUN_FILE
    if (folder / INFO_FILE).exists():
        raise ExistingFileError(f"output: {folder} is a data folder, which is never written into; choose another output")
    if not record.exists():
        names = (INDEX_FILE, SETTINGS_FILE, INDEXER_FOLDER, CHECKPOINTS, "config.json")
        others = [name for name in names if (folder / name).exists()]
        if others:
            raise ExistingFileError(
                f"output: {folder} holds {', '.join(others)}, but no record of an index run; it may be a model or another run: "
                "choose another output"
            )
    elif arguments.resume:
        _check_same(record, identity)
    elif not arguments.overwrite:
        raise ExistingFileError(
            f"output: {folder} holds an index already; set resume to continue it, overwrite to replace it, or choose another "
            "output"
        )


def _check_same(record: Path, identity: Mapping[str, Any]) -> None:
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"resume: {record} is damaged ({error}); set overwrite, or choose another output") from error
    before = {"uniform_mapping": "all", "repair": False, **current_record(before, IndexArguments)}  # as in earlier versions
    changed = {key: (before.get(key), value) for key, value in identity.items() if before.get(key) != value}
    if changed:
        raise InputError(
            f"resume: the run in {record.parent} had other arguments (then, now): {changed}; give the same, or set overwrite"
        )


def _claim(arguments: IndexArguments, identity: Mapping[str, Any]) -> None:
    """Remove the files of an overwritten index, and record the arguments of this one."""
    folder = arguments.folder
    record = folder / RUN_FILE
    if record.exists() and arguments.resume:
        _check_same(record, identity)
        return
    if record.exists():
        for name in (CHECKPOINTS, INDEXER_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (INDEX_FILE, SETTINGS_FILE, *REPORT_FILES, RECORD_FILE, CURVES_FILE, RUN_FILE):
            (folder / name).unlink(missing_ok=True)
        embeddings = folder / EMBEDDINGS_FILE  # a cache, unless they were computed elsewhere
        if embeddings.exists() and embedding_settings(embeddings)["encoder"] is None:
            embeddings.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(record) as temporary:
        temporary.write_text(json.dumps(identity), encoding="utf-8")
