"""Train a CLLM4Rec recommender on a table of interactions in one call."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.usual import LARGEST_EASE, usual_baselines
from modeling_cllm4rec.cllm4rec.arguments import INIT_COLUMNS, FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.cllm4rec.pretraining import check_backbone, pretrain
from modeling_cllm4rec.cllm4rec.prompts import Prompts
from modeling_cllm4rec.core.console_log import ConsoleHandler, hide_loading_bars
from modeling_cllm4rec.core.errors import ExistingFileError, InputError, MissingFileError, nearest
from modeling_cllm4rec.corpora.atomic_files import atomic_file, atomic_folder
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.dataset_sources import HUB_PREFIX
from modeling_cllm4rec.corpora.memory_tables import TableLike, as_table, is_in_memory
from modeling_cllm4rec.corpora.preparation import prepare_folder
from modeling_cllm4rec.corpora.raw_data import open_raw_data
from modeling_cllm4rec.corpora.raw_data import prepare as prepare_data
from modeling_cllm4rec.corpora.readers import checksum
from modeling_cllm4rec.evaluation.evaluator import comparison_table, evaluate
from modeling_cllm4rec.evaluation.verdicts import compare, verdicts
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.hub.model_card import save_evaluation
from modeling_cllm4rec.training.argument_names import current_names
from modeling_cllm4rec.training.arguments import read_yaml, stage_settings
from modeling_cllm4rec.training.backbones import train_backbone, training_texts, untrained_backbone

if TYPE_CHECKING:
    from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation

logger = logging.getLogger(__name__)

RECORD = "quickstart.json"
"""Fingerprints of the tables and arguments that OUTPUT/data was prepared from."""
COMPARED_METRICS = ("recall@20", "ndcg@10")
VALIDATION_REPORT = "evaluation-validation-given-train"


def train_recommender(
    interactions: TableLike,
    output: str | Path,
    *,
    backbone: str | None = None,
    items: TableLike | None = None,
    users: TableLike | None = None,
    prepare: Mapping[str, Any] | None = None,
    pretraining: Mapping[str, Any] | None = None,
    finetuning: Mapping[str, Any] | None = None,
    config: str | Path = "quickstart.yaml",
    overwrite: bool = False,
    verbose: bool = True,
    **shared: Any,
) -> CLLM4RecForRecommendation:
    """Prepare a table of interactions, pretrain and finetune CLLM4Rec on it, compare it with baselines, and return it.

    A second call with the same arguments goes on where the first one was stopped. Prepared data is used again as long as its
    tables and its arguments are the same.

    Args:
        interactions: one row per interaction: `user_id`, `item_id`, and optionally `rating`, `timestamp`, `review`, `split`, or
            columns with names that are known (`userId`, `reviewerID`, ...). A path, a data frame of pandas or polars, a
            `datasets.Dataset`, or a list of dicts; see `readers.open_source`. Or the folder of a public data set as it is
            downloaded; see `formats.PRESETS`.
        output: folder of the run, where the model is saved; the data folder is written to `OUTPUT/data`.
        backbone: name or path of a causal language model, such as `gpt2`. By default a GPT-2 of about one million parameters is
            trained on the texts of the data (without texts: drawn at random), which needs no download and takes a minute or two;
            a pretrained model is slower and usually better.
        items: `item_id` and texts (`title`, `brand`, `categories`, `description`, or known names such as `genres`).
        users: `user_id` and `biography`.
        prepare: arguments of `raw_data.prepare`, such as `{"split": "temporal", "k_core": 5}`, or, for columns with other names,
            `{"user_column": "customer", "item_column": "article", "text": {"title": "headline"}}`.
        pretraining, finetuning: arguments of one stage, fields of `PretrainArguments` and `FinetuneArguments`.
        config: YAML file with the defaults of both stages, or the name of one that the package brings (recipes/configs).
        overwrite: whether to replace an earlier run in `output` that had other tables or arguments, and to train again from the
            beginning.
        verbose: whether to print estimates, progress and the comparison to standard error, unless logging is set up already.
        shared: arguments of both stages, such as `num_train_epochs=5, per_device_train_batch_size=64`.

    Returns:
        The finished model, loaded from `output`.

    Raises:
        InputError: the tables cannot be read, an argument is unknown or has a value that is not allowed, or
            `output` holds a run with other arguments.
        MissingFileError: there is no such backbone or file.
        ExistingFileError: `output` holds data prepared from other tables or with other arguments.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"user_id": ["ann"] * 3, "item_id": [1, 2, 3]})
        >>> model = train_recommender(frame, "runs/mine", backbone="gpt2")  # doctest: +SKIP
        >>> model.recommend(users=["ann"], k=10).to_pandas()  # doctest: +SKIP
    """
    output = Path(output)
    place = {"data": str(output / "data"), "output": str(output), "resume": not overwrite, "overwrite": overwrite}
    recipe = read_yaml(config)
    shared = current_names(shared, FinetuneArguments)
    pretraining = current_names(pretraining or {}, PretrainArguments)
    finetuning = current_names(finetuning or {}, FinetuneArguments)
    _check_names(shared, prepare or {}, pretraining, finetuning)
    first = {**stage_settings(recipe, config, PretrainArguments, "pretrain"), **place, **shared, **pretraining}
    second = {**stage_settings(recipe, config, FinetuneArguments, "finetune"), **place, **shared, **finetuning}
    for given in (shared, pretraining, finetuning):
        if given.get("stop_after_steps"):
            raise InputError(
                "stop_after_steps ends a stage early, but train_recommender needs both whole; call the stages instead"
            )
    with _shown_log(verbose):
        # What can be checked without the data is checked before anything is written.
        pretrain_arguments = PretrainArguments(**{"backbone": backbone or "one of its own", **first})
        finetune_arguments = FinetuneArguments(**second)
        if backbone is not None:
            check_backbone(backbone)
        data = _prepared(output, {"interactions": interactions, "items": items, "users": users}, prepare or {}, overwrite)
        pretrain_arguments.backbone = backbone or str(_own_backbone(data, output / "backbone", pretrain_arguments.seed))
        if "init_ids" not in first:
            pretrain_arguments.init_ids = "text" if _has_words(data) else "random"
        if "ease" in finetune_arguments.teacher.split("+") and "teacher" not in {**shared, **finetuning}:
            finetune_arguments.teacher = finetune_arguments.teacher if data.num_items <= LARGEST_EASE else ""
            if not finetune_arguments.teacher:
                logger.info("no teacher: EASE would hold %s pairs of items in memory", f"{data.num_items**2:,}")
        pretrain(pretrain_arguments)
        finetune(finetune_arguments)
        model = cast("CLLM4RecForRecommendation", load_recommender(output))
        _compare(model, data, output)
    return model


def _check_names(
    shared: Mapping[str, Any], prepare: Mapping[str, Any], pretraining: Mapping[str, Any], finetuning: Mapping[str, Any]
) -> None:
    """Refuse arguments that nothing here takes, and say where those belong that were passed at the wrong place.

    Raises:
        InputError: the name, and the place where it is known or the nearest names.
    """
    own = {"output", "overwrite", "sources"} & set(prepare)
    if own:
        raise InputError(f"prepare has {min(own)!r}, which train_recommender sets; pass it to train_recommender, or remove it")
    read, written = open_raw_data.__kwdefaults__ or {}, prepare_folder.__kwdefaults__ or {}
    known = {
        "prepare": {*read, *written} - {"overwrite", "sources", "source_columns", "on_step"},
        "pretraining": {one.name for one in dataclasses.fields(PretrainArguments)},
        "finetuning": {one.name for one in dataclasses.fields(FinetuneArguments)},
    }
    given = {"prepare": prepare, "pretraining": pretraining, "finetuning": finetuning}
    places = [("", shared, known["pretraining"] & known["finetuning"])]
    places += [(f"{place}: ", given[place], known[place]) for place in given]
    for place, arguments, allowed in places:
        for name in arguments:
            if name in allowed:
                continue
            home = next((home for home, names in known.items() if name in names), None)
            advice = f"pass {home}={{{name!r}: ...}}" if home else nearest(name, sorted(allowed))
            raise InputError(f"{place}unknown argument {name!r}; {advice}")


def _prepared(
    output: Path, tables: Mapping[str, TableLike | None], prepare: Mapping[str, Any], overwrite: bool
) -> RecommendationData:
    """Prepare OUTPUT/data, or load it where it was prepared from the same tables with the same arguments.

    Raises:
        ExistingFileError: it was prepared from others, and `overwrite` is not set.
        InputError: as `raw_data.prepare`.
    """
    folder = output / "data"
    given = {name: as_table(table) if table is not None and is_in_memory(table) else table for name, table in tables.items()}
    sources = [_source(name, table) for name, table in given.items() if table is not None]
    record = json.loads(json.dumps({"sources": sources, "prepare": dict(prepare)}, default=str))
    if folder.exists():
        before = _read_record(output / RECORD)
        if before == record:
            logger.info("%s is used again: it was prepared from the same tables with the same arguments", folder)
            return RecommendationData.load(folder)
        if not overwrite:
            changed = [name for name in record if before.get(name) != record[name]] if before else ["the record is missing"]
            raise ExistingFileError(
                f"output: {folder} was prepared from other tables or with other arguments ({', '.join(changed)} differ); pass "
                "overwrite=True to prepare and train again, or choose another output"
            )
    arguments: dict[str, Any] = {**prepare, **given}
    if "format" in prepare:
        arguments |= {"interactions": None, "folder": given["interactions"]}
    data = prepare_data(folder, **arguments, overwrite=overwrite, sources=sources)
    shutil.rmtree(output / "backbone", ignore_errors=True)  # trained on the texts of other data
    with atomic_file(output / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return data


def _source(name: str, table: TableLike) -> dict[str, str]:
    """Return the record of a source: its table, its file and its SHA-256."""
    if isinstance(table, (str, Path)):
        if not str(table).startswith(HUB_PREFIX) and not Path(table).exists():
            raise MissingFileError(f"{name}: there is no such file: {table}")
        return {"table": name, "file": Path(table).name, "sha256": checksum(table)}
    digest = hashlib.sha256()
    sink = pa.PythonFile(_Digest(digest), mode="w")
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None).combine_chunks())
    return {"table": name, "file": "a table in memory", "sha256": digest.hexdigest()}


class _Digest:
    """A file that only computes the hash of what is written."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self.digest = digest

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        return len(block)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def _read_record(path: Path) -> dict[str, Any]:
    """Read the record of prepared data; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _has_words(data: RecommendationData) -> bool:
    """Check whether any item has a text that its row can be initialized from."""
    present = [name for name in INIT_COLUMNS if name in data.items.column_names]
    return any(data.items[name].null_count < data.num_items for name in present)


def _own_backbone(data: RecommendationData, folder: Path, seed: int) -> Path:
    """Make a small GPT-2: trained on the texts of the data, or, without texts, with random weights."""
    if (folder / "config.json").is_file():
        return folder
    with atomic_folder(folder) as temporary:
        if next(training_texts(data), None) is None:
            logger.info("no backbone is named and the data has no texts: a small GPT-2 with random weights is the backbone")
            untrained_backbone(data, temporary, dataclasses.asdict(Prompts()).values(), seed=seed)
        else:
            logger.info(
                "no backbone is named: a small GPT-2 is trained on the texts of the data; name one, such as gpt2, to use it"
            )
            train_backbone(data, temporary, context_length=512, max_text_tokens=64, epochs=1, seed=seed)
    return folder


def _compare(model: CLLM4RecForRecommendation, data: RecommendationData, output: Path) -> None:
    """Measure the model and two baselines on validation, log their differences in words, and put them into the card."""
    if not len(data.histories("validation").items):
        logger.info("the data has no validation interactions, so the model is not compared with baselines")
        return
    metrics = tuple(name for name in COMPARED_METRICS if int(name.partition("@")[2]) <= data.num_items)
    recommenders: dict[str, Any] = {}
    for name in usual_baselines(data):
        try:
            recommenders[name] = fit_baseline(name, data)
        except InputError as error:  # such as texts that share no word; the model is trained and must not be lost
            logger.warning("no comparison with %s: %s", name, error)
    recommenders["CLLM4Rec"] = model
    reports = {
        name: evaluate(recommender, data, "validation", metrics=metrics, progress=False)
        for name, recommender in recommenders.items()
    }
    report = compare(reports, "CLLM4Rec")
    save_evaluation(output, VALIDATION_REPORT, report, data, model)
    logger.info("on validation:\n%s\n\n%s", comparison_table(reports), "\n".join(verdicts(report, "CLLM4Rec")))


@contextlib.contextmanager
def _shown_log(shown: bool) -> Iterator[None]:
    """Print the log of this package to standard error, unless logging is set up already."""
    package = logging.getLogger(__name__.partition(".")[0])
    if not shown or package.hasHandlers():
        yield
        return
    handler, level = ConsoleHandler(), package.level
    hide_loading_bars()
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
