"""The folder of a run: which run it holds, and whether another one may write into it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from modeling_cllm4rec.core.errors import ExistingFileError, FileWriteError, InputError, MissingFileError
from modeling_cllm4rec.core.processes import process_count
from modeling_cllm4rec.corpora.atomic_files import atomic_file, check_output_folder
from modeling_cllm4rec.corpora.data_folder import INFO_FILE, RecommendationData
from modeling_cllm4rec.training import checkpoints
from modeling_cllm4rec.training.argument_names import current_record
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.stages import step_batch_size

NOT_PART_OF_A_RUN = (
    *("resume", "resume_from_checkpoint", "overwrite", "stop_after_steps", "report_to", "save_steps", "save_minutes"),
    *("output", "data", "start", "backbone", "index", "max_memory", "push_to_hub", "hub_model_id", "hub_private_repo"),
    "hub_strategy",
    *("fsdp", "fsdp_config", "shard_tables_above", "per_device_train_batch_size", "gradient_accumulation_steps"),
)
"""Arguments that a resumed run may change: they do not change the result, or their content is compared instead.

Of the batch size, the accumulation and the number of processes, their product is compared: a run goes on, on other processes.
"""


CHANGE_THE_RESULT = ("adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs")
"""Arguments of transformers that are passed on and are part of a run."""

STEP_SIZE = "documents_per_step"
"""Key in the identity of a run: documents of an optimizer step, over all processes and accumulation steps."""

BEGUN = "begun"
"""Key in the file of a run: when it was begun. A resumed run keeps it."""

RUN_FILE = "run.json"
"""Arguments of the run of a folder, which a resumed run is compared with. Its costs are in `RECORD_FILE`, `training.json`."""


def run_identity(arguments: TrainingArguments, data: RecommendationData) -> dict[str, Any]:
    """Return the arguments and fingerprints of a run; two runs with the same identity compute the same weights."""
    identity = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in NOT_PART_OF_A_RUN}
    passed_on = identity.pop("trainer") or {}
    identity |= {key: value for key, value in passed_on.items() if key in CHANGE_THE_RESULT}
    identity[STEP_SIZE] = step_batch_size(arguments)
    return {**identity, "data_sha256": data_fingerprint(data), **arguments.fingerprints()}


def check_folder(stage: str, arguments: TrainingArguments, data: RecommendationData) -> None:
    """Check that a stage may write to its output folder, before the stage is built; nothing is written.

    Raises:
        ExistingFileError: the folder is a file or a data folder, or holds a run and neither `resume` nor `overwrite` is set.
        FileWriteError: the folder may not be written into.
        InputError: `resume` is set, but the run in the folder had other arguments or data, which are listed.
    """
    check_output_folder(arguments.run_folder)
    folder = stage_folder(stage, arguments)
    record = folder / RUN_FILE
    if (arguments.run_folder / INFO_FILE).exists():
        raise ExistingFileError(
            f"output: {arguments.run_folder} is a data folder, which is never written into; choose another output"
        )
    # A run that was killed before its first checkpoint has nothing to lose or to go on with.
    if not record.exists() or arguments.overwrite or not checkpoints.any_saved(folder):
        return
    if not arguments.resume:
        raise ExistingFileError(
            f"output: {folder} holds a run already; pass resume=True to continue it, overwrite=True to replace it, or "
            "choose another output"
        )
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"resume: {record} cannot be read ({error}); pass overwrite=True to start again") from error
    before = current_record(before, type(arguments))
    if STEP_SIZE not in before and "per_device_train_batch_size" in before:  # recorded by an earlier version
        size = before["per_device_train_batch_size"] * before["gradient_accumulation_steps"]
        before[STEP_SIZE] = size * process_count()
    identity = run_identity(arguments, data)
    changed = {key: (before.get(key), value) for key, value in identity.items() if before.get(key) != value}
    if changed:
        raise InputError(
            f"resume: the run in {folder} had other arguments (then, now): {changed}; give the same ones, or pass overwrite=True"
        )


def check_start(start: str, run_folder: Path) -> None:
    """Check the folder of the model that an update continues from.

    Raises:
        MissingFileError: there is no such folder.
        InputError: it is the output folder.
    """
    if not Path(start).is_dir():
        raise MissingFileError(f"start: there is no folder {start}; name a trained model")
    if Path(start).resolve() == run_folder.resolve():
        raise InputError(f"start and output are both {start}; choose another output, so that the old model is kept")


def claim_folder(stage: str, arguments: TrainingArguments, data: RecommendationData) -> None:
    """Record the identity of this run in its folder, after deleting a run to be overwritten.

    Raises:
        ExistingFileError, InputError: as `check_folder`.
        FileWriteError: as `check_folder`; or a run to be overwritten cannot be deleted.
    """
    check_folder(stage, arguments, data)
    folder = stage_folder(stage, arguments)
    record = folder / RUN_FILE
    if arguments.overwrite:
        _empty(folder)
    if record.exists() and checkpoints.any_saved(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(record) as temporary:
        begun = time.strftime("%Y%m%d-%H%M%S")
        temporary.write_text(json.dumps({**run_identity(arguments, data), BEGUN: begun}), encoding="utf-8")


def _empty(folder: Path) -> None:
    """Delete what is in a folder, but not the folder: it may be a link to another disk."""
    try:
        for path in folder.iterdir() if folder.exists() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise FileWriteError(
            f"overwrite: the run in {folder} cannot be deleted ({error}); delete it, or choose another output"
        ) from error


def begun_at(stage: str, arguments: TrainingArguments) -> str:
    """Return when the run of a folder was begun, as `20261128-170501`; empty for no run, or one of an earlier version."""
    record = stage_folder(stage, arguments) / RUN_FILE
    if not record.exists():
        return ""
    return str(json.loads(record.read_text(encoding="utf-8")).get(BEGUN, ""))


def stage_folder(stage: str, arguments: TrainingArguments) -> Path:
    """Return the folder of a stage's record and checkpoints."""
    return arguments.run_folder / "checkpoints" / stage


def data_fingerprint(data: RecommendationData) -> str:
    """Return the SHA-256 of ids, texts and interactions, so that a run is not resumed on other data or another split."""
    digest = hashlib.sha256()
    for table in (data.users, data.items, data.interactions):
        for name in table.column_names:
            digest.update(name.encode())
            for start in range(0, table.num_rows, 65536):
                values = table[name].slice(start, 65536).to_pylist()
                digest.update(json.dumps(values, default=str).encode())
    return digest.hexdigest()
