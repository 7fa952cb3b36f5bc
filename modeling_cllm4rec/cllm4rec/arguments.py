"""Arguments of the training stages of CLLM4Rec."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from modeling_cllm4rec.cllm4rec.objectives import RegularizationConfig
from modeling_cllm4rec.cllm4rec.prompts import Prompts
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.training.arguments import TrainingArguments, check_at_least

INIT_COLUMNS = ("title", "brand", "categories")
"""Texts of an item whose words its rows start from."""


@dataclass
class TeacherArguments(TrainingArguments):
    """A baseline whose choices are learned as well; see `cllm4rec/soft_targets.py`."""

    teacher: str = field(
        default="",
        metadata={"help": "baseline, such as ease, or several joined by +, fitted on the same interactions, to be learned from"},
    )
    teacher_settings: list[str] = field(
        default_factory=list,
        metadata={"help": "settings of the teacher: regularization=300, or of several baselines ease.regularization=300"},
    )
    teacher_items: int = field(default=100, metadata={"help": "best items of the teacher that are learned for a history"})
    teacher_power: float = field(
        default=1.0, metadata={"help": "the teacher's positive scores, raised to this power, are the shares of its items"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "teacher_items")
        if not self.teacher_power > 0:
            raise InputError(f"teacher_power is {self.teacher_power}; it must be above 0")
        _ = self.parsed_teacher_settings

    @property
    def parsed_teacher_settings(self) -> dict[str, Any]:
        """Setting -> value of the teacher; of several baselines baseline -> setting -> value."""
        settings: dict[str, Any] = {}
        for word in self.teacher_settings:
            name, given, value = word.partition("=")
            if not given:
                raise InputError(f"teacher_settings: {word!r} has no = in it; write settings as regularization=300")
            member, dot, setting = name.partition(".")
            (settings.setdefault(member, {}) if dot else settings)[setting or name] = yaml.safe_load(value)
        return settings


@dataclass
class StageArguments(TrainingArguments):
    """Arguments of pretraining and of finetuning.

    Attributes:
        sections: the sections of a YAML file whose stages share these fields; they may be set above both.
    """

    sections = ("pretrain", "finetune")  # no annotation: it is no argument

    lambda_c: float = field(default=1.0, metadata={"help": "weight of the mutual regularization; 0 switches it off"})
    lambda_l: float = field(default=0.0, metadata={"help": "weight of the prior on collaborative rows; 0 switches it off"})
    mutual_regularization: Literal["paper", "released"] = field(
        default="paper", metadata={"help": "scaling of the regularization: as the paper's equations, or as the released code"}
    )
    item_loss: Literal["exact", "chunked", "sampled"] = field(
        default="exact", metadata={"help": "softmax over the catalogue: all logits at once, in chunks, or sampled"}
    )
    reorder: bool = field(default=True, metadata={"help": "draw a new order of each history in each epoch"})
    drop_user: float = field(
        default=0.1, metadata={"help": "probability that a history goes without its user's token; the paper's is 0"}
    )
    max_history_tokens: int | None = field(
        default=None, metadata={"help": "longest prompt in tokens, the last items stay (default: the backbone's context)"}
    )
    prompts: dict[str, str] | str | None = field(
        default=None, metadata={"help": "templates that replace the default ones, as JSON; see cllm4rec/prompts.py"}
    )

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            self.prompts = _from_json("prompts", self.prompts)
        super().__post_init__()
        check_at_least(self, 1, "max_history_tokens")
        check_at_least(self, 0, "lambda_c", "lambda_l")
        if self.lambda_l and self.mutual_regularization == "released":
            raise InputError(
                f"lambda_l is {self.lambda_l}, but the released code has no prior; set lambda_l: 0, or "
                "mutual_regularization: paper"
            )
        if not 0 <= self.drop_user <= 1:
            raise InputError(f"drop_user is {self.drop_user}; it must lie between 0 and 1")
        _ = self.templates  # a template that is not right is told before anything is loaded

    @property
    def templates(self) -> Prompts:
        """The prompt templates, the given ones in place of the default ones."""
        assert not isinstance(self.prompts, str)
        return Prompts.from_mapping(self.prompts)

    @property
    def weights(self) -> RegularizationConfig:
        """Weights of the regularization."""
        return RegularizationConfig(self.lambda_c, self.lambda_l, self.mutual_regularization)


@dataclass
class PretrainArguments(StageArguments):
    """Pretraining (section 3.3): content warm-up, then alternating L and C steps with mutual regularization."""

    drop_user: float = field(default=0.0, metadata={"help": "probability that a history goes without its user's token"})
    backbone: str = field(default="", metadata={"help": "name or path of a causal language model"})
    backbone_weights: Literal["pretrained", "random"] = field(
        default="pretrained",
        metadata={"help": "weights of the backbone: its own, or random ones in its shape (the paper's LLM-Scratch)"},
    )
    warmup_epochs: int = field(default=1, metadata={"help": "epochs of the content LM alone, without regularization"})
    init_ids: Literal["text", "random"] = field(
        default="text", metadata={"help": "ID rows started from the words of the item's texts, or at random as in the paper"}
    )
    init_columns: list[str] = field(
        default_factory=lambda: list(INIT_COLUMNS), metadata={"help": "texts that init_ids: text reads"}
    )
    content_share: float = field(default=1.0, metadata={"help": "share of the text documents that one C pass reads"})
    text_validation_share: float = field(default=0.02, metadata={"help": "share of the text documents kept for validation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbone:
            raise InputError("backbone is not set; name a causal language model by --backbone or in the YAML file")
        check_at_least(self, 0, "warmup_epochs")
        for name in ("content_share", "text_validation_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")


@dataclass
class FinetuneArguments(TeacherArguments, StageArguments):
    """Finetuning for recommendation (section 3.4): masked history in, held-out items under the multinomial likelihood."""

    start: str = field(default="", metadata={"help": "folder of the pretrained model (default: OUTPUT/pretrained)"})
    mask_share: float = field(default=0.2, metadata={"help": "share p_m of the history that is held out"})
    target: Literal["holdout", "all"] = field(
        default="holdout", metadata={"help": "what is predicted: held-out items as in the paper, or all as the released code"}
    )
    average_holdout: bool = field(default=False, metadata={"help": "average a user's loss over the held-out items"})
    teacher_weight: float = field(default=1.0, metadata={"help": "weight of the cross-entropy with the teacher's choices"})
    content_every: int = field(default=0, metadata={"help": "one C step after so many recommendation steps; 0 for none"})
    train_on: Literal["train", "train+validation"] = field(
        default="train", metadata={"help": "interactions that are learned from; the model is always selected on validation"}
    )
    eval_batch_size: int = field(default=256, metadata={"help": "users scored at a time in validation"})
    eval_every: int = field(default=1, metadata={"help": "epochs between validations"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.start = self.start or str(self.run_folder / "pretrained")
        if not 0 < self.mask_share < 1:
            raise InputError(f"mask_share is {self.mask_share}; it must lie between 0 and 1, both excluded")
        check_at_least(self, 1, "eval_batch_size", "eval_every")
        check_at_least(self, 0, "content_every", "teacher_weight")


def _from_json(name: str, text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is {text!r}, which is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{name} is {text!r}; it must be a JSON object of names and templates")
    return value
