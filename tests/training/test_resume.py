"""Stopped, killed and resumed runs end with the bits of an uninterrupted one; what is no resumption is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import FinetuningStage, finetune
from modeling_cllm4rec.cllm4rec.pretraining import pretrain
from modeling_cllm4rec.commands.command_line import run_command
from modeling_cllm4rec.core.errors import FileWriteError, InputError
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset
from modeling_cllm4rec.training import checkpoints
from modeling_cllm4rec.training.interruption import RunInterrupted
from modeling_cllm4rec.training.stages import Part

Weights = dict[str, torch.Tensor]
Read = Callable[[Path | str], Weights]
Same = Callable[[Weights, Weights], None]
MakePretrain = Callable[..., PretrainArguments]
MakeFinetune = Callable[..., FinetuneArguments]
REPOSITORY = Path(__file__).parents[2]


def other_random_state(number: int) -> None:
    """Change the global random numbers as a resumed process does; nothing may depend on them."""
    torch.manual_seed(number)
    np.random.seed(number)


# The warm-up has 17 steps and the alternating epoch 2 L steps and 6 C steps: 3 stops in the warm-up (of the learning
# rate, too), 17 at the end of an epoch, 18 between two L steps, 20 inside the C pass, 25 is the last one.
PRETRAINING_STOPS = (3, 17, 18, 20)


@pytest.mark.parametrize("changes", [{}, {"tune": "lora", "lr_scheduler_type": "cosine"}], ids=["frozen", "lora"])
def test_resumed_pretraining_is_bit_equal(
    changes: dict[str, Any], pretrain_arguments: MakePretrain, tmp_path: Path, read_weights: Read, assert_same_bits: Same
) -> None:
    changes = {**changes, "warmup_steps": 0.2, "save_steps": 4}
    whole = pretrain_arguments(output=str(tmp_path / "whole"), **changes)
    _, progress = pretrain(whole)
    counts = [epoch["step"] for epoch in progress.history]
    assert counts[0] == PRETRAINING_STOPS[1] and counts[-1] > PRETRAINING_STOPS[-1] + 1
    for number, stop in enumerate(PRETRAINING_STOPS):
        other_random_state(number)
        _, progress = pretrain(pretrain_arguments(stop_after_steps=stop, resume=number > 0, **changes))
        assert (progress.step, progress.finished) == (stop, False)
        assert (progress.epoch, progress.step_in_epoch) == ((0, 3), (1, 0), (1, 1), (1, 3))[number]
    other_random_state(99)
    rest = pretrain_arguments(resume=True, **changes)
    _, progress = pretrain(rest)
    assert progress.finished
    assert [epoch["step"] for epoch in progress.history] == counts
    assert_same_bits(read_weights(rest.run_folder / "pretrained"), read_weights(whole.run_folder / "pretrained"))


@pytest.mark.parametrize(
    "changes",
    [
        {"tune": "full", "content_every": 3},
        {"item_loss": "sampled", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
        {"item_loss": "sampled", "average_decay": 0.9, "tune": "full", "content_every": 3},
        {"early_stopping_patience": 1, "reorder": False},
        {"average_decay": 0.9},
        {"teacher": "ease", "tune": "full"},
    ],
    ids=["full", "sampled", "sampled-average", "patience", "average", "teacher"],
)
def test_resumed_finetuning_is_bit_equal(
    changes: dict[str, Any], finetune_arguments: MakeFinetune, tmp_path: Path, read_weights: Read, assert_same_bits: Same
) -> None:
    whole = finetune_arguments(output=str(tmp_path / "whole"), **changes)
    _, expected = finetune(whole)
    for number, stop in enumerate((1, 4, 6)):
        other_random_state(number)
        finetune(finetune_arguments(stop_after_steps=stop, resume=number > 0, **changes))
    rest = finetune_arguments(resume=True, **changes)
    _, progress = finetune(rest)
    assert (progress.best, progress.best_epoch, progress.step) == (expected.best, expected.best_epoch, expected.step)
    assert_same_bits(read_weights(rest.run_folder), read_weights(whole.run_folder))


def test_a_resumed_run_reads_its_checkpoint_and_leaves_it_as_it_was(finetune_arguments: MakeFinetune) -> None:
    arguments = finetune_arguments(stop_after_steps=5)
    finetune(arguments)
    folder = checkpoints.latest(arguments.run_folder / "checkpoints" / "finetune")
    assert folder is not None and folder.name == "step-00000005"
    content = (folder / "tensors.safetensors").read_bytes()
    finetune(finetune_arguments(resume=True, stop_after_steps=7))
    assert (folder / "tensors.safetensors").read_bytes() == content


def test_resuming_without_a_checkpoint_starts_over(
    finetune_arguments: MakeFinetune, tmp_path: Path, read_weights: Read, assert_same_bits: Same
) -> None:
    """A run killed before its first checkpoint, or `--resume` given from the start."""
    first, second = (
        finetune_arguments(num_train_epochs=1),
        finetune_arguments(num_train_epochs=1, resume=True, output=str(tmp_path / "second")),
    )
    finetune(first)
    finetune(second)
    assert_same_bits(read_weights(second.run_folder), read_weights(first.run_folder))


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_resuming_a_finished_run_changes_nothing(
    stage: str, pretrain_arguments: MakePretrain, finetune_arguments: MakeFinetune, read_weights: Read, assert_same_bits: Same
) -> None:
    make, run = (pretrain_arguments, pretrain) if stage == "pretrain" else (finetune_arguments, finetune)
    _, first = run(make())  # type: ignore[operator]
    arguments = make(resume=True)
    folder = arguments.run_folder / ("pretrained" if stage == "pretrain" else "")
    before = read_weights(folder)
    (folder / "model.safetensors").write_bytes(b"torn")  # by a kill while the model was written
    _, again = run(arguments)  # type: ignore[operator]
    assert again.finished
    assert (again.step, again.best_epoch, again.history) == (first.step, first.best_epoch, first.history)
    assert_same_bits(read_weights(folder), before)


def test_resuming_does_not_warn(finetune_arguments: MakeFinetune, recwarn: pytest.WarningsRecorder) -> None:
    finetune(finetune_arguments(stop_after_steps=2))
    finetune(finetune_arguments(resume=True, stop_after_steps=3))
    assert [str(warning.message) for warning in recwarn if "lr_scheduler" in str(warning.message)] == []


# ---- what is no resumption ----


def test_an_output_folder_that_holds_another_run(finetune_arguments: MakeFinetune, read_weights: Read) -> None:
    arguments = finetune_arguments(num_train_epochs=1)
    finetune(arguments)
    before = read_weights(arguments.run_folder)
    message = "output: .*finetune holds a run already; pass resume=True .*overwrite=True .*or choose another output"
    with pytest.raises(FileExistsError, match=message):
        finetune(finetune_arguments(num_train_epochs=1, seed=7))
    assert all(torch.equal(one, before[name]) for name, one in read_weights(arguments.run_folder).items())
    finetune(finetune_arguments(num_train_epochs=1, seed=7, overwrite=True))
    assert not torch.equal(read_weights(arguments.run_folder)["item_collaborative.weight"], before["item_collaborative.weight"])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("stage", ["finetune", "pretrain"])
def test_an_output_folder_that_is_a_data_folder(
    stage: str,
    overwrite: bool,
    finetune_arguments: MakeFinetune,
    pretrain_arguments: MakePretrain,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    """Its users.parquet and README.md would be replaced by those of the model; no corpus and no trackers are written either."""
    copy = tmp_path / "copy"
    shutil.copytree(data_folder, copy)
    changes: dict[str, Any] = {"output": str(copy), "overwrite": overwrite, "report_to": "tensorboard"}
    with pytest.raises(FileExistsError, match="output: .*copy is a data folder, which is never written into"):
        if stage == "finetune":
            finetune(finetune_arguments(**changes, content_every=2))
        else:
            pretrain(pretrain_arguments(**changes))
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in data_folder.iterdir()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"had other arguments \(then, now\): \{'seed': \(42, 7\)\}; give the same ones, or pass overwrite=True"),
        ({"learning_rate": 0.5, "num_train_epochs": 9}, r"\{'num_train_epochs': \(3, 9\), 'learning_rate': \(0\.01, 0\.5\)\}"),
        ({"prompts": {"anonymous": "They chose {items} and"}}, r"'prompts': \(None, \{'anonymous'"),
    ],
)
def test_resuming_with_other_arguments(changes: dict[str, Any], message: str, finetune_arguments: MakeFinetune) -> None:
    finetune(finetune_arguments(stop_after_steps=2))
    with pytest.raises(ValueError, match=message):
        finetune(finetune_arguments(resume=True, **changes))


def test_arguments_that_may_change(finetune_arguments: MakeFinetune, tmp_path: Path) -> None:
    """How often to save, where to report and when to stop are no part of the result, and folders may be moved."""
    arguments = finetune_arguments(stop_after_steps=2)
    finetune(arguments)
    moved = tmp_path / "moved"
    arguments.run_folder.rename(moved)
    shutil.copytree(arguments.data, tmp_path / "data")
    _, progress = finetune(
        finetune_arguments(resume=True, output=str(moved), data=str(tmp_path / "data"), save_steps=1, stop_after_steps=3)
    )
    assert progress.step == 3


def test_resuming_on_another_split(finetune_arguments: MakeFinetune, synthetic_dataset: SyntheticDataset, tmp_path: Path) -> None:
    finetune(finetune_arguments(stop_after_steps=2))
    tables = (synthetic_dataset.interactions, synthetic_dataset.items, synthetic_dataset.users)
    prepare_tables(*tables, tmp_path / "other", split="random", seed=1)
    with pytest.raises(ValueError, match="had other arguments .*'data_sha256'"):
        finetune(finetune_arguments(resume=True, data=str(tmp_path / "other")))


def test_resuming_with_other_texts(finetune_arguments: MakeFinetune, synthetic_dataset: SyntheticDataset, tmp_path: Path) -> None:
    finetune(finetune_arguments(stop_after_steps=2))
    titles = pa.array([f"{title} again" for title in synthetic_dataset.items["title"].to_pylist()])
    items = synthetic_dataset.items.set_column(synthetic_dataset.items.column_names.index("title"), "title", titles)
    prepare_tables(synthetic_dataset.interactions, items, synthetic_dataset.users, tmp_path / "other", split="random", seed=0)
    with pytest.raises(ValueError, match="had other arguments .*'data_sha256'"):
        finetune(finetune_arguments(resume=True, data=str(tmp_path / "other")))


@pytest.mark.parametrize("tune", ["frozen", "full"])
def test_resuming_with_another_backbone(
    tune: str, pretrain_arguments: MakePretrain, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    """Of the same shape, and its weights a little different."""
    other: Any = AutoModelForCausalLM.from_pretrained(tiny_backbones["gpt2"])
    with torch.no_grad():
        other.transformer.h[1].mlp.c_fc.bias[0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_backbones["gpt2"]).save_pretrained(tmp_path / "other")
    pretrain(pretrain_arguments(stop_after_steps=2, tune=tune))
    with pytest.raises(ValueError, match="the run of .*step-00000002 started from other weights"):
        pretrain(pretrain_arguments(resume=True, tune=tune, backbone=str(tmp_path / "other")))


def test_a_torn_checkpoint_gives_way_to_the_one_before(
    finetune_arguments: MakeFinetune,
    tmp_path: Path,
    read_weights: Read,
    assert_same_bits: Same,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = finetune_arguments(output=str(tmp_path / "whole"))
    finetune(whole)
    arguments = finetune_arguments(save_steps=1, stop_after_steps=3)
    finetune(arguments)
    newest = arguments.run_folder / "checkpoints" / "finetune" / "step-00000003"
    (newest / "tensors.safetensors").write_bytes((newest / "tensors.safetensors").read_bytes()[:-100])
    _, progress = finetune(finetune_arguments(resume=True))
    assert progress.finished
    assert "step-00000003 cannot be read" in caplog.text and "going on from step-00000002" in caplog.text
    assert_same_bits(read_weights(arguments.run_folder), read_weights(whole.run_folder))


def test_when_no_checkpoint_can_be_read(finetune_arguments: MakeFinetune) -> None:
    arguments = finetune_arguments(stop_after_steps=3)
    finetune(arguments)
    (newest,) = (arguments.run_folder / "checkpoints" / "finetune").glob("step-*")
    (newest / "state.json").write_text('{"progress": ')
    with pytest.raises(InputError, match="step-00000003 cannot be read .*delete it, or start again with overwrite=True"):
        finetune(finetune_arguments(resume=True))


# ---- signals, and the clock ----


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    name: str,
    finetune_arguments: MakeFinetune,
    tmp_path: Path,
    read_weights: Read,
    assert_same_bits: Same,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = finetune_arguments(output=str(tmp_path / "whole"))
    finetune(whole)
    number = getattr(signal, name)
    before = signal.getsignal(number)
    read = FinetuningStage.inputs

    def inputs(self: FinetuningStage, part: Part) -> dict[str, torch.Tensor]:
        if part.number == 5:
            os.kill(os.getpid(), number)
        return read(self, part)

    arguments = finetune_arguments()
    with (
        monkeypatch.context() as patch,
        pytest.raises(KeyboardInterrupt, match=f"{name} after step 6, which is saved") as stopped,
    ):
        patch.setattr(FinetuningStage, "inputs", inputs)
        finetune(arguments)
    assert stopped.value.exit_code == 128 + number  # type: ignore[attr-defined]
    assert signal.getsignal(number) == before
    _, progress = finetune(finetune_arguments(resume=True))
    assert progress.finished
    assert_same_bits(read_weights(arguments.run_folder), read_weights(whole.run_folder))


def test_a_command_that_a_signal_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise RunInterrupted(signal.SIGTERM, "finetune", 6)

    assert run_command("cllm4rec finetune", work, {"resume": "--resume"}) == 143
    assert capsys.readouterr().err == (
        "cllm4rec finetune: finetune was stopped by SIGTERM after step 6, which is saved; go on with --resume\n"
    )


def test_checkpoints_by_the_clock(finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = checkpoints.save_step
    monkeypatch.setattr(
        checkpoints,
        "save_step",
        lambda folder, step, *rest: (saved.append(step), save(folder, step, *rest)),  # type: ignore[func-returns-value]
    )
    finetune(finetune_arguments(num_train_epochs=1, save_minutes=1e-9))
    assert saved == [1, 2, 3, 4]


def test_a_disk_that_fills_up_in_a_run(
    finetune_arguments: MakeFinetune, tmp_path: Path, read_weights: Read, assert_same_bits: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint cannot be written; with room again the run continues from the first, to the same bits."""
    whole = finetune_arguments(output=str(tmp_path / "whole"))
    finetune(whole)
    save, saved = checkpoints.save_file, []

    def fill(tensors: Any, path: Path) -> None:
        saved.append(path)
        if len(saved) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", fill)
        with pytest.raises(OSError, match="No space left on device.*earlier checkpoints are untouched"):
            finetune(finetune_arguments(save_steps=2))
    assert [path.parent.name for path in saved] == ["step-00000002.partial", "best.partial"]
    rest = finetune_arguments(resume=True, save_steps=2)
    finetune(rest)
    assert_same_bits(read_weights(rest.run_folder), read_weights(whole.run_folder))


def test_overwriting_follows_a_link_to_another_disk(finetune_arguments: MakeFinetune, tmp_path: Path) -> None:
    arguments = finetune_arguments(num_train_epochs=2)
    finetune(arguments)
    folder, elsewhere = arguments.run_folder / "checkpoints" / "finetune", tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    finetune(finetune_arguments(num_train_epochs=1, overwrite=True))
    assert folder.is_symlink() and json.loads((elsewhere / "run.json").read_text())["num_train_epochs"] == 1
    assert sorted(one.name for one in elsewhere.glob("step-*")) == ["step-00000004"]
    finetune(finetune_arguments(num_train_epochs=1, resume=True))


def test_a_run_that_cannot_be_deleted_is_not_overwritten(
    finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = finetune_arguments(num_train_epochs=1)
    finetune(arguments)

    def refuse(self: Path, *given: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(FileWriteError, match="overwrite: the run in .*finetune cannot be deleted .*denied.*; delete it"):
        finetune(finetune_arguments(num_train_epochs=1, overwrite=True))


def test_run_json_is_whole_or_not_there(finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(self: Path, text: str, **kwargs: Any) -> int:
        if "run.json" in self.name:
            write(self, text[:10], **kwargs)
            raise OSError(28, "No space left on device")
        return write(self, text, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left on device"):
            finetune(finetune_arguments(num_train_epochs=1))
    _, progress = finetune(finetune_arguments(num_train_epochs=1, resume=True))
    assert progress.finished


# ---- kill -9 ----

KILL_AT_RANDOM = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path

import torch

from modeling_cllm4rec.training import checkpoints
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import FinetuningStage, finetune
from modeling_cllm4rec.cllm4rec.pretraining import pretrain

def child(values):  # forked before any computation: importing all of this once is enough
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    stage, kind = (pretrain, PretrainArguments) if "backbone" in values else (finetune, FinetuneArguments)
    code = 1
    try:
        code = 0 if stage(kind(**values))[1].finished else 3
    finally:
        sys.stderr.flush()
        os._exit(code)

def attempt(values, seconds):
    began = time.monotonic()
    process = os.fork()
    if not process:
        child(values)
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - began
        if seconds is not None and time.monotonic() - began > seconds:
            os.kill(process, signal.SIGKILL)
            seconds = None
        time.sleep(0.002)

whole, killed, kills = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
code, length = attempt(whole, None)
assert code == 0, code
folder = Path(killed["output"]) / "checkpoints" / ("pretrain" if "backbone" in killed else "finetune")
draw, deaths, steps = random.Random(int(sys.argv[4])), 0, []
while True:
    code, _ = attempt({**killed, "resume": True}, draw.uniform(0.15, 0.5) * length if deaths < kills else None)
    last = checkpoints.latest(folder)
    if last is not None:  # the newest checkpoint always loads
        steps.append(checkpoints.read(last)[1]["progress"]["step"])
    if code == 0 and deaths < 2:  # the first run was slower, on a machine with other work: kill earlier
        assert length > 0.01, length
        shutil.rmtree(killed["output"])
        deaths, steps, length = 0, [], length / 2
        continue
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    deaths += 1
assert steps == sorted(steps), steps
print(json.dumps({"deaths": deaths, "steps": steps}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_killed_at_random_moments_and_resumed_is_bit_equal(
    stage: str,
    pretrain_arguments: MakePretrain,
    finetune_arguments: MakeFinetune,
    tmp_path: Path,
    read_weights: Read,
    assert_same_bits: Same,
) -> None:
    """SIGKILL up to twelve times, often while a checkpoint is written: one is written after each step."""
    make: Callable[..., Any] = pretrain_arguments if stage == "pretrain" else finetune_arguments
    epochs = 3 if stage == "pretrain" else 8
    whole, killed = (make(output=str(tmp_path / name), save_steps=1, num_train_epochs=epochs) for name in ("whole", "killed"))
    script = tmp_path / "kill.py"
    script.write_text(KILL_AT_RANDOM)
    ended = subprocess.run(
        [
            sys.executable,
            str(script),
            json.dumps(dataclasses.asdict(whole)),
            json.dumps(dataclasses.asdict(killed)),
            "12",
            "5",
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    story = json.loads(ended.stdout.splitlines()[-1])
    assert story["deaths"] > 1, story
    folders = [one.run_folder / ("pretrained" if stage == "pretrain" else "") for one in (whole, killed)]
    assert_same_bits(read_weights(folders[1]), read_weights(folders[0]))


def test_a_record_that_cannot_be_read(finetune_arguments: MakeFinetune) -> None:
    arguments = finetune_arguments(num_train_epochs=1)
    finetune(arguments)
    (arguments.run_folder / "checkpoints" / "finetune" / "run.json").write_text("{")
    with pytest.raises(InputError, match="run.json cannot be read .*; pass overwrite=True to start again"):
        finetune(finetune_arguments(num_train_epochs=1, resume=True))
