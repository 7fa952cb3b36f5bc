"""Names of transformers and earlier names, in Python, in YAML and as flags."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments as TrainerArguments

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.commands.stage_arguments import parse_arguments
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.lcrec.arguments import IndexArguments
from modeling_cllm4rec.training.argument_names import EARLIER, HONOURED, REFUSED

BASE = {"data": "d", "output": "o"}
OLD = {"epochs": 3, "batch_size": 8, "lr": 0.5, "backbone_lr": 0.25, "backbone_weight_decay": 0.1, "schedule": "constant"}
OLD |= {"warmup_share": 0.2, "attention": "own", "precision": "bf16", "patience": 2, "save_every": 7, "lora_rank": 4}
NEW = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 0.5, "backbone_learning_rate": 0.25}
NEW |= {"weight_decay": 0.1, "lr_scheduler_type": "constant", "warmup_steps": 0.2, "attn_implementation": None}
NEW |= {"bf16": True, "early_stopping_patience": 2, "save_steps": 7, "lora_r": 4}


def yaml_file(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "own.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    return str(path)


def of_python(values: dict[str, Any], folder: Path) -> FinetuneArguments:
    return FinetuneArguments(**BASE, **values)


def of_yaml(values: dict[str, Any], folder: Path) -> FinetuneArguments:
    words = ["--data", "d", "--output", "o", "--config", yaml_file(folder, values)]
    return parse_arguments(FinetuneArguments, "finetune", words)


def of_flags(values: dict[str, Any], folder: Path) -> FinetuneArguments:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return parse_arguments(FinetuneArguments, "finetune", ["--data", "d", "--output", "o", *flags])


WAYS = pytest.mark.parametrize("made", [of_python, of_yaml, of_flags], ids=["python", "yaml", "flags"])


@WAYS
def test_earlier_names_give_a_warning_and_the_same_arguments(made: Any, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="learning_rate; the old name goes with version 0.2"):
        arguments = made(OLD, tmp_path)
    assert {name: getattr(arguments, name) for name in NEW} == NEW


def test_every_earlier_name_is_tried() -> None:
    assert set(EARLIER) - set(OLD) == {"eval_batch_size", "warmup_ratio"}


@WAYS
def test_names_of_transformers_give_no_warning(made: Any, tmp_path: Path) -> None:
    given = {name: value for name, value in NEW.items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        arguments = made({**given, "logging_steps": 5, "adam_beta2": 0.95, "dataloader_num_workers": 2}, tmp_path)
    assert {name: getattr(arguments, name) for name in given} == given
    assert arguments.trainer == {"logging_steps": 5, "adam_beta2": 0.95, "dataloader_num_workers": 2}


def test_flags_without_a_value_and_with_a_space() -> None:
    words = ["--data", "d", "--output", "o", "--logging-first-step", "--logging_steps", "5", "--bf16"]
    arguments = parse_arguments(FinetuneArguments, "finetune", words)
    assert arguments.trainer == {"logging_first_step": True, "logging_steps": 5} and arguments.bf16


def test_other_names_of_folders() -> None:
    arguments = PretrainArguments(data="d", output_dir="o", model_name_or_path="gpt2", overwrite_output_dir=True)  # type: ignore[call-arg]
    assert (arguments.output, arguments.backbone, arguments.overwrite) == ("o", "gpt2", True)


@pytest.mark.parametrize(("value", "resume", "folder"), [(True, True, None), ("false", False, None), ("a/b", True, "a/b")])
def test_resume_from_checkpoint_as_in_transformers(value: Any, resume: bool, folder: str | None) -> None:
    arguments = FinetuneArguments(**BASE, resume_from_checkpoint=value)
    assert (arguments.resume, arguments.resume_from_checkpoint) == (resume, folder)


def test_arguments_of_the_indexer() -> None:
    with pytest.warns(DeprecationWarning, match="epochs is now num_train_epochs"):
        arguments = IndexArguments(**BASE, epochs=70, batch_size=9, lr=0.1, save_every=3)  # type: ignore[call-arg]
    assert (arguments.num_train_epochs, arguments.per_device_train_batch_size, arguments.learning_rate) == (70, 9, 0.1)


OTHER_VALUES = {
    "eval_strategy": "epoch",
    "save_strategy": "best",
    "deepspeed": "zero3.json",
    "max_steps": 100,
}


@pytest.mark.parametrize("name", sorted(REFUSED))
@WAYS
def test_an_argument_that_no_stage_honours_is_named(made: Any, name: str, tmp_path: Path) -> None:
    defaults = {one.name: one.default for one in dataclasses.fields(TrainerArguments)}
    if name not in defaults:
        pytest.skip(f"transformers has no {name} any more")
    value = OTHER_VALUES.get(name, not defaults[name] if isinstance(defaults[name], bool) else 7)
    with pytest.raises(InputError, match=f"{name} is .*, an argument of transformers.TrainingArguments that is not honoured: "):
        made({name: value}, tmp_path)


def test_the_default_of_an_argument_that_is_not_honoured_is_fine() -> None:
    assert FinetuneArguments(**BASE, max_steps=-1, fp16=False).trainer is None  # type: ignore[call-arg]


def test_every_argument_of_transformers_has_an_answer() -> None:
    """Each is a field, passed on, or refused unless it has its default: none is silently left out."""
    own = {one.name for one in dataclasses.fields(FinetuneArguments)}
    for one in dataclasses.fields(TrainerArguments):
        if one.name in own or one.name in HONOURED or one.name in ("output_dir",):
            continue
        with pytest.raises(InputError, match=f"{one.name} is .*not honoured"):
            FinetuneArguments(**BASE, **{one.name: "a value of its own"})


def test_an_argument_by_two_names() -> None:
    with (
        pytest.raises(InputError, match="learning_rate is given twice, once as lr; leave one of them out"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)
        FinetuneArguments(**BASE, learning_rate=0.1, lr=0.2)  # type: ignore[call-arg]


def test_unknown_names_stay_errors_of_their_kind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'lern_rate'"):
        FinetuneArguments(**BASE, lern_rate=0.1)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="trainer: transformers.TrainingArguments has no argument 'lern_rate'"):
        FinetuneArguments(**BASE, trainer={"lern_rate": 0.1})
    with pytest.raises(InputError, match="trainer is given together with logging_steps"):
        parse_arguments(FinetuneArguments, "finetune", ["--data=d", "--output=o", "--logging-steps=3", "--trainer={}"])
