"""Sharded training: on two processes the losses of one, half of the weights on each, and an ordinary folder at the end."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from launches import assert_halves, assert_same_run, command, launch
from torch import nn
from transformers import AutoModelForCausalLM

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.core import processes
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.lcrec.alignment import align
from modeling_cllm4rec.lcrec.arguments import AlignArguments
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.training import checkpoints, sharding
from modeling_cllm4rec.training.launch import start_processes
from modeling_cllm4rec.training.parameters import TrainedRows
from modeling_cllm4rec.training.sharding import ShardingSettings, decoder_layers, sharded_by_us, sharding_settings

MakePretrain = Callable[..., PretrainArguments]
MakeFinetune = Callable[..., FinetuneArguments]
MakeAlign = Callable[..., AlignArguments]
Read = Callable[[Path | str], dict[str, torch.Tensor]]


@pytest.fixture
def align_arguments(data: RecommendationData, still_backbone: Path, index_folder: Path, tmp_path: Path) -> MakeAlign:
    def make(**changes: Any) -> AlignArguments:
        values: dict[str, Any] = {
            "data": str(data.folder),
            "index": str(index_folder),
            "backbone": str(still_backbone),
            "output": str(tmp_path / "run"),
            "num_train_epochs": 1,
            "per_device_train_batch_size": 16,
            "max_text_tokens": 8,
            "tasks": ["seqrec"],
            "eval_users": 20,
            "num_beams": 10,
        }
        return AlignArguments(**{**values, **changes})

    return make


@pytest.fixture
def two(tmp_path: Path) -> Callable[..., Any]:
    """Return arguments with half the batch size and sharded weights, in another output folder."""

    def make(arguments: Any, **changes: Any) -> Any:
        half = arguments.per_device_train_batch_size // 2
        name = Path(arguments.output).name
        values = {"output": str(tmp_path / f"{name}-two"), "per_device_train_batch_size": half, "fsdp": True, **changes}
        return dataclasses.replace(arguments, **values)

    return make


# ---- one short run: two processes ----


@pytest.mark.slow
def test_a_sharded_alignment_equals_one_process(
    align_arguments: MakeAlign, two: Callable[..., Any], tmp_path: Path, read_weights: Read
) -> None:
    """Frozen words, which are rows of the trained matrix; an item head that is read; five batches of validation for two."""
    one = align_arguments(tune="frozen", per_device_eval_batch_size=4, item_head="free")
    _, progress = align(one)
    shared = launch([("align", two(one))], tmp_path / "two")
    (alone,) = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in progress.history]
    for (seen,) in shared:
        assert seen["finished"] and seen["history"] == [pytest.approx(alone, rel=1e-5)]
        assert_halves(seen)
    assert [run[0]["devices"] for run in shared] == [["cpu"], ["meta"]]
    ours, theirs = read_weights(one.output), read_weights(two(one).output)
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-5, atol=1e-6)
    model, info = LCRecForRecommendation.from_pretrained(two(one).output, output_loading_info=True)
    assert not info["unexpected_keys"]
    first = model.config.first_index_token
    words = AutoModelForCausalLM.from_pretrained(one.backbone).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[:first], words)
    names = [{file.name for file in Path(folder).iterdir()} for folder in (one.output, two(one).output)]
    assert names[1] - {"training_curves.png"} == names[0]  # this process draws no pictures, see conftest.py


# ---- all stages ----


@pytest.mark.slow
def test_all_stages_equal_one_process(
    pretrain_arguments: MakePretrain,
    finetune_arguments: MakeFinetune,
    align_arguments: MakeAlign,
    two: Callable[..., Any],
    still_backbone: Path,
    tiny_backbones: dict[str, Path],
    tmp_path: Path,
    read_weights: Read,
) -> None:
    """L and C steps with a moving average, LoRA, whole backbones of two kinds, bf16, accumulation, clipping, all item losses."""
    first = pretrain_arguments(
        backbone=str(still_backbone),
        output=str(tmp_path / "first"),
        per_device_train_batch_size=16,
        warmup_epochs=0,
        content_share=0.1,
        average_decay=0.9,
        tune="full",
        learning_rate=1e-3,
        lambda_l=0.1,
    )
    second = finetune_arguments(
        start=str(tmp_path / "first" / "pretrained"),
        output=str(tmp_path / "second"),
        tune="lora",
        content_every=2,
        num_train_epochs=1,
        learning_rate=1e-3,
    )
    chunked = dataclasses.replace(second, output=str(tmp_path / "chunked"), tune="full", item_loss="chunked", content_every=0)
    clipped = dataclasses.replace(chunked, output=str(tmp_path / "clipped"), item_loss="sampled", max_grad_norm=0.3)
    half = dataclasses.replace(second, output=str(tmp_path / "half"), tune="frozen", bf16=True)
    whole = align_arguments(
        output=str(tmp_path / "whole"), backbone=str(tiny_backbones["llama"]), tune="full", gradient_checkpointing=True
    )
    runs = [("pretrain", first), *(("finetune", one) for one in (second, chunked, clipped, half)), ("align", whole)]
    (alone,) = launch(runs, tmp_path / "alone", 1)
    kept = {"reshard_after_forward": False}
    parts = two(clipped, per_device_train_batch_size=4, gradient_accumulation_steps=2, fsdp_config=kept)
    sharded = [two(first), two(second), two(chunked), parts, two(half), two(whole)]
    shared = launch([(stage, one) for (stage, _), one in zip(runs, sharded, strict=True)], tmp_path / "shared")
    for number, (arguments, seen) in enumerate(zip(sharded, alone, strict=True)):
        limits = {"rel": 1e-3, "swapped": 2 / 60} if arguments.bf16 else {}  # 2 of the 60 users
        assert_same_run(seen, shared[0][number], shared[1][number], **limits)
        assert_halves(shared[0][number], shared[1][number])
    for folder in ("first/pretrained", "second", "chunked", "whole"):
        theirs = read_weights(tmp_path / folder.replace("first", "first-two").replace("second", "second-two"))
        if folder in ("chunked", "whole"):
            theirs = read_weights(tmp_path / f"{folder}-two")
        for name, weight in read_weights(tmp_path / folder).items():
            torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=2e-5)
    # The frozen backbone, gathered in 16 bits, comes back to the bit.
    start, end = read_weights(second.start), read_weights(two(half).output)
    assert all(torch.equal(end[name], start[name]) for name in end if name.startswith("backbone."))
    model = CLLM4RecForRecommendation.from_pretrained(two(second).output)
    assert type(model) is CLLM4RecForRecommendation and not any("lora" in name for name, _ in model.named_parameters())


# ---- checkpoints ----


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_on_another_number_of_processes(
    before: int, after: int, finetune_arguments: MakeFinetune, tmp_path: Path, read_weights: Read
) -> None:
    def arguments(processes: int, **changes: Any) -> FinetuneArguments:
        return finetune_arguments(
            per_device_train_batch_size=16 // processes,
            fsdp=processes > 1,
            dropout=0.0,
            tune="full",
            average_decay=0.9,
            learning_rate=1e-3,
            **changes,
        )

    whole = arguments(1, output=str(tmp_path / "whole"))
    (alone,) = launch([("finetune", whole)], tmp_path / "one", 1)
    launch([("finetune", arguments(before, stop_after_steps=6))], tmp_path / "before", before)
    shared = launch([("finetune", arguments(after, resume=True))], tmp_path / "after", after)
    assert len(shared[0][0]["nll"]) == len(alone[0]["nll"]) - 6
    assert_same_run(alone[0], *(seen[0] for seen in shared))
    for name, weight in read_weights(whole.output).items():
        torch.testing.assert_close(read_weights(tmp_path / "run")[name], weight, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on(finetune_arguments: MakeFinetune, tmp_path: Path) -> None:
    """SIGKILL of one process after the first checkpoint; torchrun ends the other."""
    arguments = finetune_arguments(
        per_device_train_batch_size=4, fsdp=True, dropout=0.0, tune="full", save_steps=1, num_train_epochs=2
    )
    whole = dataclasses.replace(arguments, output=str(tmp_path / "whole"))
    alone = launch([("finetune", whole)], tmp_path / "alone")
    words, variables = command([("finetune", arguments)], tmp_path / "killed", 2)
    running = subprocess.Popen(words, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = Path(arguments.output) / "checkpoints" / "finetune"
    end = time.monotonic() + 300
    while not list(folder.glob("step-????????")) and time.monotonic() < end:
        time.sleep(0.02)
    psutil.Process(running.pid).children()[0].kill()
    assert running.wait(timeout=120) != 0
    shared = launch([("finetune", dataclasses.replace(arguments, resume=True))], tmp_path / "resumed")
    assert_same_run(alone[0][0], *(seen[0] for seen in shared))
    names = sorted(file.name for file in checkpoints.latest(folder).iterdir())  # type: ignore[union-attr]
    assert names == [*(f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)), "state.json", "trainer_state.json"]


def test_a_checkpoint_that_lacks_a_file(tmp_path: Path) -> None:
    checkpoints.write_atomically(tmp_path / "one", {"a": torch.ones(3, 2)}, {checkpoints.FILES: 1})
    tensors, state = checkpoints.read(tmp_path / "one", lambda name: None)
    assert torch.equal(tensors["a"], torch.ones(3, 2)) and state[checkpoints.FILES] == 1
    shutil.move(tmp_path / "one" / checkpoints.WHOLE, tmp_path / "one" / "shard-00002.safetensors")
    (tmp_path / "one" / checkpoints.STATE).write_text(json.dumps({checkpoints.FILES: 2}))
    with pytest.raises(
        InputError, match="the checkpoint .*one cannot be read .it has 1 of its 2 files of tensors.; delete it, or"
    ):
        checkpoints.read(tmp_path / "one")


# ---- what the combination cannot do ----


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"cpu_offload": True},
            "fsdp_config has 'cpu_offload', which is not honoured; allowed are version, reshard_after_forward",
        ),
        ({"fsdp_version": 1}, "fsdp_config: version is 1; it must be 2"),
        ({"reshard_after_forward": "yes"}, "fsdp_config: reshard_after_forward is 'yes'; it must be True or False"),
        ("{", "fsdp_config is '{', which is no JSON"),
    ],
)
def test_settings_of_sharding_that_are_refused(given: Any, message: str, finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(InputError, match=message):
        finetune_arguments(fsdp=True, fsdp_config=given)


def test_settings_of_sharding_from_a_file(finetune_arguments: MakeFinetune, tmp_path: Path) -> None:
    (tmp_path / "fsdp.json").write_text('{"fsdp_reshard_after_forward": false}')
    arguments = finetune_arguments(fsdp=True, fsdp_config=str(tmp_path / "fsdp.json"))
    assert sharding_settings(arguments) == ShardingSettings(reshard_after_forward=False, shard_tables_above=1.0)
    with pytest.raises(
        MissingFileError, match="fsdp_config: there is no file fsdp.yaml; name a JSON file, or give a JSON object"
    ):
        finetune_arguments(fsdp_config="fsdp.yaml")


LAUNCH = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version is 1 in the launch configuration; only FSDP2 is supported: set fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is true in the launch configuration, which is not supported"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing is true .*: set gradient_checkpointing=True"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading is true .*; set .*: false"),
        ({"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, "fsdp_auto_wrap_policy is NO_WRAP .*: set fsdp_auto_wrap_policy: TRANSFORMER"),
        (
            {"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"},
            "fsdp_reshard_after_forward is FULL_SHARD .*; it must be true .ZeRO-3. or",
        ),
    ],
)
def test_launch_settings_that_are_refused(
    environment: dict[str, str], message: str, finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**LAUNCH, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        start_processes(finetune_arguments())


def test_launch_settings_that_are_honoured(finetune_arguments: MakeFinetune, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharding_settings(finetune_arguments()) is None
    for name, value in {**LAUNCH, "FSDP_RESHARD_AFTER_FORWARD": "false"}.items():
        monkeypatch.setenv(name, value)
    assert sharding_settings(finetune_arguments(shard_tables_above=2.5)) == ShardingSettings(False, shard_tables_above=2.5)
    own = finetune_arguments(fsdp=True, fsdp_config={"reshard_after_forward": True})
    assert sharding_settings(own) == ShardingSettings(reshard_after_forward=True, shard_tables_above=1.0)
    with sharded_by_us():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_one_process_has_nothing_to_share(finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(InputError, match="fsdp: weights are sharded over all processes and this is the only one; launch two or"):
        start_processes(finetune_arguments(fsdp=True))


def test_sharded_layers_are_not_compiled(finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(InputError, match="torch_compile and fsdp are both set; sharded layers are not compiled: leave one"):
        start_processes(finetune_arguments(fsdp=True, torch_compile=True))


def test_a_backbone_without_layers() -> None:
    model: Any = nn.Module()
    model.backbone = nn.Linear(2, 2)
    with pytest.raises(InputError, match="fsdp: Linear has no layers that transformers marks as such, .*; set fsdp=False, or"):
        decoder_layers(model)


# ---- parts ----


@pytest.mark.parametrize("backbone", ["gpt2", "llama", "qwen2"])
def test_the_layers_of_a_backbone(backbone: str, tiny_backbones: dict[str, Path]) -> None:
    model = CLLM4RecForRecommendation.from_backbone(tiny_backbones[backbone], num_users=3, num_items=5)
    layers = decoder_layers(model)
    assert len(layers) == 2 and all(type(layer).__name__.lower().startswith(backbone) for layer in layers)
    units = sharding.Units.of(model, layers)
    assert units.root + 2 * units.layer == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(("pieces", "count"), [(5, 2), (1, 3), (4, 2), (0, 2)])
def test_all_processes_get_equally_many_pieces(pieces: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "process_count", lambda: count)
    shares = []
    for number in range(count):
        monkeypatch.setattr(processes, "process_number", lambda number=number: number)
        shares.append(list(processes.shared_out(range(pieces))))
    assert {len(share) for share in shares} == {-(-pieces // count)}
    assert sorted(piece for share in shares for piece, counts in share if counts) == list(range(pieces))
    assert all(piece == 0 for share in shares for piece, counts in share if not counts)


def test_the_rows_that_learn_in_each_shard() -> None:
    rows = torch.tensor([False, True, True, False, True])  # of two processes the first holds three rows

    class Shard:
        """A stand-in for a DTensor."""

        def __init__(self, number: int, gradient: torch.Tensor) -> None:
            self.grad, self.device_mesh = self, self
            self.number, self.gradient = number, gradient

        def to_local(self) -> torch.Tensor:
            return self.gradient

        def get_local_rank(self) -> int:
            return self.number

        def size(self) -> int:
            return 2

    for number, expected in enumerate(([[0.0], [1.0], [1.0]], [[0.0], [1.0]])):
        gradient = torch.ones(len(expected), 1)
        TrainedRows(rows).zero_others(Shard(number, gradient))
        assert gradient.tolist() == expected
    weight = nn.Parameter(torch.ones(5, 1))
    assert TrainedRows.of(weight) is None
    weight.register_hook(hook := TrainedRows(rows))
    assert TrainedRows.of(weight) is hook
