"""Arguments: YAML sets defaults, flags have the last word, and whatever is not allowed is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.prompts import Prompts
from modeling_cllm4rec.commands.stage_arguments import parse_arguments
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments
from modeling_cllm4rec.training.arguments import read_config, read_yaml

ROOT = Path(__file__).parents[2]
CONFIGS = [
    path
    for path in sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
    if not path.stem.endswith(("baselines", "benchmark"))  # those are read by `benchmark quality`
]
BASE = {"data": "data/mine", "output": "runs/mine"}
FLAGS = ["--data", "data/mine", "--output", "runs/mine"]


def write(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def parse_pretrain(folder: Path, text: str, *flags: str) -> PretrainArguments:
    argv = [*FLAGS, "--backbone", "gpt2", "--config", write(folder, text), *flags]
    return parse_arguments(PretrainArguments, "pretrain", argv)


def parse_finetune(folder: Path, text: str, *flags: str) -> FinetuneArguments:
    return parse_arguments(FinetuneArguments, "finetune", [*FLAGS, "--config", write(folder, text), *flags])


# ---- YAML and flags ----


def test_yaml_sets_defaults_and_flags_have_the_last_word(tmp_path: Path) -> None:
    text = "seed: 7\nnum_train_epochs: 3\nlearning_rate: 0.5\npretrain:\n  num_train_epochs: 4\n  tune: lora\n"
    arguments = parse_pretrain(tmp_path, text, "--learning-rate", "0.25", "--tune", "full")
    assert (arguments.seed, arguments.num_train_epochs, arguments.learning_rate, arguments.tune) == (7, 4, 0.25, "full")
    assert arguments.per_device_train_batch_size == PretrainArguments(**BASE, backbone="gpt2").per_device_train_batch_size


@pytest.mark.parametrize("position", ["before", "after", "equals"])
def test_the_place_of_config_does_not_matter(position: str, tmp_path: Path) -> None:
    path = write(tmp_path, "num_train_epochs: 3\nlearning_rate: 0.5\n")
    argv = {
        "before": ["--config", path, *FLAGS, "--learning-rate", "0.25"],
        "after": [*FLAGS, "--learning-rate", "0.25", "--config", path],
        "equals": [*FLAGS, f"--config={path}", "--learning-rate", "0.25"],
    }[position]
    arguments = parse_arguments(FinetuneArguments, "finetune", argv)
    assert (arguments.num_train_epochs, arguments.learning_rate) == (3, 0.25)


def test_the_section_of_the_other_stage_is_not_read(tmp_path: Path) -> None:
    text = "pretrain:\n  num_train_epochs: 3\nfinetune:\n  num_train_epochs: 5\n  drop_user: 0.5\n"
    assert parse_pretrain(tmp_path, text).num_train_epochs == 3
    finetune = parse_finetune(tmp_path, text)
    assert (finetune.num_train_epochs, finetune.drop_user) == (5, 0.5)


def test_a_file_of_nothing_and_no_file_are_fine(tmp_path: Path) -> None:
    assert parse_finetune(tmp_path, "") == FinetuneArguments(**BASE) == parse_arguments(FinetuneArguments, "finetune", FLAGS)


def test_numbers_as_yaml_reads_them(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for a string and 1 for an integer."""
    arguments = parse_pretrain(tmp_path, "learning_rate: 1e-3\nbackbone_learning_rate: 2E-4\nlambda_c: 1\nmax_grad_norm: 0.5\n")
    assert (arguments.learning_rate, arguments.backbone_learning_rate, arguments.lambda_c, arguments.max_grad_norm) == (
        1e-3,
        2e-4,
        1.0,
        0.5,
    )
    assert isinstance(arguments.lambda_c, float)


def test_booleans_lists_and_optional_values(tmp_path: Path) -> None:
    text = "reorder: false\nmax_text_tokens: 64\nmax_history_tokens: null\npretrain:\n  init_columns: [title]\n"
    arguments = parse_pretrain(tmp_path, text, "--resume")
    assert (arguments.reorder, arguments.resume) == (False, True)
    assert (arguments.max_text_tokens, arguments.max_history_tokens, arguments.init_columns) == (64, None, ["title"])
    assert parse_pretrain(tmp_path, "", "--no_reorder", "--init_columns", "title", "brand").init_columns == ["title", "brand"]
    assert parse_pretrain(tmp_path, "", "--no_reorder").reorder is False


def test_prompts_from_yaml_and_from_a_flag(tmp_path: Path) -> None:
    changed = Prompts(review="{user} on {item}:")
    assert parse_pretrain(tmp_path, "prompts:\n  review: '{user} on {item}:'\n").templates == changed
    arguments = parse_pretrain(tmp_path, "", "--prompts", '{"review": "{user} on {item}:"}')
    assert arguments.templates == changed
    assert arguments.prompts == {"review": "{user} on {item}:"}
    assert parse_pretrain(tmp_path, "").templates == Prompts()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: "-".join(path.parts[-2:]))
def test_every_config_of_the_recipes_parses_for_its_stages(config: Path) -> None:
    argv = [*FLAGS, "--config", str(config)]
    backbone, index = ["--backbone", "gpt2"], ["--index", "runs/index"]
    if config.stem.endswith("_index"):
        assert parse_arguments(IndexArguments, "index", argv).output == "runs/mine"
    elif config.stem.endswith(("lcrec", "lcrec_head")):
        assert parse_arguments(AlignArguments, "align", [*argv, *backbone, *index]).output == "runs/mine"
    elif config.stem.endswith("_tiger"):
        assert parse_arguments(AlignArguments, "align", [*argv, *index]).scratch_layers > 0
    else:
        assert parse_arguments(PretrainArguments, "pretrain", [*argv, *backbone]).output == "runs/mine"
        assert parse_arguments(FinetuneArguments, "finetune", argv).start == str(Path("runs/mine/pretrained"))


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 2


def test_a_packaged_config_is_found_by_its_name() -> None:
    paper = parse_arguments(FinetuneArguments, "finetune", [*FLAGS, "--config", "paper/cllm4rec.yaml"])
    assert (paper.tune, paper.mask_share, paper.learning_rate, paper.drop_user) == ("frozen", 0.2, 1e-4, 0.0)


@pytest.mark.parametrize("kind", [PretrainArguments, FinetuneArguments, IndexArguments, AlignArguments])
def test_every_argument_has_a_help_text(kind: type[Any]) -> None:
    assert all(one.metadata.get("help") for one in kind.__dataclass_fields__.values())


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_train_epoch: 3", r"unknown key 'num_train_epoch'; did you mean 'num_train_epochs'"),
        ("qqqq: 3", r"unknown key 'qqqq'; known are .*warmup_steps"),
        ("pretrain:\n  warmup_epoch: 3", r"pretrain: unknown key 'warmup_epoch'; did you mean 'warmup_epochs'"),
        ("pretrain:\n  mask_share: 0.5", r"pretrain: unknown key 'mask_share'"),
        ("warmup_epochs: 3", r"unknown key 'warmup_epochs'"),  # a key of one stage belongs under its name
        ("pretain:\n  num_train_epochs: 3", r"unknown key 'pretain'"),
        ("num_train_epochs: 5.0", r"num_train_epochs is 5\.0 \(float\); it must be int"),
        ("num_train_epochs: '5'", r"num_train_epochs is '5' \(str\); it must be int"),
        ("num_train_epochs: true", r"num_train_epochs is True \(bool\); it must be int"),
        ("learning_rate: fast", r"learning_rate is 'fast'; it must be a number"),
        ("learning_rate: [0.1]", r"learning_rate is \[0\.1\]; it must be a number"),
        ("learning_rate: true", r"learning_rate is True \(bool\); it must be float"),
        ("learning_rate: null", r"learning_rate is None \(NoneType\); it must be float"),
        ("learning_rate: .nan", r"learning_rate is nan; it must be a finite number"),
        ("lambda_c: .inf", r"lambda_c is inf; it must be a finite number"),
        ("data: 5", r"data is 5 \(int\); it must be str"),
        ("reorder: 3", r"reorder is 3 \(int\); it must be bool"),
        ("pretrain:\n  init_columns: title", r"init_columns is 'title' \(str\); it must be list"),
        ("pretrain:\n  init_columns: [1, 2]", r"init_columns is \[1, 2\] \(list\); it must be list"),
        ("max_text_tokens: 6.5", r"max_text_tokens is 6\.5 \(float\); it must be int or null"),
        ("prompts: 5", r"prompts is 5 \(int\); it must be dict or str or null"),
        ("prompts: {review: 5}", r"prompts is \{'review': 5\} \(dict\); it must be dict"),
        ("prompts: {reviews: x}", r"prompts: unknown template 'reviews'; did you mean 'review'\?"),
        ("prompts: '{'", r"prompts is '\{', which is no JSON"),
        ("prompts: '[]'", r"prompts is '\[\]'; it must be a JSON object"),
        ("tune: forzen", r"tune is 'forzen'; allowed are 'frozen', 'lora', 'full'"),
        ("mutual_regularization: realeased", r"mutual_regularization is 'realeased'; allowed are 'paper', 'released'"),
        ("- 5", r"expected keys and values, got list"),
        ("pretrain: 5", r"pretrain: expected keys and values, got int"),
        ("a: [1", r"config\.yaml is no YAML: while parsing"),
    ],
)
def test_bad_yaml(text: str, message: str, tmp_path: Path) -> None:
    argv = ["--backbone", "gpt2", "--output", "o", "--config", write(tmp_path, text)]
    with pytest.raises(ValueError, match=message):
        parse_arguments(PretrainArguments, "pretrain", argv if "data" in text else [*argv, "--data", "d"])


def test_a_config_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="config: there is no file missing.yaml"):
        parse_arguments(FinetuneArguments, "finetune", [*FLAGS, "--config", "missing.yaml"])


def test_configs_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "d", "--backbone", "b", "--output", "o", "--config", "beauty.yaml"]
    packaged = parse_arguments(PretrainArguments, "pretrain", flags)
    assert packaged.drop_user == read_yaml(ROOT / "recipes" / "configs" / "beauty.yaml")["drop_user"] != 0
    (tmp_path / "beauty.yaml").write_text("drop_user: 0.25\n")
    assert parse_arguments(PretrainArguments, "pretrain", flags).drop_user == 0.25  # what is here comes first
    with pytest.raises(FileNotFoundError, match="there is no file x/beauty.yaml; name yours, or one of .*, demo.yaml"):
        parse_arguments(PretrainArguments, "pretrain", [*flags[:-1], "x/beauty.yaml"])


def test_a_mistyped_flag_is_named_and_not_what_it_would_have_set() -> None:
    with pytest.raises(ValueError, match=r"unknown flag '--bakbone'; did you mean '--backbone'"):
        parse_arguments(PretrainArguments, "pretrain", ["--data", "d", "--output", "o", "--bakbone", "x"])


def test_reading_a_config_gives_its_own_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nfinetune:\n  seed: 2\n")
    assert read_config(path, FinetuneArguments, "finetune") == {"seed": 2}
    assert read_config(path, PretrainArguments, "pretrain") == {"seed": 1}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-train-epoch", "3"], r"unknown flag '--num-train-epoch'; did you mean '--num-train-epochs'"),  # no abbreviations
        (["--conf", "x.yaml"], r"unknown flag '--conf'"),
        (["--mask-shares", "3"], r"unknown flag '--mask-shares'; did you mean '--mask-share'"),
        (["stray"], r"unexpected word 'stray'"),
    ],
)
def test_unknown_flags(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_arguments(FinetuneArguments, "finetune", [*FLAGS, *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-train-epochs", "many"], "argument --num_train_epochs/--num-train-epochs: invalid int value: 'many'"),
        (["--tune", "forzen"], "argument --tune: invalid choice: 'forzen'"),
        (["--config"], "argument --config: expected one argument"),
    ],
)
def test_flags_that_argparse_refuses_end_with_code_2(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(FinetuneArguments, "finetune", [*FLAGS, *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


COMMON: list[tuple[dict[str, Any], str]] = [
    ({"lora_dropout": 1.0}, "lora_dropout is 1.0; it must be 0 or more and lie below 1"),
    ({"data": ""}, r"data is not set; give data=\.\.\., or set it in"),
    ({"output": ""}, r"output is not set; give output=\.\.\., or"),
    *(
        ({name: 0}, rf"{name} is 0; it must be 1 or more")
        for name in (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "lora_r",
            "lora_alpha",
            "save_steps",
            "max_text_tokens",
            "max_history_tokens",
        )
    ),
    *(
        ({name: -1}, rf"{name} is -1; it must be 0 or more")
        for name in (
            "seed",
            "learning_rate",
            "backbone_learning_rate",
            "weight_decay",
            "lambda_c",
            "lambda_l",
            "max_grad_norm",
            "warmup_steps",
            "early_stopping_patience",
            "stop_after_steps",
        )
    ),
    ({"warmup_steps": 1.5}, r"warmup_steps is 1\.5; it must be a whole number of steps, or a share below 1"),
    ({"lambda_l": 0.1, "mutual_regularization": "released"}, r"lambda_l is 0\.1, but the released code has no prior"),
    ({"resume": True, "overwrite": True}, r"resume and overwrite are both set"),
    *(
        ({name: "other"}, rf"{name} is 'other'; allowed are '")
        for name in ("tune", "lr_scheduler_type", "mutual_regularization", "item_loss", "optim", "report_to")
    ),
    ({"learning_rate": float("nan")}, r"learning_rate is nan; it must be a finite number"),
    ({"num_train_epochs": "3"}, r"num_train_epochs is '3' \(str\); it must be int"),
    ({"prompts": {"review": "{user}"}}, r"prompts\.review is '\{user\}'; it must hold each of"),
]


@pytest.mark.parametrize(("values", "message"), COMMON)
@pytest.mark.parametrize("kind", [PretrainArguments, FinetuneArguments])
def test_values_that_no_stage_allows(kind: type[Any], values: dict[str, Any], message: str) -> None:
    own = {"backbone": "gpt2"} if kind is PretrainArguments else {}
    with pytest.raises(ValueError, match=message):
        kind(**{**BASE, **own, **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": ""}, r"backbone is not set; it must be the name or the path"),
        ({"warmup_epochs": -1}, r"warmup_epochs is -1; it must be 0 or more"),
        ({"num_train_epochs": -1}, r"num_train_epochs is -1; it must be 0 or more"),
        ({"init_ids": "zeros"}, r"init_ids is 'zeros'; allowed are 'text', 'text_vectors', 'random'"),
        ({"content_share": 1.5}, r"content_share is 1\.5; it must lie between 0 and 1"),
        ({"text_validation_share": -0.1}, r"text_validation_share is -0\.1; it must lie between 0 and 1"),
    ],
)
def test_values_that_pretraining_does_not_allow(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainArguments(**{**BASE, "backbone": "gpt2", **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_train_epochs": 0}, r"num_train_epochs is 0; it must be 1 or more"),
        ({"mask_share": 0.0}, r"mask_share is 0\.0; it must lie between 0 and 1, both excluded"),
        ({"teacher_power": 0.0}, r"teacher_power is 0\.0; it must be above 0"),
        ({"teacher_weight": -1.0}, r"teacher_weight is -1\.0; it must be 0 or more"),
        ({"teacher_items": 0}, r"teacher_items is 0; it must be 1 or more"),
        ({"teacher": "ease", "teacher_settings": ["shrink"]}, r"teacher_settings: 'shrink' has no = in it"),
        ({"mask_share": 1.0}, r"mask_share is 1\.0; it must lie between 0 and 1, both excluded"),
        ({"drop_user": 1.1}, r"drop_user is 1\.1; it must lie between 0 and 1"),
        ({"dropout": 1.0}, r"dropout is 1\.0; it must be 0 or more and lie below 1"),
        ({"average_decay": 1.0}, r"average_decay is 1\.0; it must be 0 \(no averaging\) or lie below 1"),
        ({"content_every": -1}, r"content_every is -1; it must be 0 or more"),
        ({"eval_every": 0}, r"eval_every is 0; it must be 1 or more"),
        ({"per_device_eval_batch_size": 0}, r"per_device_eval_batch_size is 0; it must be 1 or more"),
        ({"target": "some"}, r"target is 'some'; allowed are 'holdout', 'all', 'next'"),
        ({"target": "next"}, r"target is 'next', which reads the order of histories; set reorder: false, or target: holdout"),
        ({"train_on": "test"}, r"train_on is 'test'; allowed are 'train', 'train\+validation'"),
    ],
)
def test_values_that_finetuning_does_not_allow(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneArguments(**{**BASE, **values})


def test_finetuning_starts_from_the_pretrained_model_of_the_run() -> None:
    assert FinetuneArguments(**BASE).start == str(Path("runs/mine/pretrained"))
    assert FinetuneArguments(**BASE, start="elsewhere").start == "elsewhere"


def test_a_config_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match=f"{path} is no text in UTF-8 .*; a YAML file is needed"):
        read_yaml(path)
