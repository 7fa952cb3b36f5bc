"""Commands in the card do again what was done, and licences are those that a backbone states."""

import json
import shlex
from pathlib import Path

import pytest

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.update import UpdateArguments
from modeling_cllm4rec.commands.stage_arguments import parse_arguments
from modeling_cllm4rec.hub.reproduction import backbone_record, changed_arguments, training_command
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments

SHARED = {"data": "my data", "output": "runs/it's mine", "seed": 7}
CASES = {
    "pretrain": PretrainArguments(
        **SHARED, backbone="gpt2", reorder=False, learning_rate=3e-4, init_columns=["title"], prompts={"biography": "{user} is: "}
    ),
    "finetune": FinetuneArguments(**SHARED, content_every=3, average_holdout=True, max_history_tokens=99),
    "update": UpdateArguments(**SHARED, start="runs/old", average_decay=0.9, dropout=0.0),
    "index-items": IndexArguments(**SHARED, hidden_dims=[16, 8], fields=["title"], num_train_epochs=70, max_text_tokens=5),
    "align": AlignArguments(**SHARED, index="runs/index", backbone="gpt2", tasks=["seqrec", "item2index=0.5"]),
}


@pytest.mark.parametrize("stage", CASES)
def test_a_command_gives_the_same_arguments(stage: str) -> None:
    arguments = CASES[stage]
    command = training_command(stage, changed_arguments(arguments))
    program, name, *words = shlex.split(command)
    assert (program, name) == ("cllm4rec", stage)
    section = "index" if stage == "index-items" else stage
    assert parse_arguments(type(arguments), section, words) == arguments


def test_only_what_is_computed_is_repeated() -> None:
    arguments = PretrainArguments(data="d", output="o", backbone="gpt2", resume=True, save_steps=3, report_to="tensorboard")
    assert changed_arguments(arguments) == {"data": "d", "output": "o", "backbone": "gpt2"}
    old = {"data": "d", "overwrite": True, "max_text_tokens": None}  # a record that names all arguments
    assert training_command("finetune", old) == "cllm4rec finetune --data d"
    launched = training_command("finetune", old, processes=4)
    assert launched == "accelerate launch --num_processes 4 -m modeling_cllm4rec finetune --data d"


@pytest.mark.parametrize(
    "card, config, stated",
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", {"license": "mit"}, "apache-2.0"),
        ("---\nlicense: other\nlicense_name: some-terms\n---\n", {}, "other (some-terms)"),
        ("---\nlicense: [mit, cc0-1.0]\n---\n", {}, "mit, cc0-1.0"),
        ("# A model\n", {"license": "mit"}, "mit"),
        (None, {}, None),
    ],
)
def test_the_licence_of_a_backbone(card: str | None, config: dict, stated: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert backbone_record(str(tmp_path)) == {"name": str(tmp_path), "local": True, "license": stated, "language": []}


@pytest.mark.parametrize(("stated", "languages"), [("en", ["en"]), ("[en, de]", ["en", "de"]), ("", [])])
def test_the_languages_of_a_backbone(stated: str, languages: list[str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\nlanguage: {stated}\n---\n# A model\n")
    assert backbone_record(str(tmp_path))["language"] == languages


def test_a_backbone_that_cannot_be_reached() -> None:
    unknown = {"name": "nobody/such-a-model", "local": False, "license": None, "language": []}
    assert backbone_record("nobody/such-a-model") == unknown
