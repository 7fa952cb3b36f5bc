"""Trackers of experiments, through `Trainer`: each one runs offline and receives the arguments, the losses and the metrics."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from modeling_cllm4rec.cllm4rec import finetuning
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.core import optional_packages
from modeling_cllm4rec.core.errors import MissingPackageError

MakeFinetune = Callable[..., FinetuneArguments]
STEPS = [4, 8, 12]
"""Steps of the validations of a run of three epochs of four steps. Losses are also logged at step 10 (`logging_steps`)."""
CONFIG = {"num_train_epochs": 3, "learning_rate": 0.01, "per_device_train_batch_size": 16, "item_loss": "auto", "num_items": 40}


class Run(NamedTuple):
    """What a tracker holds of a run: its name, its configuration, and name -> steps of what was logged."""

    name: str
    config: dict[str, Any]
    steps: dict[str, list[int]]


def steps_of(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return the steps of each name, from rows that hold the step under `train/global_step`."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for name in row:
            found.setdefault(name, []).append(int(row["train/global_step"]))
    return found


def read_tensorboard(folder: Path, runs: Path) -> list[Run]:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = []
    for file in sorted(runs.rglob("events.out.tfevents.*")):
        events = module.EventAccumulator(str(file))
        events.Reload()
        steps = {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
        texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0] for name in events.Tags()["tensors"]}
        config = {**json.loads(texts["model_config/text_summary"]), **json.loads(texts["args/text_summary"])}
        found.append(Run(config["run_name"], config, steps))
    return found


def read_trackio(folder: Path, runs: Path) -> list[Run]:
    trackio = pytest.importorskip("trackio")
    api = trackio.Api()
    storage = trackio.SQLiteStorage
    runs_there = sorted(api.runs("huggingface"), key=lambda run: run.config["_Created"])
    return [Run(run.name, run.config, steps_of(storage.get_logs("huggingface", run.name))) for run in runs_there]


def read_mlflow(folder: Path, runs: Path) -> list[Run]:
    client = pytest.importorskip("mlflow").MlflowClient()
    found = []
    for run in client.search_runs(["0"], order_by=["attributes.start_time"]):
        names = {name.replace("eval_", "eval/").replace("_20", "@20"): name for name in run.data.metrics}
        steps = {
            (name if "/" in name else f"train/{name}"): [one.step for one in client.get_metric_history(run.info.run_id, stored)]
            for name, stored in names.items()
        }
        config = {name: read_value(value) for name, value in run.data.params.items()}
        found.append(Run(run.info.run_name, config, steps))
    return found


def read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_wandb(folder: Path, runs: Path) -> list[Run]:
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    pytest.importorskip("wandb").teardown()  # its service writes the files a little later
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        name, config, rows = "", {}, []
        for data in wandb_records(file.read_bytes()):
            record = messages.Record.FromString(data)
            name = record.run.display_name or name
            for update in (*record.config.update, *record.run.config.update):
                config["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in items})
        found.append(Run(name, config, steps_of(rows)))
    return found


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file of wandb: a header of 7 bytes, then pieces of records in blocks of 32 kB, as in LevelDB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no room for the header of a piece
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""


READERS = {"tensorboard": read_tensorboard, "trackio": read_trackio, "mlflow": read_mlflow, "wandb": read_wandb}


@pytest.fixture(params=READERS)
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a tracker, which works offline and writes below `tmp_path`."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    module = pytest.importorskip(request.param)
    if request.param == "trackio":  # which reads its folder once, when it is imported
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    if request.param == "wandb":  # which reads its variables once in a process
        module.teardown()
    if request.param == "mlflow":
        module.set_tracking_uri(None)
    return str(request.param)


def test_a_tracker_receives_arguments_losses_and_metrics_once(
    tracker: str, finetune_arguments: MakeFinetune, tmp_path: Path
) -> None:
    for output in ("first", "second"):
        finetune(finetune_arguments(report_to=tracker, output=str(tmp_path / "runs" / output)))
    runs = READERS[tracker](tmp_path, tmp_path / "runs")
    assert [run.name.rsplit("-", 2)[0] for run in runs] == ["runs/first-finetune", "runs/second-finetune"]
    for run in runs:
        assert {name: run.config[name] for name in CONFIG} == CONFIG
        assert run.steps["eval/selection"] == run.steps["eval/recall@20"] == STEPS
        losses = ("train/recommendation_nll", "train/loss", "train/learning_rate", "train/grad_norm")
        assert [run.steps[name] for name in losses] == [[4, 8, 10, 12]] * len(losses)


def test_a_resumed_run_has_its_name(tracker: str, finetune_arguments: MakeFinetune, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "first"
    finetune(finetune_arguments(report_to=tracker, output=str(output), stop_after_steps=6))
    finetune(finetune_arguments(report_to=tracker, output=str(output), resume=True))
    runs = READERS[tracker](tmp_path, tmp_path / "runs")
    assert len({run.name for run in runs}) == 1
    assert len(runs) == (1 if tracker == "trackio" else 2)
    assert sorted(step for run in runs for step in run.steps["eval/selection"]) == STEPS
    finetune(finetune_arguments(report_to=tracker, output=str(output), num_train_epochs=1, overwrite=True, seed=1))
    last = READERS[tracker](tmp_path, tmp_path / "runs")[-1]
    assert last.config["seed"] == 1 and last.steps["eval/selection"] == [4]


def test_a_run_of_the_caller_stays_open(
    finetune_arguments: MakeFinetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, name="mine") as run:
        finetune(finetune_arguments(report_to="wandb", num_train_epochs=1))
        assert wandb.run is run
    (seen,) = read_wandb(tmp_path, tmp_path)
    assert seen.name == "mine" and seen.steps["eval/selection"] == [4]


def test_no_tracker_writes_nothing(finetune_arguments: MakeFinetune) -> None:
    arguments = finetune_arguments(num_train_epochs=1)
    finetune(arguments)
    assert not (arguments.run_folder / "runs").exists()
    assert not list(arguments.run_folder.rglob("*tfevents*"))


@pytest.mark.parametrize("name", READERS)
def test_a_tracker_that_is_not_installed(name: str, finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None)
    monkeypatch.delitem(optional_packages.sys.modules, name, raising=False)
    monkeypatch.setattr(finetuning.RecommendationData, "load", lambda *given, **named: pytest.fail("data is read"))
    message = rf"report_to='{name}' needs {name}, which is not installed; run: pip install .*, or pass report_to='none'"
    with pytest.raises(MissingPackageError, match=message):
        finetune(finetune_arguments(report_to=name))
